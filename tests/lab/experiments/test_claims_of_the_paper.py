"""The claims of Ioffe and Szegedy: rules on planted outcomes, and what measures on cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchnorm.lab.experiments.claims import fewer_steps, registry, scale_invariance, stable_inputs
from batchnorm.lab.rules import Reach
from lab.experiments.plans import Planted, findings, verdicts

HOLDS, FAILS = "holds", "does not hold"


@pytest.mark.parametrize(
    ("none", "batch", "expected"),
    [
        ([0.3, 0.5, 0.9], [0.9, 0.93, 0.95], [HOLDS, HOLDS]),
        ([0.9, 0.93, 0.95], [0.3, 0.5, 0.9], [FAILS, FAILS]),
        ([0.3, 0.9, 0.95], [0.3, 0.9, 0.96], [FAILS, HOLDS]),  # not quicker
    ],
)
def test_bn_must_be_quicker_and_higher(tmp_path, none, batch, expected) -> None:
    def plant(config) -> Planted:
        rise = none if config.norm == "none" else batch
        # At the other rate neither learns; seeds differ a little.
        return Planted([0.1] * 3 if config.lr == 0.1 else [v + 0.002 * config.seed * (k == 2) * (rise is batch)
                       for k, v in enumerate(rise)])  # fmt: skip

    assert verdicts(findings("fewer-steps", tmp_path / "p", plant, seeds=3, lr=[0.1, 1.0], steps=300)) == expected


def test_a_seed_that_did_not_arrive_counts_with_all_steps_and_no_arrival_counts_as_none() -> None:
    inf = math.inf
    without = Reach(1.0, 400.0, [400.0, inf, inf], edge=False)
    found = fewer_steps.ratios(without, Reach(1.0, 100.0, [100.0, 100.0, inf], edge=False), 500)
    assert found[:2] == [4.0, 5.0]
    assert math.isnan(found[2])
    assert fewer_steps.ratios(
        Reach(1.0, 400.0, [400.0], edge=False), Reach(None, None, [inf] * 4, edge=False), 500
    ) == [0]


@pytest.mark.parametrize(("none", "batch", "expected"), [(1.0, 0.2, HOLDS), (0.2, 1.0, FAILS)])
def test_inputs_must_drift_less_with_bn(tmp_path, none, batch, expected) -> None:
    def plant(config) -> Planted:
        far = (none if config.norm == "none" else batch) * (1 + 0.01 * config.seed)
        layers = [
            {"layers.1": {"p15": [9.0, 9.0], "p50": [9.0, 9.0], "p85": [9.0, 9.0]},  # not the last hidden layer
             "layers.4": {"p15": [far * k - 1, -1], "p50": [far * k, 0], "p85": [3 * far * k + 1, far * k + 1]}}
            for k in range(4)
        ]  # fmt: skip
        return Planted([0.5] * 4, probes={"units": [({}, layer) for layer in layers]})

    found = findings("stable-inputs", tmp_path / "p", plant, seeds=3, lr=[0.1, 1.0])
    assert verdicts(found) == [expected] * 4


def test_drift_is_the_median_over_units() -> None:
    middle = np.array([[0.0, 0, 0], [1.0, 0, 5], [0.0, 0, 5]])  # travelled 2, 0, 5
    found = np.stack([middle - 1, middle, middle + 1], axis=1)
    assert stable_inputs.travelled(found) == (2.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("none", "batch", "expected"),
    [
        (0.11, 0.95, [HOLDS, HOLDS]),
        (0.95, 0.95, [FAILS, HOLDS]),  # without BN it learns too
        (0.11, 0.12, [HOLDS, FAILS]),  # with BN it learns no better
    ],
)
def test_a_deep_network_of_sigmoids_must_fail_without_bn_and_learn_with_it(tmp_path, none, batch, expected) -> None:
    def plant(config) -> Planted:
        deep = len(config.hidden) == 10
        best = config.lr == 0.3
        end = (none if config.norm == "none" else batch) if deep else 0.97
        if config.lr >= 3.0:
            return Planted([0.1], status="diverged")
        return Planted([0.1, (end if best else 0.1) + 0.001 * config.seed])

    found = findings("deep-sigmoids", tmp_path / "p", plant)
    assert verdicts(found) == expected


def test_the_scale_of_the_weights_is_felt_without_bn_and_through_a_large_eps() -> None:
    rng = np.random.default_rng(0)
    u, weight, cotangent = rng.normal(size=(20, 4)), rng.normal(size=(3, 4)), rng.normal(size=(20, 3))

    def errors(arm: str, eps: float) -> dict[str, float]:
        both = [scale_invariance.terms(arm, u, scale * weight, cotangent, eps) for scale in (1.0, 0.1)]
        return scale_invariance.errors(*both, 0.1)

    for arm in ("textbook", "layer"):
        assert max(errors(arm, 1e-12).values()) < 1e-8
        assert min(errors(arm, 1.0).values()) > 0.1
    # A linear layer: the output is a times as large, the gradient of the input too, that of the weights is the same.
    assert errors("none", 1e-12) == {key: pytest.approx(0.9) for key in ("output", "dinput", "dweight")}
    for one, other in zip(*(scale_invariance.terms(arm, u, weight, cotangent, 1e-5) for arm in ("textbook", "layer")),
                          strict=True):  # fmt: skip
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("error", "expected"), [(1e-9, HOLDS), (1e-3, FAILS)])
def test_an_identity_that_is_off_does_not_hold(error, expected) -> None:
    claim = registry.claim("scale-invariance")
    settings = {**claim.budgets["small"], "seeds": 3}
    assert claim.find_in_records is not None
    records = [
        {"seed": seed, "arm": arm, "eps": eps, "scale": scale, "dweight_norm": 1.0, "dinput": 1e-9, "dweight": 1e-9,
         "output": 9.0 if arm == "none" else error * (1 + 0.01 * seed)}
        for seed in range(3) for arm in scale_invariance.ARMS for eps in settings["eps"] for scale in settings["scales"]
    ]  # fmt: skip
    assert claim.find_in_records(settings, records, {}).status == expected


@pytest.mark.parametrize(
    ("early", "late", "expected"),
    [(10.0, 0.1, [HOLDS, HOLDS]), (-10.0, 0.1, [FAILS, HOLDS]), (10.0, 3.0, [HOLDS, FAILS])],
)
def test_population_statistics_must_be_better_early_and_the_same_late(tmp_path, early, late, expected) -> None:
    def plant(config) -> Planted:
        gain = (config.statistics == "population") * (1 + 0.01 * config.seed)
        values = [0.3 + early * gain / 100, 0.3 + early * gain / 100, 0.9, 0.95 + late * gain / 100]
        return Planted(values, every=10)  # steps 10 and 20 are early

    assert verdicts(findings("population-statistics", tmp_path / "p", plant)) == expected
