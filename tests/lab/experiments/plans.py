"""Small plans for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from batchnorm.lab.experiments.claims import registry
from batchnorm.lab.experiments.claims.form import Findings
from batchnorm.lab.experiments.numbers import summarize
from batchnorm.lab.experiments.plan import Plan, store, vary
from batchnorm.lab.experiments.study import read_plan_study
from batchnorm.lab.recording import Recorder
from batchnorm.lab.training import TrainConfig
from lab.synthetic_train import ENVIRONMENT, config


def plan(**settings: Any) -> Plan:
    """Two normalizations that take turns, at two rates, with two seeds; dropout draws from the global generator."""
    base = TrainConfig(
        data="two_moons", model="mlp", hidden=(8, 8), dropout=0.2, steps=settings.pop("steps", 12), batch_size=16,
        optimizer="sgd", schedule="constant", evaluate_every=4, train_subset=0, probes=(), **settings,
    )  # fmt: skip
    axes = {"seed": vary("seed", [0, 1]), "lr": vary("lr", [0.1, 1.0]), "norm": vary("norm", ["none", "batch"])}
    return Plan("Which is quicker?", base, axes, "fewest steps", interleave=("norm",), tuned="lr")


@dataclass
class Planted:
    """What a cell is made to have recorded, at steps 1, 2, ... times ``every``."""

    accuracy: Sequence[float] = (0.5,)
    status: str = "finished"
    every: int = 100
    #: By probe, one (scalars, layers) for each step.
    probes: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = field(default_factory=dict)


def findings(name: str, path: Path, plant: Callable[[TrainConfig], Planted], **settings: Any) -> Findings:
    """Judge a claim whose plan has cells that record what is planted, without a training."""
    claim = registry.claim(name)
    assert claim.plan is not None
    assert claim.find_in_study is not None
    settings = {**claim.budgets["small"], **settings}
    made = claim.plan(settings)
    store(made, path, head={"command": f"batchnorm claims run {name}"}, environment=ENVIRONMENT)
    for cell in made.cells:
        planted = plant(cell.config)
        recorder = Recorder.create(
            cell.directory(path), environment=ENVIRONMENT, config={**config(), "config": asdict(cell.config)}
        )
        for k, accuracy in enumerate(planted.accuracy, start=1):
            at = {"step": k * planted.every, "epoch": k}
            recorder.metrics("train", **at, seconds=k, loss=1 - accuracy, lr=0.1)
            recorder.metrics("test", **at, seconds=k, loss=1 - accuracy, accuracy=accuracy, statistics="running")
        for probe, readings in planted.probes.items():
            for k, (scalars, layers) in enumerate(readings, start=1):
                recorder.probe(probe, step=k * planted.every, epoch=k, scalars=scalars, layers=layers)
        recorder.end(status=planted.status, step=planted.every * len(planted.accuracy), reason="planted")
    study = read_plan_study(path)
    return claim.find_in_study(settings, study, summarize(study))


def verdicts(found: Findings) -> list[str]:
    """Return the verdict of each check."""
    return [check.status for check in found.checks]
