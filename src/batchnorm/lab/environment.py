"""Where a run was made: machine and versions, recorded with every run."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from batchnorm import __version__


def environment(threads: int | None = None) -> dict[str, object]:
    """Describe this machine and the versions of what computes.

    Parameters
    ----------
    threads : int, optional
        Threads that torch will compute with. None: as many as it has now.

    Returns
    -------
    dict
        Values that JSON can hold. ``commit`` is None when the package does not run from its own git checkout, and ends
        in ``-dirty`` when the checkout has changes. ``load`` is the number of busy processes of the last minute.
    """
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
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


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
