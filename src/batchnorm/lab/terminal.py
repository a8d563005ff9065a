"""What a run says on the terminal: a line at the start, a bar while it trains, the tables at the end."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from batchnorm.lab.summary import Summary
from batchnorm.lab.wording import Table, percent, plural, tables, verdict

PIPE_WIDTH = 132  # a pipe has no width: wide enough for every table on one line per row


class TrainingProgress(Protocol):
    """What the trainer tells at each evaluation (``batchnorm.lab.trainer.Progress``, without importing torch)."""

    @property
    def trials_done(self) -> int:
        """Trials that have ended."""

    @property
    def trials(self) -> int:
        """All trials."""

    @property
    def step(self) -> int:
        """Step of the trials that are running."""

    @property
    def steps(self) -> int:
        """Their last step."""

    @property
    def lr(self) -> float:
        """Their learning rate."""

    @property
    def seed(self) -> int:
        """Their seed."""

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Test accuracy of each of their arms."""


def console(file: TextIO | None = None) -> Console:
    """Make a console that is quiet and wide when it is not a terminal.

    Parameters
    ----------
    file : text file, optional
        None: standard output.

    Returns
    -------
    Console
    """
    file = file or sys.stdout
    return Console(file=file, width=None if file.isatty() else PIPE_WIDTH, highlight=False, emoji=False, markup=False)


@contextmanager
def training_bar(to: Console) -> Iterator[Callable[[TrainingProgress], None]]:
    """Show a bar while training: trials, steps per second, time left, accuracy. In a pipe, show nothing.

    Parameters
    ----------
    to : Console
        Where.

    Yields
    ------
    callable
        To be called with the trainer's progress at each evaluation.
    """
    if not to.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[accuracy]}"),
    )
    with Progress(*columns, console=to, transient=True) as bar:
        task = bar.add_task("starting", total=None, rate="", accuracy="")
        group: tuple[float, int] | None = None
        base = 0

        def advance(progress: TrainingProgress) -> None:
            nonlocal group, base
            if group != (progress.lr, progress.seed):
                # Trials of one rate and seed run in lockstep: what was done before them stays done.
                group, base = (progress.lr, progress.seed), progress.trials_done
            ended = progress.trials_done - base
            running = len(progress.accuracy) - ended
            speed = bar.tasks[0].speed
            step = f"step {progress.step:,}/{progress.steps:,}"
            bar.update(
                task,
                total=progress.trials * progress.steps,
                completed=progress.trials_done * progress.steps + running * progress.step,
                description=f"{progress.trials_done}/{progress.trials} trials, {step}",
                rate=f"{speed:,.0f} steps/s" if speed else "",
                accuracy=" ".join(f"{norm} {percent(value)}" for norm, value in progress.accuracy.items()),
            )

        yield advance


@contextmanager
def counting_bar(to: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar while things are done one by one. In a pipe, show nothing.

    Parameters
    ----------
    to : Console
        Where.
    total : int
        How many there are.

    Yields
    ------
    callable
        To be called with a few words when one is done.
    """
    if not to.is_terminal:
        yield lambda _: None
        return
    columns = (BarColumn(bar_width=12), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(compact=True))
    with Progress(*columns, TextColumn("{task.description}"), console=to, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda words: bar.update(task, advance=1, description=words)


def print_summary(to: Console, summary: Summary) -> None:
    """Print the tables and the answer: the numbers that the page shows.

    Parameters
    ----------
    to : Console
        Where.
    summary : Summary
        The numbers of a run.
    """
    answer = verdict(summary)
    print_answer(to, tables(summary), answer.headline, answer.limits)


def print_answer(to: Console, given: Iterable[Table], headline: str, limits: Iterable[str]) -> None:
    """Print tables, a headline and the limits of the answer.

    Parameters
    ----------
    to : Console
        Where.
    given : iterable of Table
        The tables.
    headline : str
        The answer.
    limits : iterable of str
        What limits it.
    """
    for table in given:
        to.print()
        grid = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for number, column in enumerate(table.columns):
            grid.add_column(column, justify="right" if number else "left", overflow="fold", header_style="dim")
        for row in table.rows:
            grid.add_row(*(Text(cell) for cell in row))
        to.print(grid)
        to.print(Text(table.note, style="dim"))
    to.print()
    to.print(Text(headline, style="bold"))
    for limit in limits:
        to.print(Text(f"  {limit}"))


def plan(norms: int, rates: int, seeds: int, steps: int) -> str:
    """Say what is going to be trained.

    Parameters
    ----------
    norms, rates, seeds, steps : int
        Arms, learning rates, seeds, and training steps of each trial.

    Returns
    -------
    str
    """
    parts = f"{plural(norms, 'arm')} x {plural(rates, 'learning rate')} x {plural(seeds, 'seed')}"
    return f"{plural(norms * rates * seeds, 'trial')} ({parts}), {steps:,} steps each"
