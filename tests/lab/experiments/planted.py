"""The directory of a claim whose cells a test writes down instead of training them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchnorm.lab.experiments.claims.run import Judged, begin, judge
from batchnorm.lab.experiments.plan import Cell, read_plan
from batchnorm.lab.recording import Recorder
from lab.synthetic_train import ENVIRONMENT, config


def judged(
    path: Path,
    name: str,
    accuracies: Callable[[Cell], Any],
    *,
    units: Callable[[Cell, int], list[dict[str, Any]]] | None = None,
    train: Callable[[Cell], float] | None = None,
    changes: tuple[str, ...] = (),
    every: int = 10,
) -> Judged:
    """Judge a claim by what each cell recorded at its evaluations: accuracies, and of each the layers of units."""
    begin(name, path, budget="small", changes=changes, environment=ENVIRONMENT)
    for cell in read_plan(path).cells:
        settings = {key: value for key, value in asdict(cell.config).items() if key not in {"out", "data_dir"}}
        recorder = Recorder.create(cell.directory(path), config=config(**settings), environment=ENVIRONMENT)
        for number, value in enumerate(accuracies(cell), 1):
            at = {"step": number * every, "epoch": 1.0}
            recorder.metrics("train", **at, seconds=1.0, loss=1.0, lr=0.1, step_seconds=0.1, examples_per_second=1.0)
            for kind, right in (("test", value), ("train_evaluation", train(cell) if train else value)):
                recorder.metrics(kind, **at, seconds=1.0, loss=1.0, accuracy=right, statistics="running")
            if units is not None:
                layers = {f"layers.{k}": layer for k, layer in enumerate(units(cell, number))}
                recorder.probe("units", **at, scalars={}, layers=layers)
        recorder.end(status="finished", step=1, reason="")
    return judge(path)
