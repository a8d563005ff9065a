"""PyTorch's own inputs and checks for its batch normalization, run against ours."""

from __future__ import annotations

import warnings

import pytest
import torch

import batchnorm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's internal test helpers warn about themselves
    from torch.testing._internal import composite_compliance
    from torch.testing._internal.common_methods_invocations import op_db
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


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_module_errors(info: object) -> None:
    errors = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    for error in errors:
        built, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        with pytest.raises(error.error_type, match=error.error_regex):
            OURS[info.module_cls.__name__](*built.args, **built.kwargs)(*given.args, **given.kwargs)


FUNCTION = next(info for info in op_db if info.name == "nn.functional.batch_norm")
SAMPLES = [s for s in FUNCTION.sample_inputs("cpu", torch.float64, requires_grad=True) if s.input.dim() > 1]


def _ours(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    return batchnorm.functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


@pytest.mark.filterwarnings("ignore:momentum=.* is outside")
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_composite_compliance(sample: object) -> None:
    """Whatever of a call's tensors is of a subclass that sees operations, forward, backward and forward mode are right.

    A backward pass that took the parameters of a subclass for plain ones would read no memory of theirs.
    """
    args, kwargs, close = [sample.input, *sample.args], sample.kwargs, torch.testing.assert_close
    composite_compliance.check_with_mode(_ours, args, kwargs, close)
    composite_compliance.check_all_permutations(_ours, args, kwargs, close)
    composite_compliance.check_backward_formula(_ours, args, kwargs, sample.output_process_fn_grad, None, close)
    composite_compliance.check_forward_ad_formula(_ours, args, kwargs, None, close)


def test_an_empty_tensor_without_a_channel_dimension_is_refused() -> None:
    """Torch returns it; decision 0019."""
    empty = torch.zeros(0)
    assert torch.nn.functional.batch_norm(empty, torch.zeros(0), torch.zeros(0)).shape == (0,)
    with pytest.raises(ValueError, match="unsqueeze"):
        _ours(empty, torch.zeros(0), torch.zeros(0))
