"""What arrives at nonlinearities, against NumPy on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.probes import Step
from batchnorm.probes.activations import Activations
from batchnorm.probes.samples import LIMIT, histogram, sample
from batchnorm.probes.saturation import FLAT, NONLINEARITIES, SATURATED, rule_named, rule_of
from probes.networks import batch, convnet, loss_of, momentum, probed


def read(model: nn.Module, x: Tensor) -> dict:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if list(model.parameters()) else None
    probe = Activations(model)
    with probe.watch():
        y = model(x)
    return probe.measure(Step(model, lambda: y.sum(), optimizer)).layers


def assert_describes(found: dict, values: np.ndarray) -> None:
    """Every number of a reading from all values of a layer, in float64."""
    values = values.astype(np.float64)
    tolerance = 1e-6 * np.abs(values).max()  # inputs computed in float32, in another order
    assert found["mean"] == pytest.approx(values.mean(), abs=tolerance)
    assert found["std"] == pytest.approx(values.std(), abs=tolerance)
    for p in (15, 50, 85):
        assert found[f"p{p}"] == pytest.approx(np.percentile(values, p), abs=tolerance)
    bins = found["histogram"]
    counts, edges = np.histogram(values, bins=32)
    assert (bins["low"], bins["high"]) == pytest.approx((edges[0], edges[-1]), abs=tolerance)
    assert sum(bins["counts"]) == values.size
    assert np.abs(np.array(bins["counts"]) - counts).sum() <= 4  # a value on an edge may fall to either side


def inputs(model: nn.Sequential, x: Tensor) -> list[np.ndarray]:
    """Inputs of the nonlinearities of `convnet` in training mode, step by step."""
    first, bn, res, drop, flat, dense, bn1, *_ = model
    with torch.no_grad():
        z1 = nn.functional.batch_norm(first(x), None, None, bn.weight, bn.bias, True)
        y = nn.functional.silu(z1)
        z2 = nn.functional.batch_norm(res.conv1(y), None, None, res.bn1.weight, res.bn1.bias, True)
        z3 = nn.functional.batch_norm(res.conv2(z2.relu()), None, None, res.bn2.weight, res.bn2.bias, True) + y
        z4 = nn.functional.batch_norm(dense(flat(drop(z3.relu()))), None, None, bn1.weight, bn1.bias, True)
    return [z.numpy() for z in (z1, z2, z3, z4)]


@pytest.mark.parametrize("converted", [False, True])
def test_every_number_is_that_of_all_values(converted: bool) -> None:
    model, x = convnet(), batch()[0]
    torch.manual_seed(3)
    expected = inputs(model, x)
    torch.manual_seed(3)
    found = read(batchnorm.convert(model) if converted else model, x)
    # What is fused into a layer has the layer's name; a module called twice is told apart.
    names = ["1", "2.bn1", "2.bn2", "6"] if converted else ["1", "2.relu", "2.relu (call 2)", "7"]
    assert list(found) == names
    for name, z in zip(names, expected, strict=True):
        assert_describes(found[name], z)
    relu, sigmoid = found[names[1]], found[names[3]]
    assert relu["saturated"] == pytest.approx((expected[1] <= 0).mean(), abs=2 / expected[1].size)
    end = 1 / (1 + np.exp(-expected[3].astype(np.float64)))
    assert sigmoid["saturated"] == ((end < 0.05) | (end > 0.95)).mean()


def test_the_input_of_a_relu_in_place_is_seen_before_it_is_overwritten() -> None:
    x = torch.randn(64, 5)
    found = read(nn.Sequential(nn.ReLU(inplace=True)), x.clone())
    assert_describes(found["0"], x.numpy())
    assert found["0"]["p15"] < 0


@pytest.mark.parametrize("shape", [(64, 7), (64, 6, 11), (32, 4, 9, 9)])
@pytest.mark.parametrize("fused", [False, True])
def test_dead_units_are_off_for_every_example(shape: tuple[int, ...], fused: bool) -> None:
    x = torch.randn(shape) + 3
    x[:, 1] -= 20  # dead
    x[:, 3] -= 20
    x[-1, 3] = 1.0  # off but for one example (and for one position, where there are some)
    if len(shape) > 2:
        x[-1, 3].view(-1)[1:] = -1.0
    if not fused:
        found = read(nn.Sequential(nn.ReLU()), x)["0"]
        assert found["dead"] == 1 / shape[1]
        assert found["saturated"] == (x <= 0).double().mean().item()
        return
    layer = {2: batchnorm.BatchNorm1d, 3: batchnorm.BatchNorm1d, 4: batchnorm.BatchNorm2d}[len(shape)]
    layer = layer(shape[1], activation="relu").eval()
    residual = x - 1e-3
    probe = Activations(layer)
    with probe.watch(), torch.no_grad():
        layer.bias.fill_(-1e-6)
        layer.weight.fill_(1e-3)
        layer(x, residual)
    found = probe.measure(Step(layer, lambda: x.sum(), momentum(layer))).layers[""]
    assert found["dead"] == 1 / shape[1]
    assert_describes(found, (1e-3 * x / np.sqrt(1 + 1e-5) - 1e-6 + residual).numpy())


class Tokens(nn.Module):
    """Two dense layers on (N, L, D), and a convolution on (N, C, L) after them, each with a ReLU behind."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm, self.act = nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU()
        self.conv, self.act2 = nn.Conv1d(6, 5, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.conv(self.act(self.norm(self.dense(x)))))


