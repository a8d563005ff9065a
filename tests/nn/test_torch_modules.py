"""PyTorch's own inputs for its batch-normalization modules, run against ours."""

from __future__ import annotations

import warnings

import pytest
import torch

import batchnorm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's internal test helpers warn about themselves
    from torch.testing._internal.common_modules import module_db

OURS = {cls.__name__: cls for cls in (batchnorm.BatchNorm1d, batchnorm.BatchNorm2d, batchnorm.BatchNorm3d)}
INFOS = [info for info in module_db if info.module_cls.__name__ in OURS]


def test_the_three_modules_are_found() -> None:
    assert sorted(info.module_cls.__name__ for info in INFOS) == sorted(OURS)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_module_inputs(info: object, dtype: torch.dtype, training: bool) -> None:
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    assert inputs
    for module_input in inputs:
        built = module_input.constructor_input
        results = []
        for cls in (OURS[info.module_cls.__name__], info.module_cls):
            layer = cls(*built.args, **built.kwargs).to(dtype).train(training)
            args = [a.detach().clone().requires_grad_(a.requires_grad) for a in module_input.forward_input.args]
            y = layer(*args, **module_input.forward_input.kwargs)
            torch.manual_seed(0)
            leaves = [*args, *layer.parameters()]
            results.append([y, *torch.autograd.grad(y, leaves, torch.randn_like(y)), *layer.state_dict().values()])
        for mine, other in zip(*results, strict=True):
            torch.testing.assert_close(mine, other)
