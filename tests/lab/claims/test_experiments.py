"""Each experiment against what is known: formulas, by hand, and verdicts on made-up records."""

import math
from functools import partial

import numpy as np
import pytest

from batchnorm.lab.claims import activations, races, regularizers, whitening
from batchnorm.lab.claims.config import RunClaims
from batchnorm.lab.claims.findings import Check, check_table, judge, number, spread
from batchnorm.lab.claims.pointsets import generate
from batchnorm.reference import descent, optimizers

QUICK = RunClaims(("activation-statistics",), quick=True, seeds=2, units=128)


@pytest.fixture(scope="module")
def recorded():
    given = activations.settings(QUICK)
    records = [record for m in activations.measure(given) for record in m.records]
    return given, records


def _std(records, activation, norm, name, layer):
    key = (activation, norm, name, layer)
    return np.mean([r["std"] for r in records if (r["activation"], r["norm"], r["initializer"], r["layer"]) == key])


def test_collapse_follows_the_formula_of_a_relu_layer(recorded):
    """The mean square of the pre-activations is multiplied by n std^2 / 2; a ReLU output of N(0, s^2) has std s * c."""
    given, records = recorded
    factor = given["gaussian_std"]["small Gaussian"] * math.sqrt(given["units"])
    assert factor == pytest.approx(0.01 * math.sqrt(4096))
    cut = math.sqrt(0.5 - 1 / (2 * math.pi))
    for layer in (1, 3, 7):
        expected = cut * factor * (factor / math.sqrt(2)) ** (layer - 1)
        assert _std(records, "relu", "none", "small Gaussian", layer) == pytest.approx(expected, rel=0.35), layer
    assert _std(records, "relu", "none", "Kaiming", 1) == pytest.approx(cut * math.sqrt(2), rel=0.1)


def test_with_bn_the_layer_has_the_deviation_of_a_cut_standard_normal(recorded):
    _, records = recorded
    cut = math.sqrt(0.5 - 1 / (2 * math.pi))
    for name in activations.INITIALIZERS:
        assert _std(records, "relu", "batch", name, 7) == pytest.approx(cut, rel=0.03)
        assert _std(records, "tanh", "batch", name, 7) == pytest.approx(0.628, rel=0.04)


def test_the_gradient_of_the_last_layer_is_the_cotangent_and_shrinks_as_the_weights(recorded):
    given, records = recorded
    last = [r["gradient_std"] for r in records if r["layer"] == given["layers"]]
    np.testing.assert_allclose(last, 1.0, rtol=0.06)
    shrunk = [
        r["gradient_std"]
        for r in records
        if (r["activation"], r["norm"], r["initializer"], r["layer"]) == ("relu", "none", "small Gaussian", 1)
    ]
    factor = (given["gaussian_std"]["small Gaussian"] * math.sqrt(given["units"]) / math.sqrt(2)) ** 6
    assert np.mean(shrunk) == pytest.approx(factor, rel=0.5)


def test_activation_verdicts_follow_the_records():
    def records(last_small):
        for activation in ("tanh", "relu"):
            for norm in ("none", "batch"):
                for name in activations.INITIALIZERS:
                    std = {"small Gaussian": last_small, "larger Gaussian": 20.0}.get(name, 1.0)
                    for layer, value in ((1, 1.0), (2, 1.0 if norm == "batch" else std)):
                        yield {"activation": activation, "norm": norm, "initializer": name, "seed": 0, "layer": layer,
                               "std": value, "saturated": 0.5}  # fmt: skip

    assert [c.status for c in activations.judge_records(list(records(0.05)), 2)] == ["holds"] * 6
    checks = activations.judge_records(list(records(0.5)), 2)
    assert [c.status for c in checks] == ["does not hold"] * 2 + ["holds"] * 4


def test_steps_agree_with_the_textbook_descent():
    given = {"limit": 400, "tolerance": 1e-2, "hold": 20}
    points = races.starts("quadratic", 3, seed=1)
    found = races.steps_to_tolerance("quadratic", "momentum", points, 0.003, given, 0.0)
    for start, steps in zip(points, found, strict=True):
        path = descent.descend(
            descent.quadratic(100.0), start, steps=460, lr=0.003, rule=partial(optimizers.momentum, momentum=0.9)
        )
        outside = path.values > 1e-2
        expected = next(k for k in range(400) if not outside[k : k + 21].any())
        assert steps == expected


def test_who_only_jumps_across_the_minimum_has_not_arrived():
    given = {"limit": 100, "tolerance": 1e-2, "hold": 20}
    # curvature 100 and rate 0.02: w changes sign for ever along the steep direction, and passes no tolerance
    assert races.steps_to_tolerance("quadratic", "sgd", np.array([[0.0, 1.0]]), 0.02, given, 0.0) == [np.inf]
    assert races.steps_to_tolerance("quadratic", "sgd", np.array([[0.0, 1.0]]), 0.01, given, 0.0) == [1]


def test_race_verdicts_compare_start_by_start():
    def steps(rule, _):
        return np.array([5.0, np.inf]) if rule == "sgd" else np.array([10.0, 10.0])

    found = {(n, noisy, rule): races.Race(steps(rule, n), 0.1)
             for n in races.FUNCTIONS for noisy in (True, False) for rule in races.RULES}  # fmt: skip
    checks = races.judge_records(found, limit=40)
    assert {c.status for c in checks} == {"mixed"}
    assert checks[0].passed == [False, True]
    assert checks[0].values == [1.0, -2.0]


