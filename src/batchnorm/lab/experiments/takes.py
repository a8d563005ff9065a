"""Who trains which cell: several processes and machines may share the directory of a plan.

A cell is taken by creating its directory, which exactly one process succeeds in. A note beside it says who took it, and
is touched while its process lives. A take is stale when its process is gone from this machine, or when its note was not
touched for ``STALE`` seconds; exactly one process succeeds in renaming a stale note, and goes on with that cell.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from batchnorm.lab.errors import OutputError
from batchnorm.lab.files import reason_of, write_json

TAKES = "takes"
BEAT, STALE = 15.0, 180.0


class Take:
    """A cell that this process holds; made by :func:`take`. Use as a context manager: leaving it gives the cell back.

    Parameters
    ----------
    note : Path
        The file that says who holds the cell.
    token : str
        Identifies this take.

    Attributes
    ----------
    lost : bool
        Another process took the cell over, because this one seemed to be gone (a suspended machine): stop writing.
    """

    def __init__(self, note: Path, token: str) -> None:
        self.note = note
        self.token = token
        self.lost = False
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Take":
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        with contextlib.suppress(OSError):
            if _owner(self.note).get("token") == self.token:
                self.note.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            owner = _owner(self.note)
            if owner and owner.get("token") != self.token:
                self.lost = True
                return
            with contextlib.suppress(OSError):
                os.utime(self.note)


def take(cell: Path) -> Take | None:
    """Take a cell, unless another process holds it.

    Parameters
    ----------
    cell : Path
        Its run directory, in the directory ``cells`` of a plan.

    Returns
    -------
    Take or None
        None: it is held by a live process.

    Raises
    ------
    OutputError
        The directory of the plan cannot be written.
    """
    note = cell.parent.parent / TAKES / f"{cell.name}.json"
    try:
        note.parent.mkdir(exist_ok=True)
        try:
            cell.mkdir()
        except FileExistsError:
            if not _free(cell, note):
                return None
        token = uuid.uuid4().hex
        write_json(note, {"host": _host(), "process": os.getpid(), "token": token})
    except OSError as error:
        raise OutputError(f"cannot take the cell {cell}: {reason_of(error)}; give a writable --out") from error
    return Take(note, token)


def _free(cell: Path, note: Path) -> bool:
    """Free the note of a cell that exists: nobody's, or stale. Exactly one process gets True."""
    claimed = note.with_name(f"{note.name}.{uuid.uuid4().hex}")
    try:
        owner = _owner(note)
        if not _stale(owner, time.time() - note.stat().st_mtime):
            return False
        note.rename(claimed)
        if _owner(claimed) != owner:  # another process was quicker, and this is its note
            claimed.rename(note)
            return False
    except FileNotFoundError:
        # Given back, or its process ended between creating the directory and writing the note.
        return _claim_without_note(cell, note)
    claimed.unlink()
    return True


def _claim_without_note(cell: Path, note: Path) -> bool:
    begun = (cell / "config.json").is_file() or time.time() - cell.stat().st_mtime > STALE
    if not begun:
        return False
    try:
        os.close(os.open(note, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _stale(owner: dict[str, object], age: float) -> bool:
    if owner.get("host") == _host() and isinstance(process := owner.get("process"), int):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return age > STALE


def _owner(note: Path) -> dict[str, object]:
    try:
        owner = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _host() -> str:
    """Name this machine; containers of one machine, where a process has another number, are told apart."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()
