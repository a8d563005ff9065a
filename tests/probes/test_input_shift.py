"""Internal covariate shift as a change of distributions, where the shift was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.probes import InputShift, Step
from probes.networks import batch, convnet, loss_of, momentum, probed

UNITS = 6


def planted(model: nn.Sequential, shift: Tensor, scale: float) -> dict[str, dict[str, float]]:
    """Read the probe for a step that multiplies the first weight by ``scale`` and adds ``shift`` to its bias."""
    x = torch.randn(4000, UNITS, generator=torch.Generator().manual_seed(1)).double()
    first = model[0]
    frozen = first.weight.detach().clone()

    def closure() -> Tensor:
        model(x)
        # Linear in the parameters, so that plain descent at rate 1 does exactly what is planted.
        return -((scale - 1) * (frozen * first.weight).sum() + (shift * first.bias).sum())

    return probed(InputShift(model), model, closure, torch.optim.SGD(first.parameters(), lr=1.0)).layers


def two_layers(between: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(UNITS, UNITS), *([between] if between else []), nn.Linear(UNITS, 2)]
    model = nn.Sequential(*layers).double()
    nn.init.zeros_(model[0].bias)
    return model


def inputs(model: nn.Sequential) -> np.ndarray:
    x = torch.randn(4000, UNITS, generator=torch.Generator().manual_seed(1)).double()
    return model[0](x).detach().numpy()


def test_a_planted_shift_of_means() -> None:
    model, shift = two_layers(), torch.linspace(-2, 3, UNITS).double()
    deviations = shift.numpy() / inputs(model).std(0)
    found = planted(model, shift, scale=1.0)
    assert list(found) == ["0", "1"]
    assert found["0"] == {"mean_shift": 0, "std_ratio": 1, "distance": 0}  # the data do not move
    assert found["1"]["mean_shift"] == pytest.approx(np.sqrt(np.mean(deviations**2)), rel=1e-9)
    assert found["1"]["distance"] == pytest.approx(np.mean(np.abs(deviations)), rel=1e-9)
    assert found["1"]["std_ratio"] == pytest.approx(1, rel=1e-12)


def test_a_planted_change_of_scale() -> None:
    model = two_layers()
    u = inputs(model)
    found = planted(model, torch.zeros(UNITS).double(), scale=1.5)["1"]
    assert found["std_ratio"] == pytest.approx(1.5, rel=1e-9)
    assert found["mean_shift"] == pytest.approx(np.sqrt(np.mean((0.5 * u.mean(0) / u.std(0)) ** 2)), rel=1e-9)
    assert found["distance"] == pytest.approx(np.mean(np.abs(0.5 * u).mean(0) / u.std(0)), rel=1e-9)
    # Of a normal distribution about 0 multiplied by s: |s - 1| sqrt(2 / pi) deviations.
    assert found["distance"] == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.02)


def test_nothing_planted_is_nothing_measured_where_two_batches_would_differ() -> None:
    model = two_layers()
    found = planted(model, torch.zeros(UNITS).double(), scale=1.0)["1"]
    assert found == {"mean_shift": 0, "std_ratio": 1, "distance": 0}
    u = inputs(model)
    halves = np.sort(u[:2000], 0), np.sort(u[2000:], 0)
    assert np.mean(np.abs(halves[1] - halves[0]).mean(0) / halves[0].std(0)) > 0.02  # the naive form: another batch


@pytest.mark.parametrize("make", [nn.BatchNorm1d, batchnorm.BatchNorm1d])
def test_normalization_takes_a_planted_shift_out(make: type[nn.Module]) -> None:
    shift = torch.linspace(-2, 3, UNITS).double()
    found = planted(two_layers(make(UNITS)), shift, scale=1.5)["2"]
    # Not all of it: eps is not multiplied.
    assert found["mean_shift"] < 1e-12
    assert found["distance"] < 1e-4
    assert planted(two_layers(), shift, scale=1.5)["1"]["distance"] > 1


def test_units_of_images_are_channels_and_those_that_are_constant_do_not_count() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 3, padding=1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0, 0.0]).view(3, 1, 1, 1))
        model[0].bias.zero_()
    x = torch.randn(50, 1, 6, 7, generator=torch.Generator().manual_seed(0)).double()

    def closure() -> Tensor:
        model(x)
        return -model[0].bias.sum()

    found = probed(InputShift(model), model, closure, torch.optim.SGD(model.parameters(), lr=1.0)).layers["1"]
    std = x.std(correction=0).item()
    assert found["distance"] == pytest.approx((1 / std + 1 / (2 * std)) / 2)


def test_a_layer_that_is_called_twice_is_read_twice() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    found = probed(InputShift(model), model, loss_of(model, torch.randn(8, 4), torch.arange(8) % 4), momentum(model))
    assert list(found.layers) == ["0", "0 (call 2)"]
    assert found.layers["0"]["distance"] == 0 < found.layers["0 (call 2)"]["distance"]


def test_dropout_masks_are_the_same_before_and_after() -> None:
    model = convnet()
    found = probed(InputShift(model), model, loss_of(model, *batch()), momentum(model, lr=0.0)).layers
    assert list(found) == ["0", "2.conv1", "2.conv2", "5", "9"]
    assert all(layer == {"mean_shift": 0, "std_ratio": 1, "distance": 0} for layer in found.values())


def test_a_network_that_diverges_is_nan_and_silent() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=float("inf"))
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    loss_of(model, x, y)().backward()
    layer = InputShift(model).measure(Step(model, loss_of(model, x, y), optimizer)).layers["1"]
    assert np.isnan(layer["distance"])
