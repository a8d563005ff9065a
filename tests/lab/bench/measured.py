"""Rows that nobody measured."""

from batchnorm.lab.bench.rows import OperationRow

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00", "commit": "abc", "batchnorm": "0.1", "torch": "2.13.0", "python": "3.11.7",
    "processor": "A CPU", "cores": 2, "l2": 2**21, "l3": 2**25, "huge_pages": "madvise", "load": 0.5,
    "running_processes": 120.0, "memory_available": 8.25, "threads": 2,
    "allocation": "default",
}  # fmt: skip


def operation(**changes):
    return OperationRow(
        **{
            **MACHINE, "op": "bn_relu", "shape": "64x64x56x56", "layout": "contiguous", "dtype": "float32",
            "bytes": 51380224, "arm": "torch", "backend": "", "target": "", "pairs": 15, "repeats": 1, "p20_ms": 39.0,
            "median_ms": 40.0, "p80_ms": 42.0, "opponent": "torch", "ratio_p20": 1.0, "ratio": 1.0, "ratio_p80": 1.0,
            "floor_ratio": 20.0, "faults": 12544.0, **changes,
        }
    )  # fmt: skip


def ours(**changes):
    return operation(
        **{
            "arm": "batchnorm", "backend": "native", "target": "avx512", "p20_ms": 7.8, "median_ms": 8.0,
            "p80_ms": 8.5, "ratio_p20": 4.75, "ratio": 5.0, "ratio_p80": 5.25, "floor_ratio": 4.0, **changes,
        }
    )  # fmt: skip
