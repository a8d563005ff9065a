"""Small trainings for the tests of this folder, and what two of them must share to be the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from batchnorm.lab.data import Dataset, InMemory
from batchnorm.lab.recording import read_train_run
from batchnorm.lab.training import TrainConfig

#: Everything that draws random numbers or remembers something is in it, and cadences that do not divide each other.
CONFIG = TrainConfig(
    model="mlp",
    hidden=(16, 16),
    dropout=0.2,
    mixup=0.3,
    optimizer="adam",
    batch_size=16,
    steps=24,
    log_every=4,
    evaluate_every=6,
    checkpoint_every=5,
    probe_every=7,
    warmup_steps=3,
    train_subset=20,
)
#: Times differ between runs that are the same in everything else.
TIMES = {"seconds", "step_seconds", "examples_per_second"}


def points(train: int = 60, test: int = 30, classes: int = 3) -> Dataset:
    """Make clouds in 6 dimensions that a small network separates, the same at every call."""
    generator = torch.Generator().manual_seed(7)

    def part(count: int) -> InMemory:
        y = torch.arange(count) % classes
        x = torch.randn(count, 6, generator=generator)
        x[torch.arange(count), y] += 3
        return InMemory(x, y)

    return Dataset("points", part(train), None, part(test), classes, (6,), "none")


def config(out: Path, **settings: Any) -> TrainConfig:
    """Give CONFIG with other settings."""
    return replace(CONFIG, out=out, **settings)


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out how long things took."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def assert_same_run(one: Path, other: Path) -> None:
    """Compare weights and buffers bit for bit, and all records but their times."""
    weights, others = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    assert weights.keys() == others.keys()
    different = [name for name in weights if not torch.equal(weights[name], others[name])]
    assert not different
    run, second = read_train_run(one), read_train_run(other)
    assert without_times(run.metrics) == without_times(second.metrics)
    assert run.probes == second.probes
    assert (run.status, run.step) == (second.status, second.step)


def plain(out: Path, norm: str, **settings: Any) -> TrainConfig:
    """Give a config without anything random but the order of the data."""
    return TrainConfig(
        model="mine",
        norm=norm,
        optimizer="momentum",
        lr=0.05,
        schedule="constant",
        l2=0.0,
        out=out,
        **{
            "steps": 9,
            "batch_size": 12,
            "log_every": 1,
            "evaluate_every": 4,
            "probes": (),
            "train_subset": 20,
            **settings,
        },
    )
