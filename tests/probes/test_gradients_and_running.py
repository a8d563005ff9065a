"""Norms of gradients, and running against batch statistics, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.probes import Step
from batchnorm.probes.gradients import Gradients
from batchnorm.probes.running import Running
from probes.networks import batch, convnet, loss_of, momentum, probed


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_norms_and_histograms_of_the_gradients(scale: float) -> None:
    torch.manual_seed(0)
    model = convnet()
    optimizer = momentum(model)
    reading = probed(Gradients(model), model, loss_of(model, *batch()), optimizer, scale)
    assert list(reading.layers) == ["0", "1", "2.conv1", "2.bn1", "2.conv2", "2.bn2", "5", "6", "9"]
    everything = []
    for name, found in reading.layers.items():
        own = dict(model.get_submodule(name).named_parameters(recurse=False))
        weights = np.concatenate([p.detach().double().numpy().ravel() for p in own.values()])
        gradients = np.concatenate([p.grad.double().numpy().ravel() for p in own.values()]) / scale
        everything.append(gradients)
        assert found["weight_norm"] == pytest.approx(np.linalg.norm(weights), rel=1e-12)
        assert found["gradient_norm"] == pytest.approx(np.linalg.norm(gradients), rel=1e-12)
        assert found["gradient_rms"] == pytest.approx(np.sqrt(np.mean(gradients**2)), rel=1e-12)
        counts, edges = np.histogram(gradients, bins=32)
        assert found["histogram"]["low"] == pytest.approx(edges[0], rel=1e-12)
        assert found["histogram"]["high"] == pytest.approx(edges[-1], rel=1e-12)
        assert found["histogram"]["counts"] == counts.tolist()
    assert reading.scalars == {"gradient_norm": pytest.approx(np.linalg.norm(np.concatenate(everything)), rel=1e-12)}


def test_gradients_too_small_to_square_in_float32() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3e-30, 4e-30]])
    found = Gradients(model).measure(Step(model, lambda: torch.zeros(()), momentum(model)))
    assert found.scalars["gradient_norm"] == pytest.approx(5e-30, rel=1e-6)
    assert torch.square(model.weight.grad).sum() == 0  # the naive form


def test_what_has_no_gradient_is_not_listed_and_what_is_shared_counts_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 6, bias=False)
            self.embedding = nn.Embedding(6, 4, sparse=True)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.idle = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4))
            self.last.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.frozen(self.embedding(tokens)) * self.scale

    model = Tied()
    reading = probed(Gradients(model), model, lambda: model(torch.tensor([1, 1, 3])).square().sum(), _sgd(model))
    assert list(reading.layers) == ["", "last"]
    assert reading.layers["last"]["gradient_norm"] == pytest.approx(model.last.weight.grad.to_dense().norm().item())


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, batchnorm.BatchNorm2d])
@pytest.mark.parametrize("training", [True, False])
def test_gap_and_ratio_of_shifted_data(make: type[nn.Module], training: bool) -> None:
    """Running statistics of one world, a batch of another: shifted by 2 and 4 deviations, of 9 times the variance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, 6, 6, generator=generator, dtype=torch.float64) * 3 + torch.tensor([2.0, 0, 4]).view(3, 1, 1)
    layer = make(3, dtype=torch.float64).train(training)
    probe = Running(layer)
    with probe.watch():
        layer(x)
    (found,) = probe.measure(Step(layer, lambda: x.sum(), momentum(layer))).layers.values()
    values = x.transpose(0, 1).flatten(1).numpy()
    gap = values.mean(1) / np.sqrt(1 + 1e-5)
    ratio = (values.var(1, ddof=1) + 1e-5) / (1 + 1e-5)
    assert found["mean_gap"] == pytest.approx(np.sqrt(np.mean(gap**2)), rel=1e-9)
    assert found["mean_gap"] == pytest.approx(np.sqrt((4 + 16) / 3), rel=0.1)
    for key, p in (("var_ratio_low", 10), ("var_ratio", 50), ("var_ratio_high", 90)):
        assert found[key] == pytest.approx(np.percentile(ratio, p), rel=1e-9)
        assert found[key] == pytest.approx(9, rel=0.15)
    if training:
        # After the batch has entered the running statistics, the gap would be smaller by 1 - momentum, and more.
        after = (values.mean(1) - layer.running_mean.numpy()) / np.sqrt(layer.running_var.numpy() + 1e-5)
        assert np.sqrt(np.mean(after**2)) < 0.8 * found["mean_gap"]


def test_statistics_that_agree_read_0_and_1() -> None:
    model, (x, y) = convnet(), batch()
    model = batchnorm.recalibrate(model.train(), [x])
    for layer in (model[3], model[8]):
        layer.p = 0.0
    found = probed(Running(model), model, loss_of(model, x, y), momentum(model)).layers
    assert list(found) == ["1", "2.bn1", "2.bn2", "6"]
    for layer in found.values():
        assert layer["mean_gap"] < 1e-6
        assert layer["var_ratio_low"] == pytest.approx(1, abs=1e-5)
        assert layer["var_ratio_high"] == pytest.approx(1, abs=1e-5)


def test_digits_survive_a_mean_of_a_million_deviations() -> None:
    x = (torch.randn(500, 2, dtype=torch.float64) + 1e6).float()
    layer = nn.BatchNorm1d(2)
    with torch.no_grad():
        layer.running_mean.copy_(x.double().mean(0) + 0.5)
        layer.running_var.copy_(x.double().var(0))
    expected = (x.double().mean(0) - layer.running_mean.double()) / layer.running_var.double().sqrt()
    probe = Running(layer)
    with probe.watch():
        layer(x)
    (found,) = probe.measure(Step(layer, lambda: x.sum(), momentum(layer))).layers.values()
    assert found["mean_gap"] == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-4)
    assert found["var_ratio"] == pytest.approx(1, rel=1e-5)


def test_a_layer_called_twice_is_one_population() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = batchnorm.BatchNorm1d(2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x) + self.bn(x[:7] * 5 + 1)

    model = Twice()
    probe = Running(model)
    x = torch.randn(7, 2, dtype=torch.float64)
    with probe.watch():
        model(x)
    found = probe.measure(Step(model, lambda: x.sum(), momentum(model))).layers["bn"]
    both = torch.cat([x, x * 5 + 1])
    assert found["mean_gap"] == pytest.approx(both.mean(0).square().mean().sqrt().item(), rel=1e-4)
    assert found["var_ratio"] == pytest.approx(np.median((both.var(0).numpy() + 1e-5) / (1 + 1e-5)), rel=1e-9)


def test_layers_without_running_statistics_and_empty_batches_are_left_out() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2), nn.BatchNorm1d(2))
    probe = Running(model)
    with probe.watch():
        model[0](torch.randn(4, 2))
        model[2](torch.randn(0, 2))
    assert probe.measure(Step(model, lambda: torch.zeros(()), momentum(model))).layers == {}
