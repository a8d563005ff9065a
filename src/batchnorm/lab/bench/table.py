"""The tables of operations: the same cells on the terminal and on a page."""

import math
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from batchnorm.lab import terminal
from batchnorm.lab.bench.rows import Machine, OperationRow, Row
from batchnorm.lab.wording import Table, plural

TITLES = {
    "bn": "BN, forward and backward",
    "bn_relu": "BN + ReLU, forward and backward",
    "bn_add_relu": "BN + add + ReLU, forward and backward",
    "eval_bn_relu": "BN + ReLU in evaluation, forward",
}
NOTE = (
    "ratio: time of torch over time of batchnorm, taken pair by pair, the median and in brackets the 20th to 80th "
    "percentile over pairs; torch is the quicker of in place (marked *) and not. copies: time of batchnorm over that "
    "of copying x into memory that is there. load: processes that ran or wanted to, these threads included."
)

#: From a row of the arm batchnorm to what was asked of its ratio, and of its copies.
Asked = Callable[[OperationRow], tuple[str, str]]


def tables(rows: Sequence[OperationRow], asked: Asked | None = None) -> list[Table]:
    """Make one table per operation and mode of allocation, with columns for ``asked`` if it is given."""
    made = []
    for op, allocation in dict.fromkeys((row.op, row.allocation) for row in rows):
        some = [row for row in rows if (row.op, row.allocation) == (op, allocation)]
        made.append(_table(f"{TITLES.get(op, op)}, {allocation} allocation", some, asked))
    return made


def machines(rows: Sequence[Machine]) -> list[str]:
    """Describe where the rows were measured, one line for each machine, commit and setting."""
    runs: dict[str, list[Machine]] = {}
    for row in rows:
        where = (
            f"{row.processor}, {plural(row.cores, 'core')}, L2 {_mega(row.l2)}, L3 {_mega(row.l3)}, huge pages "
            f"{row.huge_pages or 'none'}; {plural(row.threads, 'thread')}; torch {row.torch}, "
            f"batchnorm {row.batchnorm} {row.commit or '(no checkout)'}, Python {row.python}"
        )
        runs.setdefault(where, []).append(row)
    lines = []
    for where, some in runs.items():
        load = _range("load", [row.load for row in some], ".1f")
        load += _range("processes", [row.running_processes for row in some], ".0f")
        load += _range("GB of memory available", [row.memory_available for row in some], ".1f")
        dates = sorted({row.date for row in some})
        lines.append(f"{dates[0]}{f' to {dates[-1]}' if len(dates) > 1 else ''}: {where}{load}")
    return lines


def print_tables(to: Console, rows: Sequence[OperationRow]) -> None:
    """Print the tables of all arms, how to read them, and the machine."""
    for table in tables(rows):
        terminal.print_table(to, table)
    for line in ["", NOTE, pairs(rows), *machines(rows)]:
        to.print(Text(line, style="dim"))


def pairs(rows: Sequence[Row]) -> str:
    """Say how many pairs were measured."""
    counts = sorted({row.pairs for row in rows})
    return f"{' or '.join(map(str, counts))} pairs, interleaved in random order, after warm-up."


def backend(row: Row) -> str:
    """Name backend and target of a row of the arm batchnorm."""
    return f"backend {row.backend}{f' {row.target}' if row.target else ''}"


def number(value: float) -> str:
    """Write three digits, without an exponent."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _table(title: str, rows: Sequence[OperationRow], asked: Asked | None) -> Table:
    compiled = any(row.arm == "compile" for row in rows)
    backends = dict.fromkeys(backend(row) for row in rows if row.arm == "batchnorm")
    columns = ["shape", "MB", "layout", "dtype", "torch ms", *(["compile ms"] if compiled else []), "batchnorm ms"]
    columns += ["ratio", "asked", "copies", "asked"] if asked else ["ratio", "copies"]
    columns += ["load", *(["backend"] if len(backends) > 1 else [])]
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        arms = {row.arm: row for row in rows if row.case == case}
        ours = arms.get("batchnorm")
        if ours is None:
            continue
        torch = arms[ours.opponent]
        cells = [ours.shape, f"{ours.bytes / 1e6:.3g}", ours.layout, ours.dtype]
        cells.append(number(torch.median_ms) + ("*" if torch.arm == "torch_inplace" else ""))
        if compiled:
            cells.append(number(arms["compile"].median_ms) if "compile" in arms else "")
        cells += [number(ours.median_ms), f"{number(ours.ratio)} ({number(ours.ratio_p20)}-{number(ours.ratio_p80)})"]
        ratio, copies = asked(ours) if asked else ("", "")
        cells += [ratio, number(ours.floor_ratio), copies] if asked else [number(ours.floor_ratio)]
        lines.append([*cells, number(ours.load), *([backend(ours)] if len(backends) > 1 else [])])
    return Table(f"{title}, {' and '.join(backends)}", columns, lines, note="")


def _range(what: str, values: Sequence[float], digits: str) -> str:
    known = [value for value in values if not math.isnan(value)]
    return f"; {what} {min(known):{digits}} to {max(known):{digits}}" if known else ""


def _mega(size: int) -> str:
    return f"{size / 2**20:g} MiB" if size else "unknown"
