"""Claims that train the lab's networks: verdicts on planted runs, and measurements with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.lab.experiments.bare_loop import Images
from batchnorm.lab.experiments.claims import depth, image_regularizers, mnist_figure, registry
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
    assert ("of 9 learning rates 9 ± 0 and 3 ± 0" in found.findings.headline) == (low == -4)


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


def _images(n: int = 12, side: int = 8) -> Images:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, side, side, generator=generator), torch.arange(n) % 3
    return Images(x, y, x, y, 3)


@pytest.mark.parametrize(("kind", "layers"), [("residual", 8), ("residual", 14), ("dense", 7), ("dense", 13)])
def test_a_network_has_as_many_layers_as_asked_and_its_arms_the_same_weights(kind, layers) -> None:
    settings = {"width": 0.2, "growth": 3}
    arms = [depth.network(kind, layers, norm, _images(), settings, seed=1) for norm in ("none", "batch")]
    weights = [[m.weight for m in arm.modules() if isinstance(m, nn.Conv2d | nn.Linear)] for arm in arms]
    assert [len(each) for each in weights] == [layers, layers]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert arms[0](_images().x).shape == (12, 3)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({("none", 44): 2.2, ("batch", 44): 1.2}, "holds"),
        ({("none", 44): 1.5, ("batch", 44): 1.4}, "does not hold"),  # gains less than at 8 layers
        ({("none", 44): 1.2, ("batch", 44): 1.5}, "does not hold"),  # is worse
    ],
)
def test_bn_must_gain_more_with_depth(losses, expected) -> None:
    claim = registry.claim("depth")
    settings = claim.budgets["small"]
    records = [
        {"seed": seed, "kind": kind, "depth": layers, "norm": norm, "lr": lr,
         "loss": (losses.get((norm, 44)) if layers == max(settings[kind]) else {"none": 1.6, "batch": 1.3}[norm])
         + 0.001 * seed + (0.5 if lr == 0.1 else 0)}
        for seed in range(3) for kind in depth.KINDS for layers in settings[kind] for norm in depth.NORMS
        for lr in settings["lr"]
    ]  # fmt: skip
    found = claim.find_in_records(settings, records, {})
    assert found.status == expected
    assert {row[3] for row in found.tables[0].rows} == {"0.01"}  # each at its best rate


def test_cutout_and_mixup_change_images_and_targets_as_defined() -> None:
    images, settings = _images(), {"cutout": 4, "mixup": 1.0}
    x, y = image_regularizers.changed(settings, ["dropout"], 3, 0)(0, images.x.clone(), images.y)
    assert torch.equal(x, images.x)
    assert y is images.y
    cut, _ = image_regularizers.changed(settings, ["Cutout"], 3, 0)(0, images.x.clone(), images.y)
    zeros = (cut == 0).all(1).sum((1, 2))
    assert zeros.min() >= 4  # a corner at least
    assert zeros.max() <= 16
    mixed, target = image_regularizers.changed(settings, ["Mixup"], 3, 0)(5, images.x.clone(), images.y)
    torch.testing.assert_close(target.sum(1), torch.ones(12))
    share = target.max(1).values
    assert ((share > 0.5) & (share < 1)).any()
    # The same share of images and targets: images that are mixtures of two are found from the targets.
    one_hot = nn.functional.one_hot(images.y, 3).float()
    weights = torch.linalg.lstsq(images.x.flatten(1).T, mixed.flatten(1).T).solution
    torch.testing.assert_close(weights.T @ one_hot, target, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("harmful", "together", "expected"),
    [(None, 50.0, "holds"), ("Cutout", 50.0, "does not hold"), (None, 40.0, "does not hold"),
     ("nothing learned", 50.0, "inconclusive")],
)  # fmt: skip
def test_each_regularizer_must_narrow_the_gap(harmful, together, expected) -> None:
    claim = registry.claim("image-regularizers")
    records = [
        {"seed": seed, "arm": arm, "norm": norm, "classes": 10,
         "train": (12.0 if harmful == "nothing learned" else 90.0) + (3 if arm == harmful else 0) + 0.1 * seed,
         "test": {("nothing", "none"): 45.0, ("all six", "batch"): together}.get((arm, norm), 47.0)}
        for seed in range(3) for arm in image_regularizers.ARMS for norm in image_regularizers.NORMS
    ]  # fmt: skip
    assert claim.find_in_records(claim.budgets["small"], records, {}).status == expected
