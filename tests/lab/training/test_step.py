"""One step: the gradient of the joint batch however it is cut, penalties where they belong, precision, clipping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.lab.data import Batch
from batchnorm.lab.training import TrainConfig
from batchnorm.lab.training.machine import make_fabric
from batchnorm.lab.training.optimizers import make_optimizer, parameter_groups, penalized_names
from batchnorm.lab.training.recipes import resolve
from batchnorm.lab.training.step import Run
from lab.training.runs import plain

PLAIN = resolve(replace(plain(Path(), "none"), optimizer="sgd", lr=0.1, batch_size=10))


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def _batch(scale: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(scale * torch.randn(10, 6, generator=generator), torch.arange(10) % 3)


def _step(config: TrainConfig, model: nn.Module, batch: Batch, lr: float = 0.1) -> float:
    loss, _ = Run(config, model, make_fabric(config)).step(batch, lr)
    return loss.item()


def test_pieces_of_unequal_size_give_the_gradient_of_the_whole_batch() -> None:
    whole, cut = _network(), _network()
    losses = [_step(PLAIN, whole, _batch()), _step(replace(PLAIN, accumulate=4), cut, _batch())]  # 3, 3, 2, 2 examples
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(cut.state_dict(), whole.state_dict(), rtol=1e-5, atol=1e-7)
    # The naive mean of the means of the pieces is another gradient.
    naive, batch = _network(), _batch()
    pieces = zip(batch.x.tensor_split(4), batch.y.tensor_split(4), strict=True)
    torch.stack([nn.functional.cross_entropy(naive(x), y) for x, y in pieces]).mean().backward()
    right = _network()
    nn.functional.cross_entropy(right(batch.x), batch.y).backward()
    assert not torch.allclose(naive[0].weight.grad, right[0].weight.grad, rtol=1e-3)


def test_penalties_act_on_weights_alone_by_name() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), batchnorm.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm((4, 2, 2)), nn.Linear(2, 2)
    )
    assert penalized_names(model, "weights") == {"0.weight", "4.weight"}
    assert penalized_names(model, "all") == set(dict(model.named_parameters()))
    model[4].weight.requires_grad_(False)
    first, second = parameter_groups(model, replace(PLAIN, l2=0.5, l1=0.25))
    assert (first["names"], first["weight_decay"], first["l1"]) == (["0.weight"], 0.5, 0.25)
    assert (second["weight_decay"], second["l1"]) == (0.0, 0.0)
    assert second["names"] == ["0.bias", *(f"{i}.{name}" for i in (1, 2, 3) for name in ("weight", "bias")), "4.bias"]


def test_penalties_add_their_gradients() -> None:
    before, batch, lr = _network(), _batch(), 0.1
    plain_step, penalized = _network(), _network()
    _step(PLAIN, plain_step, batch, lr)
    _step(replace(PLAIN, l1=0.03, l2=0.2), penalized, batch, lr)
    for name, parameter in before.named_parameters():
        expected = plain_step.get_parameter(name)
        if name.endswith("weight"):
            expected = expected - lr * (0.03 * parameter.sign() + 0.2 * parameter)
        torch.testing.assert_close(penalized.get_parameter(name), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({"optimizer": "sgd"}, torch.optim.SGD, {"momentum": 0, "nesterov": False}),
        ({"optimizer": "momentum", "momentum": 0.8}, torch.optim.SGD, {"momentum": 0.8, "nesterov": False}),
        ({"optimizer": "nesterov"}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ({"optimizer": "adagrad", "optimizer_eps": 1e-4}, torch.optim.Adagrad, {"eps": 1e-4}),
        ({"optimizer": "rmsprop", "square_decay": 0.95}, torch.optim.RMSprop, {"alpha": 0.95}),
        (
            {"optimizer": "adam", "beta1": 0.8},
            torch.optim.Adam,
            {"betas": (0.8, 0.999), "decoupled_weight_decay": False},
        ),
        ({"optimizer": "adamw", "l2": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ],
)
def test_rules_are_those_of_torch(settings, kind, expected) -> None:
    optimizer = make_optimizer(_network(), replace(PLAIN, **settings))
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in expected} == expected


def test_the_norm_of_the_gradient_is_cut() -> None:
    before, after = _network(), _network()
    _step(replace(PLAIN, clip_norm=0.01), after, _batch(100.0), lr=1.0)
    steps = [a - b for a, b in zip(after.parameters(), before.parameters(), strict=True)]
    assert torch.cat([step.flatten() for step in steps]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_values_of_the_gradient_are_cut() -> None:
    before, after = _network(), _network()
    _step(replace(PLAIN, clip_value=0.001), after, _batch(100.0), lr=1.0)
    steps = torch.cat([(a - b).flatten() for a, b in zip(after.parameters(), before.parameters(), strict=True)])
    assert steps.abs().max().item() == pytest.approx(0.001, rel=1e-3)


def test_smoothed_and_soft_targets_reach_the_loss() -> None:
    batch, model = _batch(), _network()
    scores = model(batch.x).detach()
    soft = Batch(batch.x, 0.7 * nn.functional.one_hot(batch.y, 3).float() + 0.1)
    expected = -(soft.y * scores.log_softmax(1)).sum(1).mean().item()
    assert _step(PLAIN, _network(), soft) == pytest.approx(expected, rel=1e-6)
    assert _step(replace(PLAIN, label_smoothing=0.3), _network(), batch) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_steps_like_float32(precision: str) -> None:
    full, mixed = _network(), _network()
    _step(PLAIN, full, _batch())
    _step(replace(PLAIN, precision=precision, clip_norm=100.0), mixed, _batch())
    torch.testing.assert_close(mixed.state_dict(), full.state_dict(), rtol=0.02, atol=2e-3)
    assert not torch.equal(mixed[0].weight, full[0].weight)
    assert mixed[0].weight.dtype == torch.float32


def test_an_overflow_in_half_precision_skips_the_step_and_halves_the_scale() -> None:
    config = replace(PLAIN, precision="16-mixed", l1=0.1, clip_norm=1.0)
    model, fabric = _network(), make_fabric(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Run(config, model, fabric).step(_batch(6e4), 0.1)
    assert fabric.strategy.precision.state_dict()["scale"] == 2**15
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
