"""One row per arm and case: typed records, and the CSV files that hold them."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from batchnorm.lab.errors import OutputError
from batchnorm.lab.files import reason_of, write_text


@dataclass(frozen=True)
class Machine:
    """Where and when a row was measured: the columns that every row begins with.

    Attributes
    ----------
    date : str
        Start of the run, UTC; names it.
    commit : str
        Of the package's own checkout, with ``-dirty`` where it has changes; empty when it runs from elsewhere.
    batchnorm, torch, python : str
        Versions.
    processor : str
        Model of the CPU.
    cores : int
        Those that the process may use.
    l2, l3 : int
        Bytes of the caches that the first core sees; 0 where the system does not say. In a virtual machine l3 is the
        host's.
    huge_pages : str
        Mode of transparent huge pages; empty where there are none.
    load : float
        Processes that ran or wanted to in the minute before, this one's threads included: above ``threads``, something
        else wanted the cores too.
    threads : int
        Of torch.
    allocation : str
        default or tuned.
    """

    date: str
    commit: str
    batchnorm: str
    torch: str
    python: str
    processor: str
    cores: int
    l2: int
    l3: int
    huge_pages: str
    load: float
    threads: int
    allocation: str


@dataclass(frozen=True)
class OperationRow(Machine):
    """One arm of one operation.

    Attributes
    ----------
    op, shape, layout, dtype : str
        The case.
    bytes : int
        Size of x.
    arm : str
        torch, torch_inplace, compile, batchnorm, or copy (the floor).
    backend, target : str
        What ran the arm batchnorm, by `batchnorm.explain`; empty for the others and where there is no target.
    pairs, repeats : int
        Samples, and calls in each.
    p20_ms, median_ms, p80_ms : float
        Time of one call.
    opponent : str
        The quicker of torch and torch_inplace by its median.
    ratio_p20, ratio, ratio_p80 : float
        Time of the opponent over time of this arm, pair by pair: above 1 this arm is quicker.
    floor_ratio : float
        Time of this arm over time of the copy, pair by pair; the median.
    faults : float
        Page faults of one call.
    """

    op: str
    shape: str
    layout: str
    dtype: str
    bytes: int
    arm: str
    backend: str
    target: str
    pairs: int
    repeats: int
    p20_ms: float
    median_ms: float
    p80_ms: float
    opponent: str
    ratio_p20: float
    ratio: float
    ratio_p80: float
    floor_ratio: float
    faults: float

    @property
    def case(self) -> tuple[str, ...]:
        """What was measured, without the arm."""
        return (self.allocation, self.op, self.shape, self.layout, self.dtype)


@dataclass(frozen=True)
class StepRow(Machine):
    """One arm of a training step.

    Attributes
    ----------
    network : str
        resnet18 or resnet50.
    batch, resolution : int
        Images, and their height and width.
    layout, dtype : str
        The rest of the case.
    arm : str
        torch, batchnorm, or limit.
    how : str
        What made the network of the arm batchnorm; empty for the others.
    backend, target : str
        What ran its normalization.
    pairs : int
        Samples.
    p20_s, median_s, p80_s : float
        Time of one step.
    removed_p20, removed, removed_p80 : float
        Share of what torch spends above the limit that this arm does not spend.
    peak_mb : float
        Largest resident memory of a process of its own that does three steps, in 10^6 bytes, torch included.
    """

    network: str
    batch: int
    resolution: int
    layout: str
    dtype: str
    arm: str
    how: str
    backend: str
    target: str
    pairs: int
    p20_s: float
    median_s: float
    p80_s: float
    removed_p20: float
    removed: float
    removed_p80: float
    peak_mb: float

    @property
    def case(self) -> tuple[str, ...]:
        """What was measured, without the arm."""
        shape = f"{self.batch}x3x{self.resolution}x{self.resolution}"
        return (self.allocation, self.network, shape, self.layout, self.dtype)


Row = OperationRow | StepRow


def header(kind: type[Row]) -> list[str]:
    """Return the names of the columns.

    Parameters
    ----------
    kind : type
        OperationRow or StepRow.

    Returns
    -------
    list of str
    """
    return [field.name for field in fields(kind)]


def open_results(path: Path, kind: type[Row]) -> None:
    """Make sure that rows of ``kind`` can be appended to ``path``, before anything is measured.

    Parameters
    ----------
    path : Path
        The CSV file. Written with its header where it is missing or empty.
    kind : type
        OperationRow or StepRow.

    Raises
    ------
    OutputError
        The disk refuses, or the file holds something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > 0:
            with path.open("a", encoding="utf-8"):
                pass
        else:
            write_text(path, _csv([header(kind)]))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason_of(error)}") from error
    with path.open(encoding="utf-8", newline="") as file:
        found = next(csv.reader(file), [])
    if found != header(kind):
        raise OutputError(f"cannot append to {path}: its columns are not those of {kind.__name__}; give another --out")


def append(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a file that `open_results` has seen, and flush them.

    Parameters
    ----------
    path : Path
        The CSV file.
    rows : iterable of Row
        Of the file's kind.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv([_cells(row) for row in rows]))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason_of(error)}") from error


def discard(path: Path, date: str) -> None:
    """Take the rows of one run out of a file again: its gate went red.

    Parameters
    ----------
    path : Path
        The CSV file.
    date : str
        That names the run.
    """
    kept = [row for row in read(path) if row.date != date]
    lines = path.read_text(encoding="utf-8").splitlines()[:1]
    write_text(path, "\n".join([*lines, ""]) + _csv([_cells(row) for row in kept]))


def read(path: Path) -> list[Row]:
    """Read a CSV file of either kind.

    Parameters
    ----------
    path : Path
        Written by `append`.

    Returns
    -------
    list of Row

    Raises
    ------
    OutputError
        It cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {reason_of(error)}") from error
    except UnicodeDecodeError:
        raise OutputError(f"{path} is not a result of batchnorm bench: it is not text") from None
    columns, *lines = list(csv.reader(io.StringIO(text))) or [[]]
    kind = next((kind for kind in (OperationRow, StepRow) if columns == header(kind)), None)
    if kind is None:
        raise OutputError(f"{path} is not a result of batchnorm bench: its first line names other columns")
    return [_parse(kind, cells, f"{path}:{number}") for number, cells in enumerate(lines, start=2)]


def latest(rows: Sequence[Row]) -> list[Row]:
    """Of what was measured more than once, keep the last measurement, all its arms and no other's.

    Parameters
    ----------
    rows : sequence of Row
        In any order.

    Returns
    -------
    list of Row
        In the order of ``rows``.
    """
    last: dict[tuple[str, ...], str] = {}
    for row in rows:
        last[row.case] = max(last.get(row.case, ""), row.date)
    return [row for row in rows if row.date == last[row.case]]


def _cells(row: Row) -> list[str]:
    return [_cell(getattr(row, name)) for name in header(type(row))]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _parse(kind: type[Row], cells: list[str], where: str) -> Row:
    names = fields(kind)
    if len(cells) != len(names):
        raise OutputError(f"{where}: {len(cells)} cells in a table of {len(names)} columns; remove the line")
    values: dict[str, Any] = {}
    for field, cell in zip(names, cells, strict=True):
        try:
            values[field.name] = math.nan if field.type is float and not cell else field.type(cell)  # type: ignore[operator]  # str, int or float
        except ValueError:
            raise OutputError(f"{where}: {field.name} must be a number; got {cell!r}") from None
    return kind(**values)


def _csv(lines: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
