"""What the benchmarks beside ``batchnorm bench`` share: parse, measure in a worker, print, and say how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from batchnorm.lab.bench import table
from batchnorm.lab.bench.config import Sampling
from batchnorm.lab.bench.rows import Row
from batchnorm.lab.bench.run import RedGate, Suite, bench
from batchnorm.lab.errors import LabError
from batchnorm.lab.terminal import console, print_table
from batchnorm.lab.wording import Table

PIPE_WIDTH = 240  # the tables are wide, and a pipe is for a file or another program

RowT = TypeVar("RowT", bound=Row)


def run(
    file: str,
    config_of: type[Any],
    row: type[RowT],
    cases: Callable[[Any], Sequence[object]],
    table_of: Callable[[Sequence[RowT]], Table],
    arguments: Sequence[str],
) -> int:
    """Measure the suite of ``file``, print its table and return the exit code as of batchnorm bench.

    Parameters
    ----------
    file : str
        The program; with ``--worker`` it measures.
    config_of : type
        A `Sampling` with a method ``resolved``.
    row : type
        What a measured arm is.
    cases : callable
        The cases of a configuration.
    table_of : callable
        The table of the rows.
    arguments : sequence of str
        Of the command line.

    Returns
    -------
    int
        0; 1 where an arm gives wrong answers; 2 for bad input; 130 when interrupted.
    """
    name, out = Path(file).name, console()
    if not out.is_terminal:
        out.width = PIPE_WIDTH
    try:
        config: Sampling = tyro.cli(config_of, args=arguments, config=(tyro.conf.OmitArgPrefixes,)).resolved()
        suite = Suite(Path(file).stem, row, (sys.executable, file, "--worker"), len(cases(config)))
        done = bench(config, suite, out)
    except LabError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        return 2
    except RedGate as red:
        sys.stderr.write(f"{name}: a wrong answer, so no numbers: {red}\n")
        return 1
    if done.rows:
        print_table(out, table_of(done.rows))
        for line in table.machines(done.rows):
            out.print(line)
    print(f"\nresults: {done.path}")
    return 130 if done.interrupted else 0
