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
        return np.stack([middle - 1, middle, middle + 1])

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
