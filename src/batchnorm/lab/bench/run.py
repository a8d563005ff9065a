"""Start the processes that measure, keep their rows, show where they are."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from batchnorm.lab.bench import rows
from batchnorm.lab.bench.cases import cases
from batchnorm.lab.bench.config import Allocation, BenchConfig
from batchnorm.lab.bench.machine import process_environment
from batchnorm.lab.bench.rows import OperationRow, Row, StepRow
from batchnorm.lab.errors import LabError

WORKER = (sys.executable, "-m", "batchnorm.lab.bench.worker")


class RedGate(Exception):  # noqa: N818  # a red gate is what it is
    """An arm computes something wrong: there are no numbers."""


@dataclass
class Run:
    """What was measured.

    Attributes
    ----------
    path : Path
        The CSV file that the rows were appended to.
    rows : list of Row
        All arms.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    path: Path
    rows: list[Row]
    interrupted: bool = False


def bench(config: BenchConfig, out: Console) -> Run:
    """Measure what ``config`` asks for, one process per mode of allocation.

    Parameters
    ----------
    config : BenchConfig
        What to measure, and where to write.
    out : Console
        For the line at the start, and the progress when it is a terminal.

    Returns
    -------
    Run

    Raises
    ------
    LabError
        Something asked for cannot be measured here, or the file cannot be written.
    RedGate
        Some answer is wrong. The rows of this run are taken out of the file again.
    """
    config = config.resolved()
    if not config.resnet:
        cases(config)  # complains before a process is started
    environments = {mode: process_environment(mode, os.environ) for mode in config.allocations}
    now = datetime.now(UTC)
    date = now.isoformat(timespec="seconds")
    what = "steps" if config.resnet else "operations"
    run = Run(config.out or Path("runs") / f"bench-{what}-{now:%Y%m%dT%H%M%SZ}.csv", [])
    rows.open_results(run.path, StepRow if config.resnet else OperationRow)
    out.print(f"measuring into {run.path}", soft_wrap=True)
    try:
        with _progress(out) as show:
            for allocation, environment in environments.items():
                for row in _measure(config, date, allocation, environment, show):
                    rows.append(run.path, [row])
                    run.rows.append(row)
    except KeyboardInterrupt:
        run.interrupted = True
    except RedGate:
        rows.discard(run.path, date)
        raise
    return run


def _measure(
    config: BenchConfig,
    date: str,
    allocation: Allocation,
    environment: Mapping[str, str],
    show: Callable[[Allocation, int, int, str], None],
) -> Iterator[Row]:
    """Run one process and yield its rows as they come."""
    settings = {name: value for name, value in asdict(config).items() if name != "out"}
    task = {"task": "measure", "config": settings, "date": date, "allocation": allocation, "threads": config.threads}
    show(allocation, 0, 0, "checking answers")
    done = False
    with subprocess.Popen(  # noqa: S603  # this Python, this package
        WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(task))
            worker.stdin.close()
            for line in worker.stdout:
                event = _event(line)
                if event["event"] == "progress":
                    show(allocation, event["done"], event["of"], event["what"])
                elif event["event"] == "row":
                    yield _row(event)
                elif event["event"] == "red":
                    raise RedGate(event["why"])
                elif event["event"] == "done":
                    done = True
        except BaseException:
            worker.terminate()
            worker.wait()  # Popen itself does not wait for long after a KeyboardInterrupt
            raise
    if not done:
        raise LabError(
            f"the process that measures must come to its end; it ended with {worker.returncode}, and what it wrote "
            f"stands above{' (killed: too little memory? try smaller --shapes)' if worker.returncode == -9 else ''}"
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


def _row(event: Mapping[str, Any]) -> Row:
    kind = {"OperationRow": OperationRow, "StepRow": StepRow}[event["kind"]]
    row: Row = kind(**{name: math.nan if value is None else value for name, value in event["values"].items()})
    return row


@contextmanager
def _progress(out: Console) -> Iterator[Callable[[Allocation, int, int, str], None]]:
    """Show a bar on a terminal, and nothing in a pipe."""
    if not out.is_terminal:
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(allocation: Allocation, done: int, of: int, what: str) -> None:
            count = f" {done + 1}/{of}" if of else ""
            bar.update(task, total=of or None, completed=done, description=f"{allocation}{count}: {what}")

        yield show
