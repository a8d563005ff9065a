"""What a comparison says on the terminal: a line at the start, a bar while it trains, the tables at the end."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from batchnorm.lab.compare.summary import Summary
from batchnorm.lab.compare.wording import tables, verdict
from batchnorm.lab.terminal import print_answer
from batchnorm.lab.wording import percent, plural


class TrainingProgress(Protocol):
    """What the trainer tells at each evaluation: its ``Progress``, without importing torch."""

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
