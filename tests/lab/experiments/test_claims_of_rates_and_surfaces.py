"""The claims about learning rates and loss surfaces: verdicts on planted records, barriers of known height."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchnorm.lab.experiments.claims import large_rates, optimizer_basins, registry
from batchnorm.probes.surface import Surface


def line(loss: list[float]) -> Surface:
    a = np.linspace(0, 1, len(loss))
    return Surface("linear", "batch", np.stack([1 - a, a], -1), np.array(loss))


def test_a_barrier_is_a_share_of_the_fall_from_guessing() -> None:
    # 1.0 above the chord in the middle, which is at 0.5; the higher end fell by 3 - 1.
    assert optimizer_basins.relative_barrier(line([0.0, 1.5, 1.0]), 3.0) == pytest.approx(0.5)
    assert optimizer_basins.relative_barrier(line([0.0, 0.5, 1.0]), 3.0) == 0.0
    assert optimizer_basins.relative_barrier(line([0.0, 9.0, 4.0]), 3.0) == math.inf  # an end that learned nothing


@pytest.mark.parametrize(
    ("barrier", "flat_with_bn", "expected"),
    [
        (0.8, 0.1, "holds"),
        (0.8, 0.7, "does not hold"),  # BN has more plateaus
        (0.01, 0.1, "does not hold"),  # the ends lie in one basin
    ],
)
def test_basins_need_barriers_and_plateaus_that_bn_removes(barrier, flat_with_bn, expected) -> None:
    records = [
        {"seed": seed, "model": model, "norm": norm, "statistics": statistics, "barrier": barrier + 0.001 * seed,
         "flat_plane": 0.0,
         "flat_patch": flat_with_bn + 0.001 * seed if norm == "batch" else 0.4}
        for seed in range(3) for model in ("vgg_small", "nin") for norm, statistics in optimizer_basins.ARMS
    ]  # fmt: skip
    arrays = {
        f"{kind}/{model}/{norm}/{statistics}": np.ones(3) if kind.startswith("line") else np.ones((3, 3))
        for kind in ("line 0", "line 1", "line 2", "patch", "triangle", "plane")
        for model in ("vgg_small", "nin") for norm, statistics in optimizer_basins.ARMS
    }  # fmt: skip
    claim = registry.claim("optimizer-basins")
    assert claim.find_in_records is not None
    found = claim.find_in_records(claim.budgets["small"], records, arrays)
    assert found.status == expected
    # Each surface names what BN normalized with.
    assert [one.title for one in found.surfaces if "batch statistics" in one.title or "recalibrated" in one.title][
        :2
    ] == [
        "Patch between four optimizers, vgg_small, BN, batch statistics",
        "Patch between four optimizers, vgg_small, BN, recalibrated",
    ]


@pytest.mark.parametrize(
    ("none", "batch", "expected"),
    [
        ([30, 50, 10], [30, 45, 60], "holds"),
        ([30, 50, 10], [40, 45, 60], "does not hold"),  # better at the low rate, too
        ([30, 50, 10], [30, 40, 45], "does not hold"),  # no gain
        ([30, 50, 10], [30, 60, 45], "does not hold"),  # a gain at the same rate
    ],
)
def test_the_gain_of_bn_must_come_from_larger_rates(none, batch, expected) -> None:
    rates = [0.001, 0.1, 1.0]
    records = [
        {"seed": seed, "norm": norm, "lr": lr, "loss": 1.0, "accuracy": value + 0.1 * seed * (norm == "batch")}
        for seed in range(3)
        for norm, values in zip(large_rates.NORMS, (none, batch), strict=True)
        for lr, value in zip(rates, values, strict=True)
    ]
    claim = registry.claim("large-rates")
    assert claim.find_in_records is not None
    settings = {**claim.budgets["small"], "lr": rates}
    assert claim.find_in_records(settings, records, {}).status == expected
