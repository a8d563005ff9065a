"""Start the processes that measure, keep their rows, show progress."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic

from rich.console import Console

from batchnorm.lab.bench import rows
from batchnorm.lab.bench.config import Allocation, BenchConfig, Sampling, cases
from batchnorm.lab.bench.machine import process_environment
from batchnorm.lab.bench.rows import OperationRow, RowT
from batchnorm.lab.errors import LabError
from batchnorm.lab.terminal import counting_bar


class RedGate(Exception):  # noqa: N818  # a red gate is what it is
    """An arm computes something wrong: there are no numbers."""


@dataclass(frozen=True)
class Suite(Generic[RowT]):
    """One kind of benchmark.

    Attributes
    ----------
    name : str
        Of the file that is made where none is named.
    row : type
        Of its rows.
    worker : tuple of str
        Command of the process that measures; it calls `worker.serve`.
    total : int
        Cases of one mode of allocation.
    """

    name: str
    row: type[RowT]
    worker: tuple[str, ...]
    total: int


@dataclass
class Run(Generic[RowT]):
    """The CSV file that rows were appended to, the rows of all arms, and whether Ctrl-C ended it early."""

    path: Path
    rows: list[RowT]
    interrupted: bool = False


def operations(config: BenchConfig) -> Suite[OperationRow]:
    """Return the suite of single operations; raise LabError where a resolved ``config`` has no case."""
    return Suite("operations", OperationRow, (sys.executable, "-m", "batchnorm.lab.bench.worker"), len(cases(config)))


def bench(config: Sampling, suite: Suite[RowT], out: Console) -> Run[RowT]:
    """Measure a suite, one process per mode of allocation.

    Parameters
    ----------
    config : Sampling
        What to measure, and where to write. Resolved.
    suite : Suite
        How.
    out : Console
        For the line at the start, and the progress when it is a terminal.

    Returns
    -------
    Run

    Raises
    ------
    LabError
        A setting cannot be measured here, or the file cannot be written.
    RedGate
        An answer is wrong. The rows of this run are removed from the file.
    """
    environments = {mode: process_environment(mode, os.environ) for mode in config.allocations}
    now = datetime.now(UTC)
    date = now.isoformat(timespec="seconds")
    run: Run[RowT] = Run(config.out or Path("runs") / f"bench-{suite.name}-{now:%Y%m%dT%H%M%SZ}.csv", [])
    rows.open_results(run.path, suite.row)
    out.print(f"measuring into {run.path}", soft_wrap=True)
    try:
        with counting_bar(out, suite.total * len(environments)) as advance:
            for allocation, environment in environments.items():
                for case, measured in _measure(config, suite, date, allocation, environment):
                    rows.append(run.path, measured)
                    run.rows += measured
                    advance(f"{allocation}: {case}")
    except KeyboardInterrupt:
        run.interrupted = True
    except RedGate:
        rows.discard(run.path, suite.row, date)
        raise
    return run


def _measure(
    config: Sampling, suite: Suite[RowT], date: str, allocation: Allocation, environment: Mapping[str, str]
) -> Iterator[tuple[str, list[RowT]]]:
    """Run one process and yield the rows of each case as they come."""
    settings = {name: value for name, value in asdict(config).items() if name != "out"}
    done = False
    with subprocess.Popen(  # noqa: S603  # this Python, this package
        suite.worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps({"config": settings, "date": date, "allocation": allocation}))
            worker.stdin.close()
            for line in worker.stdout:
                event = _event(line)
                if event["event"] == "rows":
                    yield event["case"], [_row(suite.row, values) for values in event["rows"]]
                elif event["event"] == "red":
                    raise RedGate(event["why"])
                elif event["event"] == "done":
                    done = True
        except BaseException:
            worker.terminate()
            worker.wait()  # Popen itself does not wait for long after a KeyboardInterrupt
            raise
    if not done:
        killed = " (killed: too little memory? try smaller --shapes)" if worker.returncode == -9 else ""
        raise LabError(
            f"the process that measures failed with exit code {worker.returncode}{killed}; its output is above"
        )


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict) and "event" in event:
        return event
    sys.stderr.write(line)  # something that a library said
    return {"event": "said"}


def _row(kind: Callable[..., RowT], values: Mapping[str, Any]) -> RowT:
    return kind(**{name: math.nan if value is None else value for name, value in values.items()})
