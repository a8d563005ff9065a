"""Rows of training steps that nobody measured."""

from lab.bench.measured import MACHINE
from step_rows import StepRow


def step(**changes):
    return StepRow(
        **{
            **MACHINE, "network": "resnet50", "batch": 16, "resolution": 224, "layout": "channels_last",
            "dtype": "float32", "arm": "torch", "how": "", "backend": "", "target": "", "pairs": 15, "p20_s": 1.4,
            "median_s": 1.42, "p80_s": 1.5, "removed_p20": 0.0, "removed": 0.0, "removed_p80": 0.0, "peak_mb": 3000.0,
            **changes,
        }
    )  # fmt: skip
