"""The rows of training steps, and their table. Files only: no torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batchnorm.lab.bench import table
from batchnorm.lab.bench.rows import Row
from batchnorm.lab.wording import Table

ARMS = ("torch", "batchnorm", "limit")


@dataclass(frozen=True)
class StepRow(Row):
    """One arm of a training step.

    Attributes
    ----------
    network, batch, resolution, layout, dtype
        The case.
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
        """The case, without the arm."""
        shape = f"{self.batch}x3x{self.resolution}x{self.resolution}"
        return (self.allocation, self.network, shape, self.layout, self.dtype)


def steps_table(rows: Sequence[StepRow], asked: Callable[[StepRow, StepRow], tuple[str, str]] | None = None) -> Table:
    """Make the table of all arms; ``asked`` says what was asked, from the rows of batchnorm and of torch."""
    lines = []
    made_by = dict.fromkeys(f"{table.backend(row)}, {row.how}" for row in rows if row.arm == "batchnorm")
    for case in dict.fromkeys(row.case for row in rows):
        of = {row.arm: row for row in rows if row.case == case}
        if not {*ARMS} <= of.keys():
            continue
        torch, ours = of["torch"], of["batchnorm"]
        known = not math.isnan(ours.removed)
        gone = f"{ours.removed:.0%} ({ours.removed_p20:.0%} to {ours.removed_p80:.0%})" if known else "-"
        share, memory = asked(ours, torch) if asked else ("", table.number(torch.peak_mb))
        cells = [ours.network, f"{ours.batch}x3x{ours.resolution}x{ours.resolution}", ours.layout, ours.dtype]
        cells += [ours.allocation, *(table.number(of[arm].median_s) for arm in ARMS), gone]
        lines.append([*cells, *([share] if asked else []), table.number(ours.peak_mb), memory, table.number(ours.load)])
    columns = ["network", "images", "layout", "dtype", "allocation", "torch s", "batchnorm s", "limit s", "gone"]
    columns += [*(["asked"] if asked else []), "peak MB", "torch's", "load"]
    return Table(f"One training step, {' and '.join(made_by)}", columns, lines, note="")