def test_units_of_tokens_are_in_the_last_axis() -> None:
    model = Tokens()
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([10.0, 10, -100, 10, 10]))  # one unit of five is off, for each token
        model.conv.weight.zero_()
        model.conv.bias.copy_(torch.tensor([1.0, -1, 1, 1, 1]))
    found = read(model, torch.randn(8, 6, 4))
    assert found["act"]["dead"] == 1 / 5
    assert found["act2"]["dead"] == 1 / 5  # of its channels, axis 1, though the last axis has five places too


def test_a_unit_is_dead_only_if_the_whole_batch_says_so() -> None:
    """The sample misses the one value that is alive."""
    x = torch.full((64, 10, 40, 40), -1.0)
    x[5, 2, 0, 1] = 1.0
    taken = sample(x)
    assert taken.numel() <= LIMIT
    assert (taken < 0).all()
    assert read(nn.Sequential(nn.ReLU()), x)["0"]["dead"] == 0.9


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_large_inputs_are_sampled_evenly(memory_format: torch.memory_format) -> None:
    """Every unit, all columns and rows alike: an image whose columns differ, and a stride that meets them all."""
    columns = torch.arange(32.0).repeat(32, 1) + 100 * torch.arange(32.0).unsqueeze(1)
    x = (columns + torch.randn(64, 8, 1, 1)).contiguous(memory_format=memory_format)
    taken = sample(x)
    assert taken.shape[:2] == (64, 8)
    assert LIMIT / 3 < taken.numel() <= LIMIT
    found = read(nn.Sequential(nn.Sigmoid()), x)["0"]
    assert found["mean"] == pytest.approx(x.mean().item(), rel=0.01)
    for p in (15, 50, 85):
        assert found[f"p{p}"] == pytest.approx(np.percentile(x.numpy(), p), rel=0.02, abs=20)
    # The plain stride meets the same few columns again and again.
    naive = x.flatten(2)[0, 0, ::8] % 100 - x[0, 0, 0, 0] % 100
    assert len(naive.round().unique()) <= 8
    sampled = taken[0, 0] - x[0, 0, 0, 0]
    assert len((sampled % 100).round().unique()) == 32


def test_more_examples_and_units_than_the_limit() -> None:
    taken = sample(torch.randn(1000, 1500))
    assert taken.shape[1] == 1500
    assert LIMIT / 2 < taken.numel() <= LIMIT
    assert sample(torch.randn(2, 3 * LIMIT)).shape == (1, 3 * LIMIT, 1)


