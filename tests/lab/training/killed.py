"""Trainings that are killed: a process of its own, which forks one child for each (torch is imported once).

    python killed.py DIRECTORY PLACE:NUMBER ...

PLACE is where, NUMBER at which call: fsync (writing a checkpoint), replace (renaming a file), line (in the middle of
writing a record), step (of training). The run of PLACE:NUMBER is DIRECTORY/PLACE-NUMBER.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from batchnorm.lab import recording
from batchnorm.lab.files import json_line
from batchnorm.lab.training import train
from lab.training.runs import config, points


def die(number: int, real: Callable[..., Any], before: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
    """Wrap a function: at its call of that number, the process is killed."""
    calls = 0

    def wrapped(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            before(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **settings)

    return wrapped


def half_a_line(path: Path, value: Any) -> None:
    """Write the beginning of a record."""
    with path.open("a") as file:
        line = json_line(value)
        file.write(line[: len(line) // 2])


def main() -> None:
    """Run and kill."""
    directory = Path(sys.argv[1])
    for place, number in (scenario.split(":") for scenario in sys.argv[2:]):
        child = os.fork()
        if not child:
            at = int(number)
            match place:
                case "fsync":
                    os.fsync = die(at, os.fsync)
                case "replace":
                    pathlib.Path.replace = die(at, pathlib.Path.replace)
                case "line":
                    recording.append_line = die(at, recording.append_line, half_a_line)
                case "step":
                    torch.optim.Adam.step = die(at, torch.optim.Adam.step)  # CONFIG's optimizer
            train(config(directory / f"{place}-{number}"), dataset=points())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), (place, number, "was not reached")
        assert os.WTERMSIG(status) == signal.SIGKILL, (place, number, status)


if __name__ == "__main__":
    main()
