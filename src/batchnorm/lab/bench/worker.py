"""The process that measures: reads its task from standard input, writes one line of JSON per event.

It is a process of its own because a mode of allocation can only be chosen when a process starts.

Events: ``{"event": "rows", "case": "...", "rows": [...]}`` for each case, ``{"event": "red", "why": "..."}`` and, at
the end, ``{"event": "done"}``.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from batchnorm.lab.bench import arms, gate, measure
from batchnorm.lab.bench.config import BenchConfig, Case, Sampling, cases
from batchnorm.lab.bench.machine import machine
from batchnorm.lab.bench.measure import Samples, Spread
from batchnorm.lab.bench.rows import Machine, OperationRow, Row

ConfigT = TypeVar("ConfigT", bound=Sampling)
CaseT = TypeVar("CaseT")


def serve(
    kind: type[ConfigT],
    cases: Callable[[ConfigT], Sequence[CaseT]],
    check: Callable[[ConfigT, Sequence[CaseT]], object],
    measure: Callable[[ConfigT, CaseT, Machine], Sequence[Row]],
) -> int:
    """Do the task on standard input.

    Parameters
    ----------
    kind : type
        Of the settings in the task.
    cases : callable
        From the settings to all cases.
    check : callable
        Called with settings and cases before anything is timed; raises `gate.GateError` for a wrong answer.
    measure : callable
        From settings, a case and the machine to its rows.

    Returns
    -------
    int
        Exit code: 0 done; 1 the gate is red; 130 interrupted.
    """
    try:
        task = json.load(sys.stdin)
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in task["config"].items()}
        config = kind(**given)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        todo = cases(config)
        check(config, todo)
        for case in todo:
            made = measure(config, case, machine(task["date"], task["allocation"]))
            _write({"event": "rows", "case": str(case), "rows": [_without_nan(asdict(row)) for row in made]})
    except gate.GateError as error:
        _write({"event": "red", "why": str(error)})
        return 1
    except KeyboardInterrupt:
        return 130
    _write({"event": "done"})
    return 0


def measure_operation(config: BenchConfig, case: Case, here: Machine) -> list[Row]:
    """Time all arms of a case; raise `gate.GateError` where they disagree at its size."""
    assert config.pairs is not None
    inputs = arms.draw(case)
    compared = arms.contenders(case, compiled=config.compile)
    gate.agree(case, compared, inputs)
    samples = measure.interleave(arms.timed(case, compared, inputs), config.pairs)
    if config.compile:
        torch.compiler.reset()
    return _rows(here, case, samples, arms.explanation(inputs.x))


def _rows(here: Machine, case: Case, samples: Mapping[str, Samples], ran: tuple[str, str]) -> list[Row]:
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


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}


def _write(event: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(event, allow_nan=False) + "\n")
    sys.stdout.flush()


def _check(config: BenchConfig, todo: Sequence[Case]) -> None:
    gate.check(todo, compiled=config.compile)


if __name__ == "__main__":
    sys.exit(serve(BenchConfig, cases, _check, measure_operation))
