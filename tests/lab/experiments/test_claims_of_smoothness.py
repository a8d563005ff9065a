"""The claims of Santurkar et al.: rules on planted outcomes, and what measures on cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d
from batchnorm.lab.experiments import deep_linear
from batchnorm.lab.experiments.claims import noisy_batch_norm, other_norms, registry, smooth_landscape
from batchnorm.lab.models import Normalization, build
from batchnorm.probes import Shift
from lab.experiments.plans import Planted, findings, verdicts

HOLDS, FAILS = "holds", "does not hold"


def _near(config) -> float:
    return 1 + 0.01 * config.seed


@pytest.mark.parametrize(("none", "batch", "expected"), [(4.0, 1.0, HOLDS), (1.0, 4.0, FAILS)])
def test_the_landscape_must_be_smoother_with_bn(tmp_path, none, batch, expected) -> None:
    def plant(config) -> Planted:
        size = (none if config.norm == "none" else batch) * _near(config) ** (config.norm == "batch")
        scalars = {"loss": 2.0, "loss_low": 1.0, "loss_high": 1.0 + size, "gradient_change_low": 0.0,
                   "gradient_change_high": size, "smoothness": size}  # fmt: skip
        # One step in which the loss left the finite numbers is not typical.
        broken = {**scalars, "loss_high": None, "gradient_change_high": None, "smoothness": None}
        return Planted([0.3] * 3, probes={"landscape": [(scalars, {}), (scalars, {}), (broken, {})]})

    found = findings("smooth-landscape", tmp_path / "p", plant)
    assert verdicts(found) == [expected] * 3
    assert found.checks[0].values[0] == pytest.approx(batch / none)


def test_a_landscape_that_is_mostly_infinite_without_bn_counts_as_rougher(tmp_path) -> None:
    def plant(config) -> Planted:
        size = None if config.norm == "none" else _near(config)
        scalars = {"loss_low": 0.0, "loss_high": size, "gradient_change_high": size, "smoothness": size}
        return Planted([0.3], probes={"landscape": [(scalars, {})]})

    found = findings("smooth-landscape", tmp_path / "p", plant)
    assert found.checks[0].values == [0.0] * 3
    assert verdicts(found) == [HOLDS] * 3
    assert smooth_landscape.MEASURES["range of the loss"]({"scalars": {"loss_low": 0.5, "loss_high": 2.0}}) == 1.5


@pytest.mark.parametrize(
    ("cosine", "shift", "end", "expected"),
    [
        (0.5, 2.0, 0.6, [HOLDS, HOLDS, HOLDS]),  # cosine and relative shift with BN; without 0.9 and 0.5
        (0.99, 2.0, 0.6, [FAILS, HOLDS, HOLDS]),
        (0.5, 0.1, 0.6, [HOLDS, FAILS, HOLDS]),
        (0.5, 2.0, 0.3, [HOLDS, HOLDS, FAILS]),
    ],
)
def test_gradients_must_shift_no_less_with_bn_that_ends_higher(tmp_path, cosine, shift, end, expected) -> None:
    def plant(config) -> Planted:
        bn = config.norm == "batch"
        near = 1 + 0.001 * config.seed * bn
        layers = {
            "0": {"shift": 0.0, "cosine": 1.0, "gradient_norm": 5.0},  # never moves, and is left out
            "1": {"shift": 2 * (shift if bn else 0.5) * near, "cosine": (cosine if bn else 0.9) / near,
                  "gradient_norm": 2.0},
        }  # fmt: skip
        return Planted([(end if bn else 0.4) * near], probes={"shift": [({}, layers)]})

    assert verdicts(findings("gradient-shift", tmp_path / "p", plant)) == expected


@pytest.mark.parametrize(
    ("ends", "moves", "expected"),
    [
        ((0.4, 0.55, 0.1), 2.0, [HOLDS, HOLDS, HOLDS]),  # without BN, noisy BN, noisy without BN; change of inputs
        ((0.4, 0.35, 0.1), 2.0, [FAILS, HOLDS, HOLDS]),
        ((0.4, 0.55, 0.1), 0.1, [HOLDS, FAILS, HOLDS]),
        ((0.4, 0.55, 0.38), 2.0, [HOLDS, HOLDS, FAILS]),
    ],
)
def test_noisy_bn_must_be_better_than_none_and_less_stable(tmp_path, ends, moves, expected) -> None:
    def plant(config) -> Planted:
        noisy, bn = ":" in config.model, config.norm == "batch"
        end = ends[2 if not bn else 1] if noisy else 0.56 if bn else ends[0]
        far = moves if noisy and bn else 0.5
        looks = [({}, {"a": {"mean": far * k * _near(config) ** noisy, "std": 2.0}}) for k in range(3)]
        return Planted([end + 0.001 * config.seed * noisy] * 3, probes={"activations": looks})

    assert verdicts(findings("noisy-batch-norm", tmp_path / "p", plant)) == expected


def test_noise_has_the_published_distribution_and_is_absent_in_evaluation() -> None:
    torch.manual_seed(0)
    noise, x = noisy_batch_norm.Noise(), torch.ones(200, 100)
    draws = [noise(torch.zeros_like(x)) for _ in range(300)]  # the shift alone
    means = torch.stack([draw.mean() for draw in draws])
    assert (means.min() < -0.45, means.max() > 0.45) == (True, True)
    assert means.abs().max() < 0.501
    assert max((draw - draw.mean()).abs().max() for draw in draws) < 0.2 + 1e-3
    factors = [(noise(1e6 * x) / 1e6) for _ in range(300)]
    middles = torch.stack([factor.mean() for factor in factors])
    assert (middles.min() > 0.99, middles.min() < 1.02, middles.max() > 1.23, middles.max() < 1.26) == (True,) * 4
    assert factors[0].std().item() == pytest.approx(0.1, rel=0.03)
    assert noise.eval()(x) is x


def test_the_noisy_network_is_the_other_one_with_noise_in_front_of_each_nonlinearity() -> None:
    options = {"input_shape": (3, 8, 8), "classes": 10, "seed": 3, "width": 0.125, "initializer": "xavier_normal"}
    for norm in ("none", "batch"):
        noisy = noisy_batch_norm.noisy_vgg(Normalization(norm), **options)
        plain = build("vgg_small", Normalization(norm), **options)
        kinds = [type(layer) for layer in noisy.get_submodule("features").children()]
        assert kinds.count(noisy_batch_norm.Noise) == 4
        assert all(kinds[k + 1] is nn.ReLU for k, kind in enumerate(kinds) if kind is noisy_batch_norm.Noise)
        for one, other in zip(noisy.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0)
        x = torch.randn(4, 3, 8, 8)
        torch.testing.assert_close(noisy.eval()(x), plain.eval()(x), atol=0, rtol=0)
        assert not torch.equal(noisy.train()(x), plain.train()(x))


@pytest.mark.parametrize(
    ("distance", "cosine", "expected"),
    [
        (0.5, 0.99, [HOLDS] * 4),
        (2.0, 0.99, [FAILS] * 2 + [HOLDS] * 2),
        (0.5, 0.3, [HOLDS] * 2 + [FAILS] * 2),  # what the second paper says
    ],
)
def test_planted_covariate_shift_comes_out_both_ways(tmp_path, distance, cosine, expected) -> None:
    def plant(config) -> Planted:
        bn = config.norm == "batch"
        near = _near(config) ** bn
        moved = {"0": {"distance": 0.0}, "1": {"distance": (distance if bn else 1.0) * near}}
        turned = {"0": {"cosine": 1.0}, "1": {"cosine": (cosine if bn else 0.9) / near**0.1}}
        return Planted([0.5], probes={"input_shift": [({}, moved)], "shift": [({}, turned)]})

    found = findings("covariate-shift", tmp_path / "p", plant)
    assert verdicts(found) == expected
    assert found.checks[0].values[0] == pytest.approx(distance)  # the first layer is left out


@pytest.mark.parametrize(("l1", "expected"), [(0.01, HOLDS), (2.0, FAILS)])
def test_every_norm_must_beat_none(l1, expected) -> None:
    claim = registry.claim("other-norms")
    assert claim.find_in_records is not None
    settings = {**claim.budgets["small"], "seeds": 3, "steps": 1}
    ends = {"none": 0.5, "batch": 0.1, "l1": l1, "l2": 0.1, "linf": 0.1}
    records = [
        {"seed": seed, "norm": norm, "lr": lr,
         "loss": math.nan if lr == settings["lr"][-1] else ends[norm] * (1 + 0.01 * seed * (norm != "none")) * (1 + lr)}
        for seed in range(3) for norm in other_norms.ARMS for lr in settings["lr"]
    ]  # fmt: skip
    arrays = {f"{r['norm']}/{r['lr']}/{r['seed']}": np.array([1.0, r["loss"]]) for r in records}
    assert claim.find_in_records(settings, records, arrays).status == expected


def test_power_norms_divide_by_the_average_norm_before_they_subtract_the_mean() -> None:
    x = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    for power, norms in ((1.0, [2.0, 3.0]), (2.0, [5**0.5, 10**0.5]), (math.inf, [3.0, 4.0])):
        expected = x / torch.tensor(norms)
        torch.testing.assert_close(deep_linear.PowerNorm(2, power)(x), expected - expected.mean(0))
    centred = torch.randn(50, 4) * 3
    centred = centred - centred.mean(0)
    torch.testing.assert_close(deep_linear.PowerNorm(4, 2.0)(centred), BatchNorm1d(4, eps=1e-12)(centred))


def test_descent_of_a_linear_network_takes_the_steps_of_its_closed_form() -> None:
    """Two layers: the gradient is W2^T E x^T and E x^T W1^T for the error E, times 2 over the examples."""
    network = deep_linear.linear_network("none", 2, 3, seed=0)
    w1, w2 = (layer.weight.detach().clone() for layer in network)
    problem = deep_linear.gaussian_problem(40, 3, seed=0)
    x, y = problem.x, problem.y
    assert problem.floor == pytest.approx((y**2).sum().item() / 40)
    expected = []
    for _ in range(4):
        error = x @ w1.T @ w2.T - y
        expected.append((error**2).sum().item() / 40 / problem.floor)
        g1, g2 = 2 / 40 * w2.T @ error.T @ x, 2 / 40 * error.T @ x @ w1.T
        w1, w2 = w1 - 0.1 * g1, w2 - 0.1 * g2
    np.testing.assert_allclose(deep_linear.descend(network, problem, steps=3, lr=0.1)[0], expected, rtol=1e-5)
    assert deep_linear.descend(network, problem, steps=200, lr=1e9)[0][-1] == math.inf


def test_deep_linear_networks_have_a_normalization_behind_each_layer_but_the_last() -> None:
    for norm in other_norms.ARMS:
        network = deep_linear.linear_network(norm, 4, 5, seed=1)
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        assert len(linear) == 4
        assert len(network) == (4 if norm == "none" else 7)
        for one, other in zip(linear, deep_linear.linear_network("none", 4, 5, seed=1), strict=True):
            torch.testing.assert_close(one.weight, other.weight, atol=0, rtol=0)


def test_the_probe_of_a_descent_reads_the_closed_form_of_two_linear_layers() -> None:
    problem, network = deep_linear.gaussian_problem(40, 3, seed=0), deep_linear.linear_network("none", 2, 3, seed=0)
    w1, w2 = (layer.weight.detach().clone() for layer in network)

    def gradients(w1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        error = problem.x @ w1.T @ w2.T - problem.y
        return 2 / 40 * w2.T @ error.T @ problem.x, 2 / 40 * error.T @ problem.x @ w1.T

    first, second = gradients(w1)
    after = gradients(w1 - 0.2 * first)[1]
    _, seen = deep_linear.descend(network, problem, steps=4, lr=0.2, probe=Shift(network), every=2)
    assert list(seen) == [0, 2]
    layer = seen[0].layers["1"]
    assert layer["shift"] == pytest.approx((after - second).norm().item(), rel=1e-4)
    assert layer["cosine"] == pytest.approx(
        torch.cosine_similarity(after.flatten(), second.flatten(), 0).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("cosine", "loss", "expected"),
    [(0.2, 0.1, [HOLDS] * 3), (1.0, 0.1, [FAILS, HOLDS, HOLDS]), (0.2, 0.9, [HOLDS, HOLDS, FAILS])],
)
def test_gradients_of_a_linear_network_must_turn_with_bn_that_ends_lower(cosine, loss, expected) -> None:
    claim = registry.claim("gradient-shift-linear")
    assert claim.find_in_records is not None
    records = [
        {"seed": seed, "norm": norm, "cosine": (cosine if norm == "batch" else 0.9) / near,
         "shift": (1.0 if norm == "batch" else 0.1) * near, "loss": (loss if norm == "batch" else 0.5) * near}
        for seed in range(3) for norm in ("none", "batch") for near in [1 + 0.001 * seed * (norm == "batch")]
    ]  # fmt: skip
    arrays = {f"{key}/{r['norm']}/{r['seed']}": np.array([1.0, r[key]]) for r in records for key in ("cosine", "loss")}
    assert verdicts(claim.find_in_records({**claim.budgets["small"], "seeds": 3}, records, arrays)) == expected
