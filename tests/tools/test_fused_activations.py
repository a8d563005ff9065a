"""Which activations are fused, in which forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import batchnorm
from batchnorm.kernels import activations as kernels
from tools import zoo
from tools.same import check, runs_fused, settle


@pytest.mark.parametrize("name", kernels.ACTIVATIONS)
def test_every_activation_as_module_function_and_method(name: str) -> None:
    modules = {
        "relu": nn.ReLU(), "relu6": nn.ReLU6(), "leaky_relu": nn.LeakyReLU(), "silu": nn.SiLU(),
        "hardswish": nn.Hardswish(), "gelu": nn.GELU(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(),
    }  # fmt: skip
    forms: list[Callable[[Tensor], Tensor]] = [modules[name], getattr(F, name)]
    forms += [form for form in (getattr(torch, name, None),) if form is not None]
    if hasattr(Tensor, name):
        forms += [lambda y: getattr(y, name)(), lambda y: getattr(y, f"{name}_")()]
    for form in forms:
        model = settle(zoo.After(form))
        converted, report = batchnorm.convert(model, report=True)
        assert report["bn"].done == f"fused {name}"
        assert runs_fused(converted) == 1
        check(model, converted)


@pytest.mark.parametrize(
    "form",
    [
        nn.Hardtanh(0.0, 6.0),
        nn.Hardtanh(0, 6, inplace=True),
        lambda y: F.hardtanh(y, 0.0, 6.0),
        lambda y: F.hardtanh(y, max_val=6, min_val=0),
        lambda y: F.hardtanh_(y, 0.0, 6.0),
        lambda y: F.relu6(y, inplace=True),
    ],
)
def test_every_form_of_relu6(form: Callable[[Tensor], Tensor]) -> None:
    model = settle(zoo.After(form))
    with torch.no_grad():
        model.bn.weight.mul_(8)  # so that both bounds are passed
    converted, report = batchnorm.convert(model, report=True)
    assert report["bn"].done == "fused relu6"
    assert runs_fused(converted) == 1
    check(model, converted)


def test_bounds_that_change_later_are_obeyed() -> None:
    model = settle(zoo.After(nn.Hardtanh(0.0, 6.0)))
    converted = batchnorm.convert(model)
    for one in (model, converted):
        one.after.max_val = 0.25
    assert runs_fused(converted) == 0
    check(model, converted)
