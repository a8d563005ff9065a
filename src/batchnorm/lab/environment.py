"""Where a run was made: machine, what else the machine did, and versions; recorded with every run."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from batchnorm import __version__


def environment(threads: int | None = None) -> dict[str, object]:
    """Describe this machine at this moment, and the versions of what computes.

    Parameters
    ----------
    threads : int, optional
        Threads that torch will compute with. None: as many as it has now.

    Returns
    -------
    dict
        Values that JSON can hold; None where the system does not say. ``load`` counts the busy processes of the last
        minute, ``running_processes`` all of the machine or container. ``commit`` is None when the package does not run
        from its own git checkout, and ends in ``-dirty`` when the checkout has changes.
    """
    free = memory()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "batchnorm": __version__,
        "commit": _commit(Path(__file__)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "threads": threads or torch.get_num_threads(),
        "memory_gb": _giga(free.total),
        "memory_available_gb": _giga(free.available),
        "load": load(),
        "running_processes": running_processes(),
    }


def load() -> float | None:
    """Return how many processes ran or wanted to in the last minute, on average. None where unknown."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def running_processes(root: Path = Path("/")) -> int | None:
    """Count the processes that ``root``/proc lists. None where there is none."""
    found = sum(folder.name.isdecimal() for folder in (root / "proc").glob("[0-9]*"))
    return found or None


class Memory(NamedTuple):
    """Bytes of memory that this process may use: all, and those that are available now; None where unknown."""

    total: int | None
    available: int | None


def memory(root: Path = Path("/")) -> Memory:
    """Read the memory of the machine, or of the container that limits it, under ``root``."""
    found = {"MemTotal": None, "MemAvailable": None, **_numbers(root / "proc/meminfo")}
    total, available = (None if kib is None else 1024 * kib for kib in (found["MemTotal"], found["MemAvailable"]))
    for limit_file, used_file, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        group = root / "sys/fs/cgroup" / limit_file
        try:
            limit, used = int(group.read_text()), int((root / "sys/fs/cgroup" / used_file).read_text())
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        # Files that the system keeps in memory are given up when it is needed.
        used -= _numbers(group.with_name("memory.stat")).get(cache, 0)
        total = min(filter(None, (total, limit)))
        available = max(0, min(a for a in (available, limit - used) if a is not None))
    return Memory(total, available)


def _giga(size: int | None) -> float | None:
    return None if size is None else round(size / 1e9, 2)


def _numbers(file: Path) -> dict[str, int]:
    """Read a file of lines such as ``MemTotal: 1 kB`` or ``cache 1``; empty where there is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) for line in lines if len(words := line.split()) > 1}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() says nothing, or only the architecture, on Linux
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Count the cores that this process may use: in a container or under taskset fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit(file: Path) -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603  # fixed arguments, no shell
            ["git", "-C", str(file.parent), *arguments],  # noqa: S607  # the user's git, wherever it is
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed copy may lie inside somebody else's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