def test_a_network_that_diverged_is_read_quietly() -> None:
    x = torch.tensor([[1.0, torch.nan], [torch.inf, -2.0], [0.5, 3.0]])
    found = read(nn.Sequential(nn.ReLU()), x)["0"]
    assert np.isnan(found["mean"])
    assert np.isnan(found["p50"])
    assert found["histogram"]["low"] == -2
    assert sum(found["histogram"]["counts"]) == 4
    assert sum(histogram(np.array([np.nan]))["counts"]) == 0
    assert histogram(np.full(5, 2.0))["counts"][-1] == 5


@pytest.mark.parametrize("cls", NONLINEARITIES)
def test_saturated_inputs_have_no_slope_or_are_near_an_end(cls: type[nn.Module]) -> None:
    module = nn.Threshold(0.1, 0.1) if cls is nn.Threshold else cls()
    u = torch.linspace(-12, 12, 4802, dtype=torch.float64)  # not the ends of ranges themselves
    v = u.clone().requires_grad_()
    module = module.double()
    y = module.eval()(v * 1)
    (slope,) = torch.autograd.grad(y.sum(), v)
    saturated = rule_of(module)(u)
    if cls in (nn.LeakyReLU, nn.PReLU, nn.RReLU):
        assert not saturated.any()
    elif cls in (nn.Sigmoid, nn.Tanh, nn.Softsign):
        low, high = (0, 1) if cls is nn.Sigmoid else (-1, 1)
        near = 0.05 * (high - low)
        assert torch.equal(saturated, (y - low < near) | (high - y < near))
    else:
        assert torch.equal(saturated, slope.abs() < FLAT)
        assert saturated.any()
    assert not saturated[(u - 0.5).abs() < 0.3].any()


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh"])
def test_fused_activations_saturate_where_the_modules_do(name: str) -> None:
    modules = {
        "relu": nn.ReLU(),
        "relu6": nn.ReLU6(),
        "leaky_relu": nn.LeakyReLU(),
        "silu": nn.SiLU(),
        "hardswish": nn.Hardswish(),
        "gelu": nn.GELU(),
        "sigmoid": nn.Sigmoid(),
        "tanh": nn.Tanh(),
    }
    u = torch.linspace(-9, 9, 1001)
    assert torch.equal(rule_named(name)(u), rule_of(modules[name])(u))


def test_with_accumulated_gradients_the_last_share_is_read() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    probe = Activations(model)
    first, last = torch.randn(8, 2), torch.randn(8, 2)
    with probe.watch():
        for x in (first, last):
            model(x).sum().backward()
    found = probe.measure(Step(model, lambda: model(last).sum(), momentum(model))).layers
    assert list(found) == ["1"]
    assert_describes(found["1"], model[0](last).detach().numpy())


def test_recomputation_in_the_backward_pass_is_not_a_second_call() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    model = Checkpointed()
    probe = Activations(model)
    with probe.watch():
        model(torch.randn(4, 3)).square().sum().backward()
    assert list(probe.measure(Step(model, lambda: torch.zeros(()), momentum(model))).layers) == ["inner.1"]


def test_half_precision_and_autocast() -> None:
    model, (x, y) = convnet(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reading = probed(Activations(model), model, loss_of(model, x, y), momentum(model))
    assert list(reading.layers) == ["1", "2.relu", "2.relu (call 2)", "7"]
    assert all(np.isfinite(layer["std"]) for layer in reading.layers.values())


def test_a_compiled_model_is_seen() -> None:
    torch.compiler.reset()
    model = torch.compile(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()), backend="eager")
    x = torch.randn(8, 2)
    model(x)
    assert_describes(read(model, x)["_orig_mod.1"], model._orig_mod[0](x).detach().numpy())
    torch.compiler.reset()


def test_saturated_means_near_an_end_of_the_range_or_without_gradient():
    u = torch.linspace(-5, 5, 2001)
    sigmoid = u.sigmoid()
    assert torch.equal(SATURATED["sigmoid"](u), (sigmoid < 0.05) | (sigmoid > 0.95))
    assert torch.equal(SATURATED["tanh"](u), u.tanh().abs() > 0.9)  # 5% of the range from -1 to 1
    v = u.clone().requires_grad_()
    v.relu().sum().backward()
    assert torch.equal(SATURATED["relu"](u), v.grad == 0)
