"""The three programs of a course note on batch normalization, diagnosed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import batchnorm

TARGETS = torch.tensor([[0.0], [1.0]])


def squared(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return ((torch.sigmoid(output) - batch[1]) ** 2).sum()


def trained(x: Tensor, steps: int, momentum: float = 0.1) -> nn.Sequential:
    """Two optimizers and a sum of squares, as in the note."""
    torch.manual_seed(0)
    network, network1 = nn.Linear(1, 1), nn.BatchNorm1d(1, momentum=momentum)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.04)
    optimizer1 = torch.optim.Adam(network1.parameters(), lr=0.04)
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer1.zero_grad()
        loss = squared(network1(network(x)), (x, TARGETS))
        loss.backward()
        optimizer.step()
        optimizer1.step()
    return nn.Sequential(network, network1)


def test_eval_is_the_square_root_of_one_half_of_train() -> None:
    """-8.2226 against -5.8143: two values per channel, biased against unbiased variance."""
    x = torch.tensor([[100_000.0], [200_000.0]])
    model = trained(x, 400, momentum=1.0)
    with torch.no_grad():
        ratio = model.eval()(x) / in_training(model)(x)
    torch.testing.assert_close(ratio, torch.full((2, 1), 5.8143 / 8.2226), rtol=1e-3, atol=0)
    found = batchnorm.diagnose(model, [(x, TARGETS)], loss=squared)
    named = {cause.cause: cause for cause in found.causes}
    assert found.causes[0].cause == "few-values"
    sentence = named["few-values"].evidence[0]
    assert "2 values per channel" in sentence
    assert f"{math.sqrt(2):.4g}" in sentence


def in_training(model: nn.Sequential) -> nn.Sequential:
    """With the same weights, and the statistics of the batch."""
    norm = nn.BatchNorm1d(1, track_running_stats=False)
    norm.load_state_dict({"weight": model[1].weight.detach(), "bias": model[1].bias.detach()})
    return nn.Sequential(model[0], norm)


def test_momentum_zero() -> None:
    x = torch.tensor([[100_000.0], [200_000.0]])
    found = batchnorm.diagnose(trained(x, 50, momentum=0.0), [(x, TARGETS)], loss=squared)
    assert found.causes[0].cause == "momentum-zero"


def test_inputs_of_2e13_leave_the_layer_before_without_a_gradient() -> None:
    """The output does not depend on the scale of the layer before: its gradient is (all but) zero."""
    x = torch.tensor([[1.0], [2e13]])
    model = trained(x, 1)

    def one(m: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        optimizer = torch.optim.Adam(m.parameters(), lr=0.04)
        optimizer.zero_grad()
        squared(m(batch[0]), batch).backward()
        optimizer.step()

    found = batchnorm.diagnose(model, [(x, TARGETS)], training_step=one, loss=squared)
    row = next(row for row in found.probes if "gradients" in row.what)
    assert row.result.startswith("all but none in 0.weight: its output does not depend on the scale")


@pytest.mark.parametrize("high", [2e5, 2e13])
def test_the_gradient_is_that_small(high: float) -> None:
    x = torch.tensor([[1.0], [high]])
    model = trained(x, 1)
    model.zero_grad()
    squared(model(x), (x, TARGETS)).backward()
    felt = [abs(float(layer.weight.grad * layer.weight.detach())) for layer in model]
    assert felt[0] < 1e-3 * felt[1]
