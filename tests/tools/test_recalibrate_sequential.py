"""``mode="sequential"`` and ``prior=``: the statistics of the frozen network, or a blend with the stored ones."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.reference.statistics import Statistics, blend, to_rows
from tools.normalized import batches, layers, network


def frozen_inputs(model: nn.Module, data: list[Tensor]) -> dict[str, np.ndarray]:
    """Return the values of each channel, (count, C), that each layer gets from the network in eval mode."""
    model = copy.deepcopy(model).eval()
    seen: dict[str, list[np.ndarray]] = {name: [] for name in layers(model)}
    for name, layer in layers(model).items():
        layer.register_forward_pre_hook(
            lambda _m, args, name=name: seen[name].append(to_rows(args[0].double().numpy()))
        )
    with torch.no_grad():
        for x in data:
            model(x)
    return {name: np.concatenate(rows) for name, rows in seen.items()}


def assert_frozen(model: nn.Module, data: list[Tensor]) -> None:
    for name, rows in frozen_inputs(model, data).items():
        layer, deviation = layers(model)[name], rows.std(0, ddof=1)
        np.testing.assert_allclose((layer.running_mean.numpy() - rows.mean(0)) / deviation, 0, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(layer.running_var, deviation**2, rtol=1e-10, err_msg=name)


def doubles(sizes: tuple[int, ...] = (16, 16, 5, 9)) -> list[Tensor]:
    return [x.double() for x in batches(sizes)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [(16, 16, 5, 9), (1, 1, 2, 1), (40,)])
def test_each_layer_holds_the_statistics_of_the_frozen_network(sizes: tuple[int, ...], training: bool) -> None:
    data = doubles(sizes)
    given = network().double().train(training)
    model, report = batchnorm.recalibrate(given, data, mode="sequential", report=True)
    assert_frozen(model, data)
    for name, rows in frozen_inputs(model, data).items():
        assert report[name].numbers["values"] == len(rows)
        assert layers(model)[name].num_batches_tracked == len(data)


def test_one_pass_holds_other_statistics_than_the_frozen_network() -> None:
    data = doubles()
    model = batchnorm.recalibrate(network().double(), data)
    off = {
        name: np.abs(rows.var(0, ddof=1) / layers(model)[name].running_var.numpy() - 1).max()
        for name, rows in frozen_inputs(model, data).items()
    }
    assert off["1"] < 1e-12  # nothing is normalized before it
    assert min(off["6"], off["9"], off["12"]) > 0.01


def test_statistics_that_are_not_finite_are_replaced() -> None:
    model, data = network().double(), doubles()
    for layer in layers(model).values():
        layer.running_mean.fill_(torch.nan)
        layer.running_var.fill_(torch.inf)
    assert_frozen(batchnorm.recalibrate(model, data, mode="sequential"), data)


class Branches(nn.Module):
    """Layers that are registered in another order than they are called, two of them beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.last = batchnorm.BatchNorm2d(3)
        self.left = nn.BatchNorm2d(3)
        self.right = nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm2d(3)
        self.first = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.relu(self.left(x)) * torch.tanh(self.right(x**2)))


def test_the_order_is_that_of_the_calls() -> None:
    model, report = batchnorm.recalibrate(Branches().double(), doubles(), mode="sequential", report=True)
    assert report["unused"].reason == "no batch reached it"
    del model.unused
    assert_frozen(model, doubles())


class Levels(nn.Module):
    """A head whose normalization all levels of a pyramid share; the second call does not depend on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.head(x), self.head(2 * x[:, :, ::2, ::2])]


class Loop(nn.Module):
    """A layer that is given what it has made itself."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.bn, self.gain = nn.BatchNorm2d(3), gain

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.gain * self.bn(x) + 1)


@pytest.mark.parametrize("model", [Levels(), Loop(0.5)], ids=["levels", "loop"])
def test_layers_that_are_called_several_times(model: nn.Module) -> None:
    data = doubles()
    model, report = batchnorm.recalibrate(model.double(), data, mode="sequential", report=True)
    assert_frozen(model, data)
    rows = sum(len(x) for x in data)
    assert all(row.numbers["values"] == rows * (64 + (16 if "head" in row.name else 64)) for row in report)


