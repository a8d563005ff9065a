"""What a training says while it runs: a bar on a terminal; in a pipe one line for each evaluation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


@dataclass(frozen=True)
class Progress:
    """How far a training is; told at each record and each evaluation.

    Attributes
    ----------
    step, steps : int
        Steps done, and those of the whole run.
    epoch : float
        Passes over the training data done.
    loss : float or None
        Mean training loss since the last record; None at an evaluation.
    examples_per_second : float or None
        Pace of these steps.
    accuracy : dict of str to float
        Latest accuracy on each part.
    evaluated : bool
        Whether the accuracies are new.
    """

    step: int
    steps: int
    epoch: float
    loss: float | None
    examples_per_second: float | None
    accuracy: dict[str, float]
    evaluated: bool


@contextmanager
def training_progress(to: Console) -> Iterator[Callable[[Progress], None]]:
    """Show how far a training is, its pace and the time left; in a pipe, write one line for each evaluation.

    Parameters
    ----------
    to : Console
        Where.

    Yields
    ------
    callable
        To be called with each :class:`Progress`.
    """
    loss = None

    def line(progress: Progress) -> None:
        nonlocal loss
        loss = loss if progress.loss is None else progress.loss
        if progress.evaluated:
            to.print(_line(progress, loss), soft_wrap=True)

    if not to.is_terminal:
        yield line
        return
    columns = (
        TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[loss]}"),
    )
    with Bar(*columns, console=to, transient=True) as bar:
        task = None

        def advance(progress: Progress) -> None:
            nonlocal task
            if task is None:
                # The pace begins here: what a resumed run did before is not of this process.
                task = bar.add_task("", total=progress.steps, completed=progress.step, rate="", loss="")
            line(progress)
            bar.update(task, completed=progress.step)
            if progress.loss is not None and progress.examples_per_second is not None:
                rate = f"{progress.examples_per_second:,.0f} examples/s"
                bar.update(task, rate=rate, loss=f"loss {progress.loss:.4f}")

        yield advance


def _line(progress: Progress, loss: float | None) -> str:
    parts = [f"step {progress.step:,}/{progress.steps:,}", f"epoch {progress.epoch:.2f}"]
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    names = {"train_evaluation": "train (eval mode)"}
    parts += [f"{names.get(kind, kind)} {100 * value:.2f}%" for kind, value in progress.accuracy.items()]
    return "  ".join(parts)
