"""Files that others have published: where they lie, that they are what they should be, and how they get there.

Nothing is parsed before its checksum matches, and a file that does not match is never overwritten: it is somebody's.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from batchnorm.lab.errors import DataError
from batchnorm.lab.files import reason_of

REPAIR = "delete the file to have it downloaded again, or copy it again from where it came"
ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}


def data_root(data_dir: Path | None = None) -> Path:
    """Folder in which data files are looked for, and into which they are downloaded.

    Parameters
    ----------
    data_dir : Path, optional
        Taken when given; else ``BATCHNORM_DATA`` from the environment, else the user's cache.

    Returns
    -------
    Path
        The folder; it need not exist.
    """
    if data_dir is not None:
        return data_dir
    if from_environment := os.environ.get("BATCHNORM_DATA"):
        return Path(from_environment)
    # Only when it comes to files, as digits need none.
    import pooch  # type: ignore[import-untyped]  # ships no types

    return Path(pooch.os_cache("batchnorm"))


def read(path: Path, checksums: Sequence[str]) -> bytes:
    """Read a file whose checksums are known.

    Parameters
    ----------
    path : Path
        The file.
    checksums : sequence of str
        ``"sha256:..."`` or ``"md5:..."``; all of them must match.

    Returns
    -------
    bytes
        Its content: what was verified is what is parsed, whatever happens to the file afterwards.

    Raises
    ------
    DataError
        The file cannot be read, or a checksum does not match.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} must be readable; got {reason_of(error)}; give another folder with --data-dir"
        ) from error
    verify(content, checksums, str(path), REPAIR)
    return content


def verify(content: bytes, checksums: Sequence[str], where: str, repair: str) -> None:
    """Compare content with its checksums.

    Parameters
    ----------
    content : bytes
        What was read.
    checksums : sequence of str
        As for :func:`read`.
    where, repair : str
        Where it came from and what to do about it, for the message.

    Raises
    ------
    DataError
        A checksum does not match.
    """
    for checksum in checksums:
        algorithm, _, expected = checksum.partition(":")
        # MD5 is there where nothing else was published: it finds damage, and what is parsed is not trusted anyway.
        found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise DataError(
                f"{where} is damaged or is another file: its {ALGORITHMS[algorithm]} must be {expected}; "
                f"got {found} over {len(content)} bytes; {repair}"
            )


def download(path: Path, url: str, checksum: str, *, what: str, instead: str) -> None:
    """Download a file that is not there: whole and verified, or not at all.

    Parameters
    ----------
    path : Path
        Where it belongs. It must not exist.
    url : str
        Where it is published.
    checksum : str
        As for :func:`read`.
    what, instead : str
        What the file is, and what else the user can do, for the message.

    Raises
    ------
    DataError
        It cannot be had, or cannot be written, or is not the file that was published.
    """
    import pooch  # only when a file is missing

    assert not path.exists(), path
    # It tells of each file in a line of its own; the bar says the same, and a log does not need it.
    pooch.get_logger().setLevel("WARNING")
    try:
        with _bar(path.name) as bar:
            pooch.retrieve(url, known_hash=checksum, fname=path.name, path=path.parent, progressbar=bar)
    # Whatever fails in requests, in the file system or in the checksum: the user needs the same one message.
    except Exception as error:
        raise DataError(
            f"{path} must hold {path.name} of {what}; it is not there, and downloading {url} failed: "
            f"{type(error).__name__}: {error}; {instead}"
        ) from error


class _Bar:
    """What pooch asks of a progress bar, drawn by rich, as everywhere in the lab."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self.total = 0
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
            console=Console(stderr=True),
        )  # fmt: skip
        self._task = self.progress.add_task(name, total=None)

    def update(self, n: int) -> None:
        """Add ``n`` bytes."""
        self.progress.update(self._task, advance=n, total=self.total or None)

    def reset(self) -> None:
        """Begin again: pooch does this at the end, to fill the bar."""
        self.progress.reset(self._task)

    def close(self) -> None:
        """Leave the bar as it is; it is taken down with the rest of the display."""


@contextmanager
def _bar(name: str) -> Iterator[_Bar | bool]:
    """Yield a progress bar on a terminal, False elsewhere."""
    if not sys.stderr.isatty():
        yield False
        return
    bar = _Bar(name)
    with bar.progress:
        yield bar