def test_infinite_steps_survive_json():
    rows = [{"function": "waves", "noisy": False, "rule": "sgd", "lr": 0.1, "steps": np.nan}]
    assert races.by_race(rows)["waves", False, "sgd"].steps.tolist() == [np.inf]


def test_whitened_inputs_need_one_step_and_the_raw_ones_the_condition_number():
    given = whitening.settings(RunClaims(("whitening",), quick=True))
    x, y = whitening.data(given, seed=0)
    condition, steps, _ = whitening.train(whitening.whitening.forward(x, eps=1e-8)[0], y, limit=10, excess=1e-3)
    assert condition == pytest.approx(1.0, abs=1e-5)
    assert steps == 1
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    condition, steps, left = whitening.train(standard, y, limit=3000, excess=1e-3)
    assert condition == pytest.approx(np.linalg.cond(np.corrcoef(x.T)), rel=1e-6)
    slowest = ((condition - 1) / (condition + 1)) ** 2  # per step, of the excess
    assert left[50] <= slowest**50 * 1.0001
    assert 1 < steps < 3000


def test_whitening_verdicts_and_cost_ratios():
    costs = [
        {"channels": c, "repeat": r, "arm": arm, "seconds": s * (1 + r)}
        for c, zca in ((8, 2.0), (64, 6.0)) for r in range(2) for arm, s in (("batch", 1.0), ("zca", zca))
    ]  # fmt: skip
    assert whitening.cost_ratios(costs) == {8: [2.0, 2.0], 64: [6.0, 6.0]}
    effects = [
        {"input": name, "steps": steps, "correlation": 0.5, "from_identity": off}
        for name, steps, off in (("raw", np.nan, 9.0), ("batch", 40.0, 0.5), ("zca", 1.0, 1e-8))
    ]
    checks = whitening.judge_records(costs, effects, limit=100)
    assert [c.status for c in checks] == ["holds"] * 5
    assert checks[3].values == [0.4]
    assert checks[4].values == [3.0, 3.0]


def test_a_network_trains_as_published_with_the_published_seeds():
    points, given = generate(0), regularizers.settings(RunClaims(("regularizers",), quick=True))
    network, curve = regularizers.train("fixed_mask", points, 0, {**given, "steps": 3})
    draw = np.random.RandomState(3)
    w1, w2, w3 = (draw.randn(outs, ins) / np.sqrt(ins) for outs, ins in [(20, 2), (3, 20), (1, 3)])
    b1, b2, b3 = np.zeros((20, 1)), np.zeros((3, 1)), np.zeros((1, 1))
    x, y, m = points.x.T, points.y, len(points.y)
    for _ in range(3):
        masks = np.random.RandomState(1)
        a1 = np.maximum(0, w1 @ x + b1)
        d1 = (masks.rand(*a1.shape) < 0.86) / 0.86
        a2 = np.maximum(0, w2 @ (a1 * d1) + b2)
        d2 = (masks.rand(*a2.shape) < 0.86) / 0.86
        a3 = 1 / (1 + np.exp(-(w3 @ (a2 * d2) + b3)))
        loss = -np.mean(y * np.log(a3) + (1 - y) * np.log(1 - a3))
        dz3 = (a3 - y) / m
        dz2 = (w3.T @ dz3) * d2 * (a2 > 0)
        dz1 = (w2.T @ dz2) * d1 * (a1 > 0)
        steps = dz3 @ (a2 * d2).T, dz2 @ (a1 * d1).T, dz1 @ x.T
        b3, b2, b1 = (b - 0.3 * dz.sum(1, keepdims=True) for b, dz in ((b3, dz3), (b2, dz2), (b1, dz1)))
        w3, w2, w1 = (w - 0.3 * dw for w, dw in zip((w3, w2, w1), steps, strict=True))
    np.testing.assert_allclose(network.parameters["linear1.weight"], w1, rtol=1e-10)
    assert curve[-1, 1] == pytest.approx(loss, rel=1e-12)


def test_regularizer_verdicts():
    def row(arm, seed, train, test):
        return {"arm": arm, "seed": seed, "train": train, "test": test, "finite": True}

    records = [row("none", 0, 0.95, 0.90), row("none", 1, 0.95, 0.90), row("l2", 0, 0.93, 0.93),
               row("l2", 1, 0.94, 0.92), row("dropout", 0, 0.95, 0.90), row("dropout", 1, 0.95, 0.91)]  # fmt: skip
    statuses = [check.status for check in regularizers.judge_records(records)]
    assert statuses == ["holds", "holds", "mixed", "mixed"]
    assert regularizers.judge_records(records)[0].values == pytest.approx([5.0, 3.0])


def test_check_gives_n_mean_and_sample_deviation():
    check = Check("a", "rule", [1.0, 2.0, 6.0], [True, True, False])
    (row,) = check_table([check]).rows
    assert row == ["a", "rule", "mixed", "2 of 3", "3", "2.65"]
    assert np.isnan(Check("a", "rule", [1.0], [True]).std)
    assert judge([False, False]) == "does not hold"
    assert [number(v) for v in (np.nan, np.inf, 1234.5, 0.01234)] == ["-", "never", "1,234", "0.0123"]
    assert spread([1.0, 3.0, np.inf]) == "2 ± 1.41 and 1 times beyond the limit"
