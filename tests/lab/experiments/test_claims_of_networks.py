"""Claims that train the lab's networks: verdicts on planted runs, and measurements with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchnorm.lab.experiments.claims import mnist_figure
from batchnorm.lab.experiments.series import Seen
from lab.experiments.planted import judged


def _statuses(found) -> list[str]:
    return [check.status for check in found.findings.checks]


@pytest.mark.parametrize(
    ("batch", "wander", "expected"),
    [
        ([0.5, 0.93, 0.95, 0.97] * 10, 0.1, ["holds"] * 3),
        ([0.2, 0.3, 0.4, 0.5] * 10, 0.1, ["does not hold", "does not hold", "holds"]),  # BN ends lower, never there
        ([0.5, 0.93, 0.95, 0.97] * 10, 4.0, ["holds", "holds", "does not hold"]),  # its inputs wander more
    ],
)
def test_the_figure_of_mnist_is_judged_by_end_steps_and_drift(tmp_path, batch, wander, expected) -> None:
    def accuracies(cell):
        none = np.repeat([0.3, 0.6, 0.8, 0.9], 10)
        return (none if cell.labels["norm"] == "none" else np.array(batch)) + 0.001 * int(cell.labels["seed"])

    def units(cell, evaluation):
        size = wander if cell.labels["norm"] == "batch" else 1.0
        middle = size * (evaluation % 2) * np.array([1.0, 2.0, 3.0 + int(cell.labels["seed"])])
        return [{"saturated": 0.1, "p15": list(middle - 1), "p50": list(middle), "p85": list(middle + 1)}]

    found = judged(tmp_path / "run", "mnist-figure", accuracies, units=units, changes=("data=digits",))
    assert _statuses(found) == expected
    assert [picture.name for picture in found.findings.pictures] == ["figure-1", "all-units"]


def test_without_a_network_that_learned_the_steps_of_the_figure_say_nothing(tmp_path) -> None:
    found = judged(tmp_path / "run", "mnist-figure", lambda _: [0.1] * 4, changes=("data=digits",))
    assert _statuses(found)[1:] == ["inconclusive", "inconclusive"]  # no target; and no unit was recorded
    assert not found.findings.pictures


def test_a_ratio_of_drifts_is_that_of_the_middle_unit() -> None:
    def walk(sizes):
        up = np.array(sizes)[None] * np.array([0.0, 1.0, 0.0])[:, None]
        return Seen(np.arange(3.0), np.stack([up - 1, up, up + 1], axis=1))

    assert mnist_figure.drift_ratio(walk([1, 2, 3]), walk([2, 4, 8]), np.median) == 0.5
    assert math.isnan(mnist_figure.drift_ratio(None, walk([1]), np.median))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-4, 4, ["holds", "holds"]),  # powers of ten within which BN trains; without it from -1 to 0
        (-1, 0, ["does not hold", "does not hold"]),
    ],
)
def test_rates_and_scales_that_work_are_counted(tmp_path, low, high, expected) -> None:
    def accuracies(cell):
        config = cell.config
        value = config.lr if config.weight_std is None else config.weight_std
        first, last = (low, high) if config.norm == "batch" else (-1, 0)
        works = 10.0**first <= value * (1.1 if cell.labels["seed"] == "0" else 1.0) <= 1.2 * 10.0**last
        return [0.9 if works else 0.8]

    found = judged(tmp_path / "run", "rates-and-scales", accuracies)
    assert _statuses(found) == expected
    assert ("Of 9 learning rates 9 ± 0 work with BN and 3 ± 0 without" in found.findings.headline) == (low == -4)


@pytest.mark.parametrize(
    ("saturated", "gain", "expected"),
    [(0.1, 0.2, ["holds"] * 3), (0.9, 0.2, ["does not hold", "holds", "holds"]),
     (0.1, -0.2, ["holds", "does not hold", "does not hold"])],
)  # fmt: skip
def test_saturation_is_that_of_the_deepest_network_from_large_weights(tmp_path, saturated, gain, expected) -> None:
    def units(cell, _evaluation):
        shallow = len(cell.config.hidden) < 8 or cell.config.weight_std < 1  # whatever these do, it decides nothing
        share = 0.0 if shallow else saturated if cell.config.norm == "batch" else 0.5
        none = {"p15": [0.0], "p50": [0.0], "p85": [0.0]}
        return [{"saturated": share, **none} for _ in cell.config.hidden]

    def accuracies(cell):
        return [0.5 + gain * (cell.config.norm == "batch") + 0.001 * cell.config.seed]

    found = judged(tmp_path / "run", "sigmoid-saturation", accuracies, units=units)
    assert _statuses(found) == expected


@pytest.mark.parametrize(
    ("worth", "expected"),
    [
        ({"none": 0.04, "batch": 0.01}, ["holds"] * 4),
        ({"none": 0.01, "batch": 0.04}, ["holds", "holds", "does not hold", "does not hold"]),
    ],
)
def test_dropout_must_gain_less_with_bn(tmp_path, worth, expected) -> None:
    def accuracies(cell):
        config = cell.config
        right = 0.8 + 0.05 * (config.norm == "batch") + 0.001 * config.seed
        return [right + worth[config.norm] * ((config.dropout > 0) + (config.l2 > 0))]

    found = judged(tmp_path / "run", "bn-and-dropout", accuracies, train=lambda _: 0.99)
    assert _statuses(found) == expected
