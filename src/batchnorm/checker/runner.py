"""Run a file that nobody has checked in a process of its own, and bring back arrays.

The process is for robustness, not for security: a candidate may crash, hang, exit or print, and the check goes on; but
it runs with the rights of whoever starts the check, like any script.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.checker.catalogue import initializers

CHILD = Path(__file__).with_name("child.py")
#: Seconds between two looks at a running child.
POLL = 0.02


@dataclass(frozen=True)
class Result:
    """What came out of one subject.

    Attributes
    ----------
    outputs : mapping of str to ndarray
        As far as the candidate got.
    facts : mapping of str to object
        What the child noticed about how the candidate reads its arguments.
    error : str or None
        What stopped it, in one line.
    """

    outputs: Mapping[str, Any]
    facts: Mapping[str, Any]
    error: str | None


@dataclass
class Observed:
    """What came out of one file.

    Attributes
    ----------
    failure : str or None
        Why nothing could be checked.
    labels : dict
        For each subject that was found, what its functions are called in the file, by role.
    remarks : list of str
        What is odd about the file.
    declared : dict of str to str
        Conventions that the file declares.
    results : dict of str to Result
        By subject.
    """

    failure: str | None = None
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)


def observe(path: Path, timeout: float) -> Observed:
    """Run everything in the file that can be checked.

    Parameters
    ----------
    path : Path
        The file.
    timeout : float
        Seconds that loading the file, and each subject, may take.

    Returns
    -------
    Observed
    """
    observed = Observed()
    with tempfile.TemporaryDirectory(prefix="batchnorm-check-") as name:
        directory = Path(name)
        while True:
            job = {
                "path": str(path.resolve()),
                "done": list(observed.results),
                "deviations": _deviations(),
            }
            (directory / "job.json").write_text(json.dumps(job), encoding="utf-8")
            (directory / "log.jsonl").write_text("", encoding="utf-8")
            ended = _run_child(directory, timeout)
            stages = _stages(directory)
            _collect(directory, stages, observed)
            if observed.failure is not None or (stages and stages[-1]["stage"] == "end"):
                return observed
            if not stages or stages[-1]["stage"] != "start":  # it did not get as far as a subject
                observed.failure = f"the file could not be loaded: {ended}"
                return observed
            # One subject took the process down; it has its result, and the others get a process without it.
            observed.results[stages[-1]["subject"]] = Result({}, {}, ended)


def _run_child(directory: Path, timeout: float) -> str:
    """Run the child until it ends or reports nothing for too long; say how it ended."""
    process = subprocess.Popen(  # noqa: S603  # our own interpreter, our own file
        [sys.executable, str(CHILD), str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that its children end with it
    )
    try:
        log, size, since = directory / "log.jsonl", 0, time.monotonic()
        while process.poll() is None:
            now = log.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > timeout:
                return f"it did not end within {timeout:g} seconds: an endless loop? (--timeout gives it more)"
            time.sleep(POLL)
    finally:
        _end(process)
    if process.returncode < 0:
        return f"the process was ended by {signal.Signals(-process.returncode).name}"
    return f"the process ended by itself with exit code {process.returncode}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the child and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _stages(directory: Path) -> list[dict[str, Any]]:
    """Read the child's log. A line that was cut off when it died is no stage."""
    stages = []
    for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            stages.append(json.loads(line))
    return stages


def _collect(directory: Path, stages: list[dict[str, Any]], observed: Observed) -> None:
    for stage in stages:
        if stage["stage"] == "failed":
            observed.failure = stage["error"]
        elif stage["stage"] == "found":
            observed.labels, observed.remarks = stage["labels"], stage["remarks"]
            observed.declared = stage["declared"]
        elif stage["stage"] == "done":
            with np.load(directory / f"{stage['subject']}.npz", allow_pickle=False) as arrays:
                outputs = {name: arrays[name] for name in arrays.files}
            observed.results[stage["subject"]] = Result(outputs, stage["facts"], stage["error"])


def _deviations() -> dict[str, dict[str, float]]:
    names = [subject.name for subject in initializers.SUBJECTS]
    right = {name: initializers.right_deviations(name) for name in names}
    return {
        name: {"dense": dense, "conv": conv} | ({"std": dense} if name == "gaussian" else {})
        for name, (dense, conv) in right.items()
    }
