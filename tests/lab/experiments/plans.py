"""Small plans for the tests of this folder."""

from __future__ import annotations

from typing import Any

from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.training import TrainConfig


def plan(**settings: Any) -> Plan:
    """Two normalizations that take turns, at two rates, with two seeds; dropout draws from the global generator."""
    base = TrainConfig(
        data="two_moons", model="mlp", hidden=(8, 8), dropout=0.2, steps=settings.pop("steps", 12), batch_size=16,
        optimizer="sgd", schedule="constant", evaluate_every=4, train_subset=0, probes=(), **settings,
    )  # fmt: skip
    axes = {"seed": vary("seed", [0, 1]), "lr": vary("lr", [0.1, 1.0]), "norm": vary("norm", ["none", "batch"])}
    return Plan("Which is quicker?", base, axes, "fewest steps", interleave=("norm",), tuned="lr")
