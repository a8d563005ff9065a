"""The command ``batchnorm compare``: store the plan, run the cells that are missing, make the page."""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from batchnorm.lab.errors import LabError
from batchnorm.lab.experiments.compare import CompareCommand, plan_of
from batchnorm.lab.experiments.plan import Plan, missing, read_plan, store
from batchnorm.lab.experiments.progress import plan_progress
from batchnorm.lab.training.settings import asked_command

DONE, DIVERGED, INTERRUPTED = 0, 3, 130


def run(command: CompareCommand) -> int:
    """Run a comparison, and say on the terminal how it goes and what came out.

    Parameters
    ----------
    command : CompareCommand
        The flags.

    Returns
    -------
    int
        Exit code: 0 done, 3 a cell diverged, 130 interrupted.

    Raises
    ------
    LabError
        A setting or an input that cannot work, or not enough memory.
    """
    from batchnorm.lab.environment import environment  # torch
    from batchnorm.lab.experiments.run import Watch, check_plan, run_plan
    from batchnorm.lab.report import make_report  # matplotlib
    from batchnorm.lab.terminal import console
    from batchnorm.lab.training.machine import gathered, make_fabric

    if command.resume is not None:
        if replace(command, resume=None, workers=1) != CompareCommand():
            raise LabError("--resume goes on with the settings of the plan; leave out the others, but for --workers")
        path, plan = command.resume, read_plan(command.resume)
    else:
        plan = plan_of(command)
        path = command.out or _new_directory(plan)
    fabric = make_fabric(plan.base)
    if command.resume is None and fabric.is_global_zero:
        if not (path / "plan.json").is_file():
            check_plan(plan)
        head = {"command": asked_command("compare", command)}
        store(plan, path, head=head, environment=environment(command.threads))
    path = gathered(fabric, path)[0]  # under torchrun the others wait here until the plan is stored
    waiting = len(missing(plan, path))
    if not fabric.is_global_zero:
        return DONE if run_plan(path) else INTERRUPTED
    out = console()
    axes = " x ".join(f"{len(values)} {axis.replace('_', ' ')}" for axis, values in plan.axes.items())
    out.print(f"{len(plan.cells)} cells ({axes}), {waiting} to train, into {path}", soft_wrap=True)
    with plan_progress(out, plan, waiting) as (advance, ended):
        finished = run_plan(path, workers=command.workers, watch=Watch(advance, ended))
    report = make_report([path])
    report.show(out)
    out.print(f"\nreport: {report.page}", soft_wrap=True)
    if not finished:
        sys.stderr.write(f"batchnorm: interrupted; go on with batchnorm compare --resume {path}\n")
        return INTERRUPTED
    assert report.numbers is not None
    lost = [arm for arm in report.numbers.arms for run in arm.runs if run.status == "diverged"]
    if lost:
        names = ", ".join(dict.fromkeys(arm.name for arm in lost))
        sys.stderr.write(f"batchnorm: {len(lost)} of {len(plan.cells)} cells diverged: {names}\n")
        return DIVERGED
    return DONE


def _new_directory(plan: Plan) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    model = plan.base.model.replace(":", ".").replace("/", ".")
    return Path("runs") / f"compare-{Path(plan.base.data).stem}-{model}-{stamp}"
