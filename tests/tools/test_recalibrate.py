"""Population statistics against float64 NumPy on the inputs of each layer, and that nothing else changes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm
import tolerances
from batchnorm.kernels.interface import Statistics
from batchnorm.reference import batch_norm as reference
from batchnorm.reference.statistics import exact_population, naive_var, population_statistics, to_rows, unbiased_var
from batchnorm.statistics.population import merge
from tools.normalized import batches, inputs_by_layer, layers, network


def assert_statistics(layer: Any, mean: np.ndarray, var: np.ndarray) -> None:
    """The exact numbers, but for the arithmetic of one batch (float32 around its mean) and one rounding at the end."""
    error = tolerances.STATISTIC_ULPS * tolerances.storage_eps(layer.running_mean.dtype)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=error, atol=error * np.sqrt(var).min())
    np.testing.assert_allclose(layer.running_var, var, rtol=error, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_those_of_all_values_that_reached_each_layer(training: bool) -> None:
    model, data = network().train(training), batches()
    model, report = batchnorm.recalibrate(model, data, report=True)
    seen = inputs_by_layer(network(), data)
    assert len(seen) == 4
    for name, layer in layers(model).items():
        values = np.concatenate([to_rows(x) for x in seen[name]])
        assert_statistics(layer, values.mean(0), values.var(0, ddof=1))
        assert layer.num_batches_tracked == 4
        assert report[name].done == "recalibrated"
        assert report[name].reason == ""
    # The forms that come to mind first are not the same numbers here: neither of them weighs batches by their sizes,
    # nor has the variance between them.
    first = seen["1"]
    means = np.array([to_rows(x).mean(0) for x in first])
    variances = np.array([to_rows(x).var(0, ddof=1) for x in first])
    assert (np.abs(means.mean(0) / layers(model)["1"].running_mean.numpy() - 1) > 0.01).all()
    assert (variances.mean(0) / layers(model)["1"].running_var.numpy() < 0.99).any()
    assert (np.abs(variances.mean(0) / layers(model)["1"].running_var.numpy() - 1) > 0.01).all()


def test_outputs_in_eval_mode_are_those_of_the_reference() -> None:
    model, x = nn.Sequential(copy.deepcopy(network()[9])).double(), torch.randn(50, 5).double() * 3 + 2
    layer = batchnorm.recalibrate(model, x.split(20)).eval()[0]
    mean, var, count = exact_population([x.numpy()])
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    expected, _ = reference.forward_test(x.numpy(), mean, unbiased_var(var, count), weight, bias, eps=layer.eps)
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-12, atol=1e-12)


def test_the_split_into_batches_does_not_matter_to_the_first_layer() -> None:
    x = torch.cat(batches())
    whole, *others = (batchnorm.recalibrate(network(), x.split(size))[1] for size in (len(x), 2, 7, 44))
    for layer in others:
        # float64 sums in another order, then rounded to float32: at most to the neighbour.
        torch.testing.assert_close(layer.running_mean, whole.running_mean, rtol=2e-7, atol=1e-7)
        torch.testing.assert_close(layer.running_var, whole.running_var, rtol=2e-7, atol=0)


def test_averaged_is_algorithm_2_as_printed() -> None:
    data = batches((8, 8, 8))
    model = batchnorm.recalibrate(network(), data, variance="averaged")
    for name, xs in inputs_by_layer(network(), data).items():
        mean, var = population_statistics(xs)
        assert_statistics(layers(model)[name], mean, var)
    # With unequal counts: the sum of squares around the batch means over what is left of the count.
    data = batches()
    model = batchnorm.recalibrate(network(), data, variance="averaged")
    first = [to_rows(x) for x in inputs_by_layer(network(), data)["1"]]
    squares = sum(((x - x.mean(0)) ** 2).sum(0) for x in first)
    assert_statistics(model[1], np.concatenate(first).mean(0), squares / (sum(map(len, first)) - 4))


def test_digits_survive_a_mean_of_a_million_deviations() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(300, 4, dtype=torch.float64, generator=generator) + 1e6).float()
    data = list(x.split([128, 128, 44]))
    layer = batchnorm.recalibrate(nn.Sequential(nn.BatchNorm1d(4)), data)[0]
    values = x.double().numpy()
    assert_statistics(layer, values.mean(0), values.var(0, ddof=1))
    one_pass = naive_var(x.numpy())
    assert (np.abs(one_pass / values.var(0) - 1) > 1).all()
    # Torch's own running variance, averaged over batches in float32 as in torch.optim.swa_utils.update_bn, misses the
    # batch means' variance; merged in float32, the means themselves are too coarse.
    parts = [(b.double().mean(0, keepdim=True), b.double().var(0, False, keepdim=True)) for b in data]
    counts = (torch.tensor([[float(len(b))]]) for b in data)
    float32 = [Statistics(mean.float(), var.float(), n) for (mean, var), n in zip(parts, counts, strict=True)]
    merged = functools.reduce(merge, float32)
    assert (np.abs(merged.var[0].numpy() / values.var(0) - 1) > 100 * tolerances.storage_eps(torch.float32)).any()


class Pair(NamedTuple):
    image: Tensor
    target: int


@pytest.mark.parametrize("kind", ["list", "generator", "pairs", "lists", "named tuples", "DataLoader", "dicts"])
def test_what_a_loader_may_yield(kind: str) -> None:
    x = torch.cat(batches())
    parts = x.split(20)
    how: dict[str, Any] = {}
    loader: Any = list(parts)
    if kind == "generator":
        loader = (part for part in parts)
    elif kind == "pairs":
        loader = [(part, torch.zeros(len(part))) for part in parts]
    elif kind == "lists":
        loader = [[part, None] for part in parts]
    elif kind == "named tuples":
        loader, how = [Pair(part, 1) for part in parts], {"forward": lambda model, pair: model(pair.image)}
    elif kind == "DataLoader":
        loader = DataLoader(TensorDataset(x), batch_size=20, shuffle=True)
    elif kind == "dicts":
        loader, how = [{"input": part} for part in parts], {"forward": lambda model, batch: model(**batch)}
    found = batchnorm.recalibrate(network(), loader, **how)
    expected = batchnorm.recalibrate(network(), [x])
    torch.testing.assert_close(found[1].running_var, expected[1].running_var, rtol=2e-7, atol=0)


def test_a_number_of_batches_is_a_limit() -> None:
    taken: list[int] = []

    def loader() -> Iterator[Tensor]:
        for k, x in enumerate(batches()):
            taken.append(k)
            yield x

    model = batchnorm.recalibrate(network(), loader(), batches=2)
    assert taken == [0, 1]  # an expensive third one is not drawn
    expected = batchnorm.recalibrate(network(), batches()[:2])
    for name, layer in layers(model).items():
        assert torch.equal(layer.running_var, layers(expected)[name].running_var)
    assert model[1].num_batches_tracked == 2
    assert batchnorm.recalibrate(network(), batches(), batches=100)[1].num_batches_tracked == 4


def test_dropout_is_off_and_other_layers_are_in_eval_mode() -> None:
    modes: dict[str, bool] = {}
    graphs: list[bool] = []
    model = network().train()
    model.register_forward_hook(lambda _m, _x, y: graphs.append(y.requires_grad))
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, _x, name=name: modes.__setitem__(name, m.training))
    batchnorm.recalibrate(model, batches(), inplace=True)
    assert {name for name, training in modes.items() if training} == {"1", "6", "9", "12"}
    assert graphs == [False] * 4  # nothing is kept for a backward pass
    with_dropout = copy.deepcopy(network()).train()
    seen: list[np.ndarray] = []
    with_dropout[6].register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().double().numpy()))
    for x in batches():
        with_dropout(x)
    naive = np.concatenate([to_rows(x) for x in seen])
    assert (np.abs(naive.var(0, ddof=1) / model[6].running_var.numpy() - 1) > 0.05).any()


def test_frozen_layers_stay_and_normalize_with_what_they_have() -> None:
    model = network().train()
    model[1].eval()
    before = {name: b.clone() for name, b in model[1].named_buffers()}
    changed, report = batchnorm.recalibrate(model, batches(), report=True)
    assert all(torch.equal(b, before[name]) for name, b in changed[1].named_buffers())
    assert report["1"].done == "left alone"
    assert report["1"].reason == "it is frozen: in eval mode, in a model in training mode"
    x = torch.cat(batches())
    with torch.no_grad():
        u = model[5](model[4](model[1](model[0](x)).relu()))
    values = to_rows(u.double().numpy())
    np.testing.assert_allclose(changed[6].running_var, values.var(0, ddof=1), rtol=1e-5)


def test_a_layer_used_twice_counts_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = batchnorm.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(10 * self.bn(input=x)[:, :, ::2] + 1)

    data = batches()
    layer = batchnorm.recalibrate(Twice(), data).bn
    values = []
    for x in (x.double().numpy() for x in data):
        y = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
        values += [to_rows(x), to_rows(10 * y[:, :, ::2] + 1)]
    values = np.concatenate(values)
    np.testing.assert_allclose(layer.running_mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(layer.running_var, values.var(0, ddof=1), rtol=1e-6)
    assert layer.num_batches_tracked == 8


def test_a_converted_model_gets_the_same_statistics() -> None:
    data = batches()
    plain = batchnorm.recalibrate(network(), data)
    converted = batchnorm.recalibrate(batchnorm.convert(network()), data)
    for name, layer in layers(plain).items():
        other = layers(converted)[name]
        torch.testing.assert_close(other.running_mean, layer.running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.running_var, layer.running_var, rtol=1e-5, atol=0)


def test_a_compiled_model_runs_as_it_was_written() -> None:
    torch.compiler.reset()
    compiled, data = torch.compile(network(), backend="eager"), batches()
    compiled(data[0])
    compiled.load_state_dict({f"_orig_mod.{k}": v for k, v in network().state_dict().items()})
    compiled, report = batchnorm.recalibrate(compiled, data, report=True, inplace=True)
    assert {row.done for row in report} == {"recalibrated"}
    expected = batchnorm.recalibrate(network(), data)
    assert torch.equal(compiled._orig_mod[12].running_var, expected[12].running_var)
    torch.compiler.reset()


def test_layers_by_name() -> None:
    before = {name: layer.running_var.clone() for name, layer in layers(network()).items()}
    model, report = batchnorm.recalibrate(network(), batches(), layers=["6"], report=True)
    changed = {name for name, layer in layers(model).items() if not torch.equal(layer.running_var, before[name])}
    assert changed == {"6"}
    assert report["1"].reason == "not among layers="
    # The layer before is in eval mode: it hands on what its own statistics make of the data.
    x = torch.cat(batches())
    whole = batchnorm.recalibrate(network(), [x], layers=["6"])
    torch.testing.assert_close(model[6].running_var, whole[6].running_var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    x = (torch.randn(40, 4) * 3 + 5).to(dtype)
    layer = batchnorm.recalibrate(nn.Sequential(nn.BatchNorm1d(4)).to(dtype), x.split(16))[0]
    values = x.double().numpy()
    assert layer.running_var.dtype == dtype
    ulp = tolerances.storage_eps(dtype)
    np.testing.assert_allclose(layer.running_mean.double(), values.mean(0), rtol=max(ulp, 1e-12))
    np.testing.assert_allclose(layer.running_var.double(), values.var(0, ddof=1), rtol=max(ulp, 1e-12))


def test_autocast_of_the_caller_holds() -> None:
    x = torch.randn(64, 3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model[0](x).detach()
        layer = batchnorm.recalibrate(model, x.split(24))[1]
    assert half.dtype == torch.bfloat16
    assert_statistics(layer, half.double().numpy().mean(0), half.double().numpy().var(0, ddof=1))


def test_old_models_without_a_counter() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    model[0].num_batches_tracked = None
    x = torch.randn(10, 3)
    model = batchnorm.recalibrate(model, [x])
    np.testing.assert_allclose(model[0].running_var, x.double().var(0), rtol=2e-7)
    assert model[0].num_batches_tracked is None


def test_a_cumulative_average_goes_on_where_the_population_ended() -> None:
    x = torch.randn(30, 3, dtype=torch.float64)
    model = nn.Sequential(batchnorm.BatchNorm1d(3, momentum=None)).double()
    layer = batchnorm.recalibrate(model, x[:20].split(10))[0].train()
    layer(x[20:])
    torch.testing.assert_close(layer.running_mean, x.mean(0))


def test_empty_batches() -> None:
    x = torch.randn(8, 3)
    layer = batchnorm.recalibrate(nn.Sequential(nn.BatchNorm1d(3)), [x[:5], x[:0], x[5:]])[0]
    np.testing.assert_allclose(layer.running_var, x.double().var(0), rtol=2e-7)
    assert layer.num_batches_tracked == 2
