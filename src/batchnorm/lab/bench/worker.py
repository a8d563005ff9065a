"""The process that measures: reads its task from standard input, writes one line of JSON per event.

It is a process of its own because a mode of allocation can only be chosen when a process starts.

Events: ``{"event": "progress", "done": 3, "of": 8, "what": "..."}``, ``{"event": "row", "kind": "OperationRow", ...}``,
``{"event": "red", "why": "..."}`` and, at the end of one that was not cut short, ``{"event": "done"}``.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from batchnorm.lab.bench import arms, gate, measure, steps
from batchnorm.lab.bench.cases import Case, StepCase, cases, step_cases
from batchnorm.lab.bench.config import Allocation, BenchConfig
from batchnorm.lab.bench.machine import machine, peak_memory
from batchnorm.lab.bench.measure import Samples, Spread
from batchnorm.lab.bench.rows import Machine, OperationRow, Row, StepRow


def measure_operations(config: BenchConfig, date: str, allocation: Allocation) -> Iterator[Case | list[Row]]:
    """Measure single operations, behind the gate.

    Parameters
    ----------
    config : BenchConfig
        Resolved.
    date : str
        Start of the run.
    allocation : {'default', 'tuned'}
        The mode that this process was started in.

    Yields
    ------
    Case or list of Row
        Each case before it is measured, then its rows.

    Raises
    ------
    GateError
        Some arm computes something wrong.
    """
    todo = cases(config)
    gate.check(todo, compiled=config.compile)
    assert config.pairs is not None
    for case in todo:
        yield case
        here = machine(date, allocation)
        inputs = arms.draw(case)
        compared = arms.contenders(case, compiled=config.compile)
        gate.agree(case, compared, inputs)
        samples = measure.interleave(arms.timed(case, compared, inputs), config.pairs)
        yield _operation_rows(here, case, samples, arms.explanation(inputs.x))
        if config.compile:
            torch.compiler.reset()


def measure_steps(config: BenchConfig, date: str, allocation: Allocation) -> Iterator[StepCase | list[Row]]:
    """Measure training steps, behind the gate.

    Parameters
    ----------
    config : BenchConfig
        Resolved.
    date : str
        Start of the run.
    allocation : {'default', 'tuned'}
        The mode that this process was started in.

    Yields
    ------
    StepCase or list of Row
        Each case before it is measured, then its rows.

    Raises
    ------
    GateError
        This package's network computes something else than torch's.
    """
    todo = step_cases(config)
    assert config.pairs is not None
    for case in todo:
        steps.check(case)
    for case in todo:
        yield case
        here = machine(date, allocation)
        peaks = {arm: steps.peak_memory(case, arm, here.threads) for arm in steps.ARMS}
        compared, how = steps.arms(case)
        samples = measure.interleave(compared, config.pairs)
        layer_input = torch.empty(2, 64, 4, 4, dtype=getattr(torch, case.dtype))
        yield _step_rows(here, case, samples, peaks, how, arms.explanation(layer_input))


def main() -> int:
    """Do the task on standard input.

    Returns
    -------
    int
        0 done; 1 the gate is red.
    """
    task = json.load(sys.stdin)
    if task["threads"] is not None:
        torch.set_num_threads(task["threads"])
    if task["task"] == "memory":
        steps.run_for_peak(StepCase(**task["case"]), task["arm"])
        _write({"peak_mb": peak_memory()})
        return 0
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in task["config"].items()}
    config = BenchConfig(**settings)
    of = len(step_cases(config) if config.resnet else cases(config))
    run = measure_steps if config.resnet else measure_operations
    done = 0
    try:
        for event in run(config, task["date"], task["allocation"]):
            if isinstance(event, list):
                done += 1
                for row in event:
                    _write({"event": "row", "kind": type(row).__name__, "values": _without_nan(asdict(row))})
            else:
                _write({"event": "progress", "done": done, "of": of, "what": str(event)})
    except gate.GateError as error:
        _write({"event": "red", "why": str(error)})
        return 1
    _write({"event": "done"})
    return 0


def _operation_rows(here: Machine, case: Case, samples: Mapping[str, Samples], ran: tuple[str, str]) -> list[Row]:
    medians = {name: Spread.of(arm.seconds).median for name, arm in samples.items()}
    # The quicker of the two ways to write it: nobody should win against a slow opponent.
    opponent = min((name for name in ("torch", "torch_inplace") if name in samples), key=lambda name: medians[name])
    rows: list[Row] = []
    for name, arm in samples.items():
        time, ratio = Spread.of(arm.seconds), measure.ratios(samples[opponent], arm)
        backend, target = ran if name == "batchnorm" else ("", "")
        rows.append(
            OperationRow(
                **asdict(here),
                op=case.op,
                shape=case.shape_name,
                layout=case.layout,
                dtype=case.dtype,
                bytes=case.bytes,
                arm=name,
                backend=backend,
                target=target,
                pairs=len(arm.seconds),
                repeats=arm.repeats,
                p20_ms=1e3 * time.p20,
                median_ms=1e3 * time.median,
                p80_ms=1e3 * time.p80,
                opponent=opponent,
                ratio_p20=ratio.p20,
                ratio=ratio.median,
                ratio_p80=ratio.p80,
                floor_ratio=measure.ratios(arm, samples["copy"]).median,
                faults=arm.faults,
            )
        )
    return rows


def _step_rows(
    here: Machine,
    case: StepCase,
    samples: Mapping[str, Samples],
    peaks: Mapping[str, float],
    how: str,
    ran: tuple[str, str],
) -> list[Row]:
    rows: list[Row] = []
    for name, arm in samples.items():
        time, share = Spread.of(arm.seconds), measure.removed(samples["torch"], arm, samples["limit"])
        ours = name == "batchnorm"
        backend, target = ran if ours else ("", "")
        rows.append(
            StepRow(
                **asdict(here),
                **asdict(case),
                arm=name,
                how=how if ours else "",
                backend=backend,
                target=target,
                pairs=len(arm.seconds),
                p20_s=time.p20,
                median_s=time.median,
                p80_s=time.p80,
                removed_p20=share.p20,
                removed=share.median,
                removed_p80=share.p80,
                peak_mb=peaks[name],
            )
        )
    return rows


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}


def _write(event: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(event, allow_nan=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
