"""Where a benchmark runs: the columns that every row begins with, and the two modes of allocation."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from batchnorm.lab.bench.config import Allocation
from batchnorm.lab.bench.rows import Machine
from batchnorm.lab.environment import environment
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
    """Describe this machine and this process.

    Parameters
    ----------
    date : str
        Start of the run.
    allocation : {'default', 'tuned'}
        The mode that the process was started in.

    Returns
    -------
    Machine
    """
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
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
        threads=int(str(facts["threads"])),
        allocation=allocation,
    )


def process_environment(allocation: Allocation, inherited: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of a process that allocates in this mode.

    Parameters
    ----------
    allocation : {'default', 'tuned'}
        The mode.
    inherited : dict of str to str
        Environment of this process.

    Returns
    -------
    dict of str to str

    Raises
    ------
    LabError
        tuned, and the C library is not glibc; or glibc's malloc was already replaced or tuned from outside, so that
        neither mode would be what its name says.
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
    """Read the size of a cache of the first core.

    Parameters
    ----------
    level : int
        2 or 3.
    system : Path, default=/sys
        Where Linux describes itself.

    Returns
    -------
    int
        Bytes; 0 where it cannot be read.
    """
    for index in sorted((system / "devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "level").read_text().strip() == str(level):
                size = (index / "size").read_text().strip()
                return int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            return 0
    return 0


def huge_pages(system: Path = SYSTEM) -> str:
    """Read the mode of transparent huge pages.

    Parameters
    ----------
    system : Path, default=/sys
        Where Linux describes itself.

    Returns
    -------
    str
        always, madvise or never; empty where it cannot be read.
    """
    try:
        modes = (system / "kernel/mm/transparent_hugepage/enabled").read_text().split()
    except OSError:
        return ""
    return next((mode.strip("[]") for mode in modes if mode.startswith("[")), "")


def peak_memory() -> float:
    """Largest resident memory that this process has had.

    Returns
    -------
    float
        In 10^6 bytes; NaN where the system does not say.
    """
    # Not ru_maxrss where there is something better: on Linux a child inherits its parent's.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6
