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


def json_line(value: Any) -> str:
    """Write ``value``, as for :func:`write_json`, as one line of JSON with its end."""
    return json.dumps(jsonable(value), allow_nan=False, separators=(",", ":")) + "\n"


def append_line(path: Path, value: Any) -> None:
    """Append ``value`` as one line of JSON and hand it to the operating system: it survives the end of the process.

    Parameters
    ----------
    path : Path
        The file.
    value : object
        As for :func:`write_json`.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    line = json_line(value)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {reason_of(error)}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`append_line` wrote; a last line without its end, cut off while it was written, is dropped.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    list of dict

    Raises
    ------
    OutputError
        The file cannot be read, or a line of it is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {reason_of(error)}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no newline after it: the process was killed while writing
                break
            raise OutputError(f"{path}, line {number} is damaged: {error}; delete that line and try again") from error
    return records


def read_mapping(path: Path, require: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : Path
        The file.
    require : sequence of str
        Keys that it must have.

    Returns
    -------
    dict

    Raises
    ------
    OutputError
        The file cannot be read, is not a JSON object, or lacks a key.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict) or any(key not in value for key in require):
        raise OutputError(f"{path} is damaged: it must hold {', '.join(require) or 'a JSON object'}")
    return value


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