def test_a_loop_that_does_not_settle_is_an_error() -> None:
    model = Loop(1e6).double()
    before = copy.deepcopy(model.state_dict())
    data = [x - x.mean() for x in doubles()]
    with pytest.raises(ValueError, match=r"did not settle in 50 sweeps.*Try mode='one-pass'"):
        batchnorm.recalibrate(model, data, mode="sequential", inplace=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_forward_ends_at_the_layer_that_is_measured() -> None:
    model = network().double()
    calls = {"1": 0, "12": 0}
    for name in calls:
        model[int(name)].register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    batchnorm.recalibrate(model, doubles(), mode="sequential", inplace=True)
    assert calls == {"1": 4 * 4, "12": 4}  # a first pass; then the layers behind the first; none behind the last


def test_a_loader_that_shuffles_and_augments_repeats_itself() -> None:
    x = torch.cat(doubles())

    class Noisy(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, i: int) -> Tensor:
            return x[i] + torch.randn(3, 8, 8)

    loader = torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True)
    model = network().double()
    state = torch.get_rng_state()
    model = batchnorm.recalibrate(model, loader, mode="sequential")
    assert torch.equal(torch.get_rng_state(), state)
    assert_frozen(model, list(loader))


@pytest.mark.parametrize("mode", ["one-pass", "sequential"])
def test_a_prior_blends_by_the_law_of_total_variance(mode: Any) -> None:
    given, data = network().double(), doubles()
    model = batchnorm.recalibrate(given, data, mode=mode, prior=0.3)
    if mode == "sequential":
        seen = frozen_inputs(model, data)
    else:
        plain = batchnorm.recalibrate(given, data)
        seen = {}
    for name, layer in layers(model).items():
        old = layers(given)[name]
        if mode == "sequential":
            mean, var = seen[name].mean(0), seen[name].var(0, ddof=1)
        else:
            mean, var = (getattr(layers(plain)[name], key).numpy() for key in ("running_mean", "running_var"))
        old_mean, old_var = old.running_mean.numpy(), old.running_var.numpy()
        of_mean, of_both = blend(Statistics(old_mean, old_var, 1), Statistics(mean, var, 1), 0.3)
        np.testing.assert_allclose(layer.running_mean, of_mean, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(layer.running_var, of_both, rtol=1e-10)
        assert (np.abs((0.3 * old_var + 0.7 * var) / of_both - 1) > 0.01).any()  # the average of variances is not that
        assert layer.num_batches_tracked == 17 + 4


def test_a_prior_of_what_was_seen_before_is_the_pooled_population() -> None:
    data = doubles((30, 10))
    before = batchnorm.recalibrate(nn.Sequential(nn.BatchNorm2d(3)).double(), data[:1])
    after = batchnorm.recalibrate(before, data[1:], prior=30 / 40)[0]
    rows = to_rows(torch.cat(data).numpy())
    np.testing.assert_allclose(after.running_mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(after.running_var, rows.var(0), rtol=2 / (10 * 64))  # each part has its own m / (m - 1)


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(t.nan_to_num(7), before[n].nan_to_num(7)) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "parallel"}, r"mode must be one of \['one-pass', 'sequential'\]; got 'parallel'"),
        ({"prior": 1.0}, r"prior must be in \[0, 1\); got 1.0"),
        ({"prior": -0.1}, r"prior must be in \[0, 1\); got -0.1"),
        ({"tolerance": 0.0}, r"tolerance must be a positive number of deviations, or None; got 0.0"),
        ({"tolerance": float("nan")}, "tolerance must be a positive number"),
        (
            {"tolerance": 0.5},
            r"tolerance=0.5 was not reached in 4 batches: the uncertainty is unknown.*at least 8 batches",
        ),
    ],
)
def test_bad_options_change_nothing(options: dict[str, Any], message: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"(?s){message}"):
        batchnorm.recalibrate(model, batches(), inplace=True, **options)
    assert unchanged(model, before)


def test_bad_loaders_and_models_change_nothing() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"gave 4 batches the first time and 0 later. A generator\? Try list"):
        batchnorm.recalibrate(model, (x for x in batches()), inplace=True, mode="sequential")
    for empty in ([], iter(())):
        with pytest.raises(ValueError, match="needs at least one batch; the loader gave none"):
            batchnorm.recalibrate(model, empty, inplace=True, mode="sequential")
    for loader, kind in ((torch.zeros(8, 3, 8, 8), "Tensor"), (5, "int"), ({"x": 1}, "dict"), ("data", "str")):
        with pytest.raises(TypeError, match=rf"loader must be an iterable of batches; got a {kind}.*\[batch\]"):
            batchnorm.recalibrate(model, loader, inplace=True)
    with pytest.raises(TypeError, match="a batch must be a tensor") as raised:
        batchnorm.recalibrate(model, [batches()[0], {"image": 1}], inplace=True, mode="sequential")
    assert "in batch 2; the model is as it was" in raised.value.__notes__[0]
    for layer in layers(model).values():
        layer.running_var.fill_(torch.nan)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="and in the stored statistics: prior=0 leaves them out"):
        batchnorm.recalibrate(model, batches(), inplace=True, prior=0.5)
    assert unchanged(model, before)
    with pytest.raises(ValueError, match=r"this Linear has none\. Recalibrate before folding"):
        batchnorm.recalibrate(nn.Linear(2, 2), [torch.zeros(4, 2)])
