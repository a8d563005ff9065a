"""The numbers to reach, and whether a row reaches them.

They were set before there was anything to measure, and are not lowered here when a result falls short: the table says
so instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from batchnorm.lab.bench.rows import OperationRow, Row
from step_rows import StepRow

LARGE = 8e6  # bytes of x
#: Training and evaluation against torch, default allocation, by operation: (over 8 MB, elsewhere).
DEFAULT = {"bn": (2.5, 2.5), "bn_relu": (4.0, 2.0), "bn_add_relu": (4.0, 4.0), "eval_bn_relu": (2.0, 2.0)}
#: With allocation tuned for both; where nothing more was asked, 1: never slower.
TUNED = {"bn_relu": (3.0, 1.0)}
NEVER_SLOWER = (1.0, 1.0)
#: Forward and backward against a copy of x, where x, y, dy and dx together are beyond the last-level cache.
FLOOR = 5.0
FLOOR_OPS = ("bn", "bn_relu")
TENSORS_OF_A_STEP = 4
#: Share of what torch spends above the limit that must be gone.
REMOVED = {"default": 1 / 2, "tuned": 1 / 3}


@dataclass(frozen=True)
class Goal:
    """One number to reach, and what was measured, in the unit of ``name``."""

    name: str
    asked: float
    measured: float
    met: bool


def speed(row: OperationRow) -> Goal:
    """Judge the median ratio to torch, of a row of the arm batchnorm."""
    large = row.bytes > LARGE
    goals = DEFAULT if row.allocation == "default" else TUNED
    pair = goals.get(row.op, NEVER_SLOWER)
    asked = pair[0] if large else pair[1]
    where = "" if pair[0] == pair[1] else " over 8 MB" if large else " up to 8 MB"
    what = f"at least {asked:g} times as fast as torch" if asked > 1 else "never slower than torch"
    return Goal(f"{row.op}{where}, {row.allocation} allocation: {what}", asked, row.ratio, row.ratio >= asked)


def floor(row: OperationRow) -> Goal | None:
    """Judge the ratio to a copy; None where the working set fits the last-level cache, or that is not known."""
    beyond = 0 < row.l3 < TENSORS_OF_A_STEP * row.bytes
    if row.op not in FLOOR_OPS or not beyond:
        return None
    name = f"{row.op} beyond the last-level cache, {row.allocation} allocation: at most {FLOOR:g} copies"
    return Goal(name, FLOOR, row.floor_ratio, row.floor_ratio <= FLOOR)


def narrow(rows: Sequence[OperationRow]) -> list[Goal]:
    """Judge bfloat16: no worse in ratio than float32; one goal for each pair of rows that differ in dtype only.

    Met when bfloat16's 80th percentile reaches float32's median: of two equal ratios, one median is always below the
    other.
    """
    wide: Mapping[tuple[str, ...], OperationRow] = {row.case[:-1]: row for row in rows if row.dtype == "float32"}
    goals = []
    for row in rows:
        twin = wide.get(row.case[:-1])
        if row.dtype == "bfloat16" and twin is not None:
            name = f"bfloat16, {row.allocation} allocation: ratio to torch no worse than float32's"
            goals.append(Goal(name, twin.ratio, row.ratio, row.ratio_p80 >= twin.ratio))
    return goals


def training(rows: Iterable[StepRow]) -> list[Goal]:
    """Judge training steps: the share removed, and the memory."""
    goals = []
    of: dict[tuple[str, ...], dict[str, StepRow]] = {}
    for row in rows:
        of.setdefault(row.case, {})[row.arm] = row
    for arms in of.values():
        if {"torch", "batchnorm"} <= arms.keys():
            goals += [share(arms["batchnorm"]), memory(arms["batchnorm"], arms["torch"])]
    return goals


def share(row: StepRow) -> Goal:
    """Judge what is gone of torch's time above the limit."""
    asked = REMOVED[row.allocation]
    name = f"training step, {row.allocation} allocation: at least {asked:.0%} of torch's time above the limit gone"
    return Goal(name, asked, row.removed, row.removed >= asked)


def memory(row: StepRow, torch: StepRow) -> Goal:
    """Judge the peak memory."""
    name = f"training step, {row.allocation} allocation: peak memory no higher than torch's"
    return Goal(name, torch.peak_mb, row.peak_mb, row.peak_mb <= torch.peak_mb)


def summary(rows: Sequence[Row]) -> dict[str, list[Goal]]:
    """Judge all arms: the goals by name, in the order of the rows."""
    ours = [row for row in rows if isinstance(row, OperationRow) and row.arm == "batchnorm"]
    goals = [speed(row) for row in ours]
    goals += [goal for row in ours if (goal := floor(row)) is not None]
    goals += narrow(ours) + training(row for row in rows if isinstance(row, StepRow))
    grouped: dict[str, list[Goal]] = {}
    for goal in goals:
        grouped.setdefault(goal.name, []).append(goal)
    return grouped
