"""Files that are there whole or not at all, and JSON that knows arrays."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.lab.errors import OutputError


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, all of it or nothing.

    Parameters
    ----------
    path : Path
        The file.
    value : object
        Mappings, sequences, NumPy arrays, paths, strings, numbers, None.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    write_text(path, json.dumps(jsonable(value), allow_nan=False, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` under another name and rename it, so that nobody reads half of it.

    Parameters
    ----------
    path : Path
        The file.
    text : str
        Its whole content.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason_of(error)}") from error


def make_run_directory(path: Path) -> None:
    """Create a run directory, with missing parents.

    Parameters
    ----------
    path : Path
        A directory that does not exist yet, or is empty.

    Raises
    ------
    OutputError
        It cannot be created or written, is a file, or already holds something.
    """
    try:
        if path.exists() and not path.is_dir():
            raise OutputError(f"cannot write the run to {path}: it is a file; give --out a new or empty directory")
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise OutputError(f"cannot write the run to {path}: it is not empty; give --out a new or empty directory")
    except OSError as error:
        raise OutputError(f"cannot write the run to {path}: {reason_of(error)}; give --out a writable place") from error


def jsonable(value: Any) -> Any:
    """Turn ``value`` into what JSON can hold.

    Parameters
    ----------
    value : object
        As for :func:`write_json`.

    Returns
    -------
    object
        The same with arrays as lists, paths as strings, and numbers that are not finite as None.

    Raises
    ------
    TypeError
        JSON has nothing for it.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence):
        return [jsonable(item) for item in value]
    raise TypeError(f"a run directory holds JSON values and arrays, not {type(value).__name__}")


def reason_of(error: OSError) -> str:
    """Say in a few words what the operating system refused.

    Parameters
    ----------
    error : OSError
        What was raised.

    Returns
    -------
    str
        For instance "permission denied".
    """
    return (error.strerror or str(error)).lower()
