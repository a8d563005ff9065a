"""What a plan says while it runs: a bar on a terminal; in a pipe one line for each cell that has ended."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from batchnorm.lab.experiments.plan import Cell, Plan
from batchnorm.lab.training.progress import Progress as Position
from batchnorm.lab.wording import percent


class Ending(Protocol):
    """How a cell ended: an ``Outcome``, without importing torch."""

    @property
    def status(self) -> str:
        """How it ended."""

    @property
    def reason(self) -> str:
        """Why."""


@contextmanager
def plan_progress(
    to: Console, plan: Plan, missing: int
) -> Iterator[tuple[Callable[[Cell, Position], None], Callable[[Cell, Ending], None]]]:
    """Show how far a plan is.

    Parameters
    ----------
    to : Console
        Where.
    plan : Plan
        The plan.
    missing : int
        Cells that are to be trained.

    Yields
    ------
    tuple of callable
        To be called with a cell and its progress, and with a cell and its outcome.
    """
    shares: dict[str, float] = {}
    latest: dict[str, str] = {}
    done = len(plan.cells) - missing
    ended = done

    def line(cell: Cell, ending: Ending) -> None:
        nonlocal ended
        ended += 1
        shares[cell.name] = 1.0
        accuracy = f", {latest[cell.name]}" if cell.name in latest else ""
        why = f": {ending.reason}" if ending.reason else ""
        to.print(f"{ended}/{len(plan.cells)}  {cell.name}  {ending.status}{accuracy}{why}", soft_wrap=True)

    if not to.is_terminal:

        def quiet(cell: Cell, position: Position) -> None:
            latest[cell.name] = _accuracy(position)

        yield quiet, line
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TimeRemainingColumn(compact=True))
    with Progress(*columns, TextColumn("{task.fields[accuracy]}"), console=to, transient=True) as bar:
        task = bar.add_task("starting", total=len(plan.cells), completed=done, accuracy="")

        def advance(cell: Cell, position: Position) -> None:
            shares[cell.name] = position.step / position.steps
            if position.evaluated:
                latest[cell.name] = _accuracy(position)
            bar.update(
                task,
                completed=done + sum(shares.values()),
                description=f"{ended}/{len(plan.cells)} cells, step {position.step:,}/{position.steps:,}",
                accuracy=" ".join(latest.get(name, "") for name, share in shares.items() if share < 1),
            )

        yield advance, line


def _accuracy(position: Position) -> str:
    return " ".join(percent(value) for kind, value in position.accuracy.items() if kind != "train_evaluation")
