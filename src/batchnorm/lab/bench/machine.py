"""Where a benchmark runs: the columns that every row begins with, and the two modes of allocation."""

import math
import platform
from collections.abc import Mapping
from pathlib import Path

from batchnorm.lab.bench.config import Allocation
from batchnorm.lab.bench.rows import Machine
from batchnorm.lab.environment import environment, load, memory, running_processes
from batchnorm.lab.errors import LabError

# Read by glibc when a process starts. Nothing is mapped on its own, nothing is given back, and the heap grows by much
# at a time: after the warm-up a large tensor is memory that is already there, for every arm.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
SYSTEM = Path("/sys")


def machine(date: str, allocation: Allocation) -> Machine:
    """Describe this machine and this process, of a run that started at ``date``, in its mode of allocation."""
    facts = environment()
    return Machine(
        date=date,
        commit=str(facts["commit"] or ""),
        batchnorm=str(facts["batchnorm"]),
        torch=str(facts["torch"]),
        python=str(facts["python"]),
        processor=str(facts["processor"]),
        cores=int(str(facts["cores"])),
        l2=cache_size(2),
        l3=cache_size(3),
        huge_pages=huge_pages(),
        load=math.nan if (busy := load()) is None else busy,
        running_processes=math.nan if (count := running_processes()) is None else count,
        memory_available=math.nan if (free := memory().available) is None else free / 1e9,
        threads=int(str(facts["threads"])),
        allocation=allocation,
    )


def process_environment(allocation: Allocation, inherited: Mapping[str, str]) -> dict[str, str]:
    """Make the environment variables of a process that allocates in this mode, from those of this process.

    Raises LabError for tuned where the C library is not glibc, and where malloc was already replaced or tuned from
    outside: then neither mode would be what its name says.
    """
    outside = [
        name
        for name, value in inherited.items()
        if name.startswith("MALLOC_") or (name in ("GLIBC_TUNABLES", "LD_PRELOAD") and "malloc" in value)
    ]
    if outside:
        raise LabError(
            f"malloc must be the system's own for the modes of allocation; unset {' '.join(sorted(outside))}"
        )
    if allocation == "default":
        return dict(inherited)
    if platform.libc_ver()[0] != "glibc":
        raise LabError("allocations must be default where the C library is not glibc; try --allocations default")
    return {**inherited, **TUNED}


def cache_size(level: int, system: Path = SYSTEM) -> int:
    """Read the bytes of the first core's cache of a level, 0 where ``system`` (Linux's /sys) does not say."""
    for index in sorted((system / "devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "level").read_text().strip() == str(level):
                size = (index / "size").read_text().strip()
                return int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            return 0
    return 0


def huge_pages(system: Path = SYSTEM) -> str:
    """Read the mode of transparent huge pages: always, madvise or never, empty where ``system`` does not say."""
    try:
        modes = (system / "kernel/mm/transparent_hugepage/enabled").read_text().split()
    except OSError:
        return ""
    return next((mode.strip("[]") for mode in modes if mode.startswith("[")), "")
