"""What recalibration leaves alone, and what it refuses: whole state before and after, exceptions at every place."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import batchnorm
from tools.normalized import batches, layers, network


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
    assert [(row.name, row.done, row.reason) for row in report] == [
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
        ("bn", "recalibrated", ""),
        ("idle", "left alone", "no batch reached it"),
    ]
    assert report["bn"].aliases == ("again",)
    after = changed.state_dict()
    touched = {name for name, value in after.items() if not torch.equal(value, before[name])}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert touched == {f"{name}.{buffer}" for name in ("bn", "again") for buffer in buffers}


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
