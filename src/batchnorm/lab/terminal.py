"""What the commands say on the terminal: a bar while they work, the tables and the answer at the end."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from batchnorm.lab.wording import Table

PIPE_WIDTH = 132  # a pipe has no width: wide enough for every table on one line per row


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


def print_table(to: Console, table: Table) -> None:
    """Print one table, after an empty line."""
    to.print()
    grid = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(table.columns):
        grid.add_column(column, justify="right" if number else "left", overflow="fold", header_style="dim")
    for row in table.rows:
        grid.add_row(*(Text(cell) for cell in row))
    to.print(grid)
    if table.note:
        to.print(Text(table.note, style="dim"))


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
        print_table(to, table)
    to.print()
    to.print(Text(headline, style="bold"))
    for limit in limits:
        to.print(Text(f"  {limit}"))
