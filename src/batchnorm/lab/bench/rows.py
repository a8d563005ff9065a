"""One row per arm and case: typed records, and the CSV files that hold them."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

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
        Processes that ran or wanted to in the minute before, this one's threads included: above ``threads``, other
        processes wanted the cores too.
    running_processes : float
        All processes of the machine or container; NaN where not recorded.
    memory_available : float
        In 10^9 bytes, before the case; NaN where not recorded.
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
    running_processes: float
    memory_available: float
    threads: int
    allocation: str


class Row(Machine):
    """One arm of one case. A subclass is a frozen dataclass that adds its columns, these among them."""

    arm: str
    backend: str
    target: str
    pairs: int

    @property
    def case(self) -> tuple[str, ...]:
        """The case, without the arm."""
        raise NotImplementedError


RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class OperationRow(Row):
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
        Of the arm batchnorm, by `batchnorm.explain`; empty for the others and where there is no target.
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
        """The case, without the arm."""
        return (self.allocation, self.op, self.shape, self.layout, self.dtype)


def header(kind: type[Row]) -> list[str]:
    """Return the names of the columns."""
    return [field.name for field in fields(kind)]


def open_results(path: Path, kind: type[Row]) -> None:
    """Prepare a CSV file for rows of ``kind``, before anything is measured.

    Parameters
    ----------
    path : Path
        The CSV file. Written with its header where it is missing or empty.
    kind : type
        Subclass of `Row`.

    Raises
    ------
    OutputError
        The disk refuses, or the file has other columns.
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
    """Append rows to a file that `open_results` has seen, and flush them; raise OutputError if the disk refuses."""
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv([_cells(row) for row in rows]))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason_of(error)}") from error


def discard(path: Path, kind: type[Row], date: str) -> None:
    """Remove the rows of the run that started at ``date``: its gate went red."""
    kept = [row for row in read(path, kind) if row.date != date]
    write_text(path, _csv([header(kind), *map(_cells, kept)]))


def read(path: Path, *kinds: type[RowT]) -> list[RowT]:
    """Read a CSV file.

    Parameters
    ----------
    path : Path
        Written by `append`.
    *kinds : type
        Subclasses of `Row`; the file's header says which one it holds.

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
        raise OutputError(f"{path} is not a result of a benchmark: it is not text") from None
    columns, *lines = list(csv.reader(io.StringIO(text))) or [[]]
    kind = next((kind for kind in kinds if columns == header(kind)), None)
    if kind is None:
        raise OutputError(f"{path} is not a result of a benchmark: its first line names other columns")
    return [_parse(kind, cells, f"{path}:{number}") for number, cells in enumerate(lines, start=2)]


def latest(rows: Sequence[RowT]) -> list[RowT]:
    """Keep, of each case, all arms of its last measurement, in the order of ``rows``."""
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


def _parse(kind: type[RowT], cells: list[str], where: str) -> RowT:
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
