"""The claim about convexity and descent: numbers with closed forms, and planted opposite outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from batchnorm.lab.experiments.claims import convexity_and_descent as convexity
from batchnorm.lab.experiments.claims import registry
from batchnorm.reference import descent

CLAIM = registry.claim("convexity-and-descent")
SETTINGS = {**CLAIM.budgets["small"], "seeds": 3, "steps": 60}


def test_a_gap_is_zero_on_a_bowl_and_the_height_of_a_hill() -> None:
    draw = np.random.default_rng(0)
    assert convexity.gap(convexity.BOWL, draw, 10) <= 1e-12
    assert convexity.gap(descent.SADDLE, draw, 20) > 1e-3


def test_the_excess_of_descent_with_all_samples_shrinks_by_the_curvatures() -> None:
    values = convexity.excess({**SETTINGS, "steps": 200}, 0, batch=SETTINGS["samples"], schedule="constant")
    assert len(values) == 201
    assert (np.diff(values[:100]) < 0).all()
    # Along the flattest direction, curvature about 1/4, each step keeps (1 - lr / 4)^2 of the excess.
    assert values[100] / values[90] == pytest.approx((1 - SETTINGS["lr"] / 4) ** 20, rel=0.5)


def test_descents_end_where_they_must() -> None:
    (end,) = convexity.ends_of(descent.WAVES, np.array([[2.1]]), lr=0.05, steps=300)
    assert abs(descent.WAVES.gradient(end)[0]) < 1e-6
    assert end[0] > 1.5


@pytest.mark.parametrize(
    ("key", "value", "failed"),
    [
        ("gap of bowl", 0.1, "a quadratic bowl is convex"),
        ("gap of saddle", 0.0, "saddle is not"),
        ("left, above 2 / L", -1.0, "step size above 2 / L: diverges"),
        ("not global, waves", 0.0, "on waves some starts end in local minima"),
        ("excess, cosine/10", 5.0, "schedule cosine: lower than a constant rate"),
    ],
)
def test_each_check_of_descent_can_fail(key, value, failed) -> None:
    records, arrays = [], {}
    for measurement in CLAIM.measure({**SETTINGS, "steps": 400}):
        records += measurement.records
        arrays |= measurement.arrays
    before = CLAIM.find_in_records(SETTINGS, records, arrays)
    planted = CLAIM.find_in_records(SETTINGS, [{**record, key: value} for record in records], arrays)
    fails = [{check.name for check in found.checks if check.status == "does not hold"} for found in (before, planted)]
    assert fails[1] - fails[0] == {failed}
