"""The claims about Inception: switches that do what they say, and verdicts on planted curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.lab.experiments import seven_changes
from batchnorm.lab.experiments.bare_loop import Images, constant, descend
from batchnorm.lab.experiments.claims import inception_changes, inception_ensemble, inception_ladder, registry

SIZES = {"width": 0.1, "steps": 4, "batch": 4, "lr": 0.01, "every": 2}


def images(n: int = 8) -> Images:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 2
    return Images(x, y, x, y, 2)


def test_a_change_changes_its_own_setting_only() -> None:
    before = seven_changes.settings_with([])
    assert before == {"times": 1.0, "dropout": 0.4, "l2": 1e-4, "decay": 0.5, "lrn": True, "reshuffled": False,
                      "distortion": 0.4}  # fmt: skip
    for name, change in seven_changes.CHANGES.items():
        made = seven_changes.settings_with([name])
        assert {key for key in made if made[key] != before[key]} == {change.setting}
    assert before["l2"] / seven_changes.settings_with(["l2"])["l2"] == pytest.approx(5)
    assert seven_changes.settings_with(["decay"])["decay"] / before["decay"] == 6


def test_switches_reach_the_network_and_its_training(monkeypatch) -> None:
    seen = {}

    def watched(model, data, **how):
        seen.update(how)
        return descend(model, data, **how)

    monkeypatch.setattr(seven_changes, "descend", watched)
    for changes, kinds in (([], {nn.LocalResponseNorm}), (list(seven_changes.CHANGES), set())):
        how = seven_changes.settings_with(changes)
        model = seven_changes.inception(images(), how, SIZES, norm="batch", seed=0)
        found = {type(layer) for layer in model.modules()}
        assert found & {nn.LocalResponseNorm} == kinds
        assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [how["dropout"]]
        assert [step for step, _ in seven_changes.train(model, images(), how, SIZES, seed=0)] == [2, 4]
        assert (seen["lr"], seen["l2"], seen["reshuffled"]) == (0.01 * how["times"], how["l2"], how["reshuffled"])
        assert seen["schedule"](1.0) == pytest.approx(np.exp(-how["decay"]))
        assert seen["changed"].most == how["distortion"]


def test_a_distortion_is_bounded_and_zero_changes_nothing() -> None:
    x, y = images().x, images().y
    same, classes = seven_changes.Distortion(0.0, 0)(0, x, y)
    torch.testing.assert_close(same, x)
    assert classes is y
    changed = seven_changes.Distortion(0.4, 0)(0, x, y)[0]
    shift = changed.mean((1, 2, 3)) - x.mean((1, 2, 3))
    contrast = changed.std((1, 2, 3)) / x.std((1, 2, 3))
    assert 0.05 < shift.abs().max() <= 0.4
    assert 0.05 < (contrast - 1).abs().max() <= 0.4
    assert len(shift.unique()) == len(x)  # each image by itself


def test_an_order_that_is_kept_meets_the_same_examples_again() -> None:
    orders = {}
    for reshuffled in (True, False):
        seen: list[list[float]] = []

        def changed(_step, x, y, seen=seen):
            seen.append(x[:, 0, 0, 0].tolist())
            return x, y

        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        list(descend(model, images(), steps=8, batch=4, lr=0.0, seed=0, reshuffled=reshuffled, changed=changed))
        orders[reshuffled] = [sorted(batch) for batch in seen]
    assert orders[False][:2] == orders[False][2:4] == orders[False][6:8]
    assert orders[True][:2] != orders[True][2:4]


def test_penalties_and_schedules_of_the_loop_are_exact() -> None:
    data = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2, bias=False))
    before = model[1].weight.detach().clone()
    loss = nn.functional.cross_entropy(data.x.flatten(1) @ before.T, data.y)
    (first,) = descend(model, data, steps=1, batch=8, lr=0.0, seed=0, l1=0.1)
    assert first == pytest.approx(float(loss + 0.1 * before.abs().sum()), rel=1e-5)
    twice = [nn.Sequential(nn.Flatten(), nn.Linear(192, 2, bias=False)) for _ in range(2)]
    for one in twice:
        one.load_state_dict(model.state_dict())
    list(descend(twice[0], data, steps=3, batch=8, lr=0.1, seed=0, schedule=lambda _: 0.5))
    list(descend(twice[1], data, steps=3, batch=8, lr=0.05, seed=0, schedule=constant))
    torch.testing.assert_close(twice[0][1].weight, twice[1][1].weight)


LADDER = {"Inception": (100, 0.5), "BN-Baseline": (50, 0.55), "BN-x5": (10, 0.6), "BN-x30": (10, 0.7),
          "BN-x5-Sigmoid": (900, 0.4)}  # fmt: skip


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({}, "holds"),
        ({"BN-Baseline": (200, 0.55)}, "does not hold"),  # slower than without BN
        ({"BN-x5": (80, 0.6)}, "does not hold"),  # slower than BN-Baseline
        ({"BN-x5": (900, 0.3)}, "does not hold"),  # never there
        ({"BN-x30": (10, 0.45)}, "does not hold"),  # ends lower
        ({"BN-x5-Sigmoid": (900, 0.1)}, "does not hold"),  # guesses
        ({"Inception": (100, 0.1)}, "inconclusive"),  # without BN nothing was learned: there is no target
    ],
)
def test_the_ladder_is_judged_by_steps_and_maximum(planted, expected) -> None:
    claim = registry.claim("inception-ladder")
    records, arrays = [], {}
    for seed in range(3):
        for arm, (when, most) in {**LADDER, **planted}.items():
            steps = np.arange(10.0, 300, 10)
            accuracy = np.where(steps >= when + 10 * (seed == 2), most, 0.11)
            records.append({"seed": seed, "arm": arm, "most": most, "classes": 10, "test": 5000})
            arrays[f"{arm}/{seed}"] = np.stack([steps, accuracy])
    settings = {**claim.budgets["small"], "steps": 290, "longer": 1}
    found = claim.find_in_records(settings, records, arrays)
    assert found.status == expected
    if not planted:
        row = next(row for row in found.tables[0].rows if row[0] == "BN-x5")
        assert row[1:4] == ["10", "10.0x", "5.5x to 10.0x"]


def test_a_network_that_trained_too_briefly_says_nothing() -> None:
    ratio, never = inception_ladder.times_fewer, np.inf
    assert ratio(600, 100, 800, 200) == 6
    assert np.isnan(ratio(600, never, 800, 200))  # at 200 steps of 600 nothing is known
    assert ratio(150, never, 800, 200) == never  # it had the time, and was not there
    assert ratio(600, never, 800, never) == never  # it diverged
    assert ratio(never, 100, 200, 200) == 2  # a lower bound
    assert np.isnan(ratio(never, never, 200, 200))


@pytest.mark.parametrize(("harmful", "expected"), [(None, "holds"), ("lrn", "does not hold")])
def test_a_change_that_does_harm_is_named(harmful, expected) -> None:
    claim = registry.claim("inception-changes")
    records = [
        {"seed": seed, "arm": arm, "end": 40.0,
         "way": 30.0 + 0.1 * seed - 2 * (arm in seven_changes.CHANGES) + 4 * (arm == harmful)
         - 9 * (arm == inception_changes.NONE)}
        for seed in range(3) for arm in inception_changes.arms()
    ]  # fmt: skip
    found = claim.find_in_records(claim.budgets["small"], records, {})
    assert found.status == expected
    failed = [check.name for check in found.checks if check.status != "holds"]
    assert failed == ([] if harmful is None else ["no local response normalization: helps"])


@pytest.mark.parametrize(("together", "expected"), [(70.0, "holds"), (60.0, "does not hold")])
def test_an_ensemble_must_beat_its_best_member(together, expected) -> None:
    claim = registry.claim("inception-ensemble")
    records = [{"seed": s, "together": together + s, "best": 65.0 + s, "mean": 50.0, "test": 10} for s in range(3)]
    assert claim.find_in_records(claim.budgets["small"], records, {}).status == expected


def test_probabilities_are_those_of_evaluation_mode_and_weights_are_scaled_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(128, 2))
    before = model[0].weight.detach().clone()
    inception_ensemble.widened(model, 1.5)
    torch.testing.assert_close(model[0].weight.detach(), 1.5 * before)
    found = inception_ensemble.probabilities(model, images().x, batch=3)
    torch.testing.assert_close(found.sum(1), torch.ones(8))
    torch.testing.assert_close(found[:1], inception_ensemble.probabilities(model, images().x[:1]))
    assert inception_ensemble.right(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])) == 50.0
    assert inception_ladder.ARMS["BN-x30"][2] == {"times": 30.0}
