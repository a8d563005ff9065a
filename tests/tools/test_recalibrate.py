"""Population statistics against float64 NumPy on the inputs of each layer, and that nothing else changes."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests import tolerances
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm
from batchnorm import statistics
from batchnorm.kernels.interface import Statistics
from batchnorm.reference import batch_norm as reference
from batchnorm.reference.statistics import exact_population, naive_var, population_statistics, to_rows, unbiased_var


def network() -> nn.Sequential:
    """Five layers of both makes, dropout and a group norm between them, statistics that are nobody's."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 6, 3),
        batchnorm.BatchNorm2d(6, activation="relu", momentum=None),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 5),
        nn.SyncBatchNorm(5, momentum=0.0),
        nn.Tanh(),
        nn.Linear(5, 7),
        batchnorm.BatchNorm1d(7, affine=False),
    )
    with torch.no_grad():
        for layer in layers(model).values():
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.num_batches_tracked.fill_(17)
            if layer.affine:
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_()
    return model


def layers(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def batches(sizes: tuple[int, ...] = (16, 16, 5, 9), seed: int = 1) -> list[Tensor]:
    """Batches that differ by more than chance, the last ones smaller."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 8, 8, generator=generator) * (k + 1) + 3 * k for k, n in enumerate(sizes)]


def inputs_by_layer(model: nn.Module, data: list[Tensor]) -> dict[str, list[np.ndarray]]:
    """What each layer gets when batch normalization alone is in training mode."""
    model = copy.deepcopy(model).eval()
    seen: dict[str, list[np.ndarray]] = {}
    for name, layer in layers(model).items():
        layer.train()
        into = seen.setdefault(name, [])
        layer.register_forward_pre_hook(lambda _m, args, into=into: into.append(args[0].double().numpy().copy()))
    with torch.no_grad():
        for x in data:
            model(x)
    return seen


def everything(model: nn.Module) -> list[Any]:
    """Whatever a pass might leave traces in."""
    return [
        (
            name,
            module.training,
            dict(vars(module)) | {"_parameters": None, "_buffers": None, "_modules": None},
            [(n, id(t), None if t is None else t.clone()) for n, t in module._buffers.items()],
            [(n, id(t), None if t is None else t.clone()) for n, t in module._parameters.items()],
            [list(module.__dict__[kind].items()) for kind in ("_forward_hooks", "_forward_pre_hooks")],
        )
        for name, module in model.named_modules()
    ] + [
        torch.get_rng_state(),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
        torch.is_grad_enabled(),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and bool(((one == other) | (one.isnan() & other.isnan())).all())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


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
        assert report[name].what == "recalibrated"
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
    whole, *others = (batchnorm.recalibrate(network(), x.split(size))[1] for size in (len(x), 2, 7, 45))
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
    float32 = [Statistics(b.double().mean(0).float(), b.double().var(0, unbiased=False).float()) for b in data]
    merged, count = float32[0], 128
    for one, b in zip(float32[1:], data[1:], strict=True):
        merged, count = statistics.merge(merged, count, one, len(b)), count + len(b)
    assert (np.abs(merged.var.numpy() / values.var(0) - 1) > 100 * tolerances.storage_eps(torch.float32)).any()


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


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_only_the_running_statistics_change(inplace: bool, training: bool) -> None:
    model = network().train(training)
    model[3].train(not training)
    saved = copy.deepcopy(layers(model))
    before, loader = everything(model), DataLoader(torch.cat(batches()), batch_size=20, shuffle=True)
    changed = batchnorm.recalibrate(model, loader, inplace=inplace)
    assert (changed is model) is inplace
    if not inplace:
        assert same(everything(model), before)
    for name, layer in layers(changed).items():
        assert not torch.equal(layer.running_mean, saved[name].running_mean)
        with torch.no_grad():
            for which, buffer in saved[name].named_buffers():
                getattr(layer, which).copy_(buffer)
    if inplace:
        assert same(everything(model), before)
    assert [m.training for m in changed.modules()] == [m.training for m in model.modules()]


class LoaderError(Exception):
    pass


@pytest.mark.parametrize("where", ["loader", "model", "forward", "result"])
def test_an_exception_leaves_the_model_as_it_was(where: str) -> None:
    model, data = network(), batches()
    model[3].eval()
    how: dict[str, Any] = {}

    def broken() -> Iterator[Tensor]:
        yield data[0]
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002  # what users draw from
        raise LoaderError

    def forward(inner: nn.Module, x: Tensor) -> None:
        inner(x)
        inner[4].register_buffer("num_groups_seen", None)
        raise LoaderError

    loader: Any = data
    error: type[Exception] = LoaderError
    if where == "loader":
        loader = broken()
    elif where == "model":
        loader, error = [data[0], torch.randn(4, 3, 9, 9)], RuntimeError
    elif where == "forward":
        how = {"forward": forward}
    else:
        loader, error = [data[0], data[1] * torch.nan], ValueError
    before = everything(model)
    with pytest.raises(error) as raised:
        batchnorm.recalibrate(model, loader, inplace=True, **how)
    assert same(everything(model), before)
    if where == "model":
        assert raised.value.__notes__ == ["(batchnorm.recalibrate: in batch 2; the model is as it was)"]
    if where == "result":
        assert "those of 1 are not in torch.float32" in str(raised.value)


def test_dropout_is_off_and_other_layers_are_in_eval_mode() -> None:
    modes: dict[str, bool] = {}
    model = network().train()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, _x, name=name: modes.__setitem__(name, m.training))
    batchnorm.recalibrate(model, batches(), inplace=True)
    assert {name for name, training in modes.items() if training} == {"1", "6", "9", "12"}
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
    assert report["1"].what == "left alone"
    assert report["1"].reason == "it is frozen: in eval mode, in a model in training mode"
    x = torch.cat(batches())
    with torch.no_grad():
        u = model[5](model[4](model[1](model[0](x)).relu()))
    values = to_rows(u.double().numpy())
    np.testing.assert_allclose(changed[6].running_var, values.var(0, ddof=1), rtol=1e-5)


def test_what_is_left_alone_and_why() -> None:
    class FrozenBatchNorm2d(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stateless = nn.BatchNorm2d(3, track_running_stats=False)
            self.instance = nn.InstanceNorm2d(3, track_running_stats=True)
            self.frozen = FrozenBatchNorm2d()
            self.bn = nn.BatchNorm2d(3)
            self.again = self.bn
            self.idle = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(2 * self.bn(self.frozen(self.instance(self.stateless(x)))) + 5)

    model = Model()
    before = copy.deepcopy(model.state_dict())
    changed, report = batchnorm.recalibrate(model, batches(), report=True)
    assert [(row.name, row.what, row.reason) for row in report] == [
        ("stateless", "left alone", "it keeps no running statistics"),
        (
            "instance",
            "left alone",
            "InstanceNorm2d is not batch normalization: it normalizes each sample by itself",
        ),
        (
            "frozen",
            "left alone",
            "FrozenBatchNorm2d does not derive from torch's batch normalization: what it does in training is not known",
        ),
        ("bn", "recalibrated", "also again"),
        ("idle", "left alone", "no batch reached it"),
    ]
    after = changed.state_dict()
    touched = {name for name, value in after.items() if not torch.equal(value, before[name])}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert touched == {f"{name}.{buffer}" for name in ("bn", "again") for buffer in buffers}


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
    assert {row.what for row in report} == {"recalibrated"}
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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loader": []}, ValueError, "at least one batch; the loader gave none"),
        ({"batches": 0}, ValueError, "batches must be a positive integer, or None for all; got 0"),
        ({"batches": True}, ValueError, "batches must be a positive integer"),
        ({"variance": "biased"}, ValueError, "variance must be one of .'exact', 'averaged'.; got 'biased'"),
        ({"model": {}}, TypeError, "recalibrate takes a torch.nn.Module; got dict"),
        ({"loader": [{"x": torch.ones(2, 3)}]}, TypeError, "got a dict. Say how the model takes it: forward="),
        ({"loader": [((1, 2), 3)]}, TypeError, "got a tuple that starts with a tuple"),
        ({"layers": ["0", "1"]}, ValueError, r"\['0'\] are not among \['1', '2'\]"),
        ({"layers": ["2"]}, ValueError, "'2' cannot: it keeps no running statistics"),
        ({"layers": "1"}, ValueError, r"Try layers=\['1'\]"),
        ({"model": nn.Sequential(nn.LazyBatchNorm1d())}, ValueError, "0 .LazyBatchNorm1d. will learn them from its"),
        ({"model": nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3))}, ValueError, "0 .LazyLinear. will learn them"),
        ({"loader": [torch.ones(1, 3)]}, ValueError, "Expected more than 1 value per channel"),
        ({"loader": [torch.tensor([[1.0, torch.inf, 0.0]] * 2)]}, ValueError, "those of 1 are not in torch.float32"),
    ],
)
def test_what_cannot_work(change: dict[str, Any], error: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    arguments: dict[str, Any] = {"model": model, "loader": [torch.randn(4, 3)]} | change
    with pytest.raises(error, match=message):
        batchnorm.recalibrate(**arguments)


def test_empty_batches_and_models_without_layers() -> None:
    _, report = batchnorm.recalibrate(nn.Linear(2, 2), [], report=True)
    assert len(report) == 0
    x = torch.randn(8, 3)
    layer = batchnorm.recalibrate(nn.Sequential(nn.BatchNorm1d(3)), [x[:5], x[:0], x[5:]])[0]
    np.testing.assert_allclose(layer.running_var, x.double().var(0), rtol=2e-7)
    assert layer.num_batches_tracked == 2
