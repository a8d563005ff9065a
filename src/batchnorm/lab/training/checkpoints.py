"""What training goes on from: files that are whole or are not taken.

A checkpoint is written under another name, handed to the disk, and only then renamed; the one before it is kept until
the next is whole. Its name carries a part of the SHA-256 of its content, so that a damaged one is known before anything
in it is read. It is loaded as plain tensors and numbers (``weights_only``): a checkpoint from elsewhere runs no code.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from batchnorm.lab.errors import OutputError
from batchnorm.lab.files import reason_of

KEPT = 2
NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")

State = dict[str, Any]


def save(directory: Path, step: int, state: State) -> Path:
    """Write a checkpoint, all of it or nothing, then drop those older than the one before.

    Parameters
    ----------
    directory : Path
        Where; it is created.
    step : int
        Optimizer steps done.
    state : dict
        Tensors, numbers, texts, and dicts, lists and tuples of them.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        The disk refuses. What was there before is as it was.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    path = directory / f"step-{step:08d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    part = directory / "writing.part"
    try:
        directory.mkdir(exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync(directory)
        for old in _found(directory)[KEPT:]:
            old.unlink()
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write the checkpoint of step {step} to {directory}: {reason_of(error)}; "
            "make room there, then go on with --resume"
        ) from error
    return path


def load_last(directory: Path, warn: Callable[[str], None]) -> State:
    """Read the last checkpoint that is whole.

    Parameters
    ----------
    directory : Path
        Where they are.
    warn : callable
        Called with a sentence for each that is damaged and left out.

    Returns
    -------
    dict
        What was saved, on the CPU.

    Raises
    ------
    OutputError
        There is none that is whole.
    """
    found = _found(directory)
    for path in found:
        try:
            return _load(path)
        except OutputError as error:
            warn(f"{error}; going back to the checkpoint before it")
    what = "none of them is whole" if found else "there is none"
    raise OutputError(f"{directory} must hold a checkpoint to go on from, and {what}; start the training anew")


def exist(directory: Path) -> bool:
    """Whether there is any checkpoint, whole or not."""
    return bool(_found(directory))


def _load(path: Path) -> State:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {reason_of(error)}") from error
    match = NAME.fullmatch(path.name)
    assert match is not None
    if hashlib.sha256(content).hexdigest()[:16] != match[2]:
        raise OutputError(f"{path} is damaged: its content does not have the SHA-256 in its name")
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _found(directory: Path) -> list[Path]:
    """Give the checkpoints, the last first."""
    found = [path for path in directory.glob("step-*.pt") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (int(path.name.split("-")[1]), path.stat().st_mtime_ns), reverse=True)


def _sync(directory: Path) -> None:
    """Hand the renaming to the disk too: it is a change of the directory."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
