"""The split primitives of each backend: halves agree with the whole, and parts merge into it."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

import regimes
import tolerances as tol
from batchnorm.kernels import eager, native
from batchnorm.kernels.interface import Sums
from batchnorm.reference import statistics as reference


@pytest.fixture(params=[eager, native], ids=["eager", "native"])
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    if reason := request.param.refusal(torch.zeros(1, 1)):
        pytest.skip(reason)
    return request.param


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    x, dy, residual = (torch.randn(7, 3, 4, 5, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    weight, bias = (torch.randn(3, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return x, dy, residual, weight, bias


@pytest.mark.parametrize("activation", regimes.ACTIVATIONS)
def test_halves_are_the_whole(kernels: ModuleType, activation: str | None) -> None:
    x, dy, residual, weight, bias = _inputs()
    y, mean, var = kernels.forward(x, residual, weight, bias, 1e-5, activation)
    collected = kernels.collect(x)
    assert torch.equal(collected.mean, mean)
    assert torch.equal(collected.var, var)
    again = kernels.normalize(x, residual, *collected, weight, bias, 1e-5, activation)
    torch.testing.assert_close(again, y, rtol=tol.FLOAT64_REORDERED, atol=tol.FLOAT64_REORDERED)

    arguments = (dy, x, residual, mean, var, weight, bias, 1e-5, activation)
    dx, dz, dweight, dbias = kernels.backward(*arguments, batch_statistics=True)
    halves = kernels.reduce(*arguments)
    assert torch.equal(halves.sum_dy, dbias)
    assert torch.equal(halves.sum_dy_xhat, dweight)
    for got, expected in zip(kernels.apply(*arguments, halves, 140), (dx, dz), strict=True):
        assert torch.equal(got, expected)


def test_parts_of_a_batch_merge_into_the_whole(kernels: ModuleType) -> None:
    """Statistics and sums of chunks, merged, give every chunk the gradient that it has in the whole batch."""
    x, dy, _, weight, bias = _inputs()
    whole_y, *whole = kernels.forward(x, None, weight, bias, 1e-5, "silu")
    whole_dx, _, dweight, _ = kernels.backward(dy, x, None, *whole, weight, bias, 1e-5, "silu", batch_statistics=True)
    chunks = list(zip(x.split([2, 4, 1]), dy.split([2, 4, 1]), strict=True))

    merged = None
    for chunk, _ in chunks:
        mean, var = (t.numpy() for t in kernels.collect(chunk))
        part = reference.Statistics(mean, var, chunk.shape[0] * 20)
        merged = part if merged is None else reference.merge(merged, part)
    np.testing.assert_allclose(merged.mean, whole[0].numpy(), rtol=tol.FLOAT64_REORDERED, atol=1e-14)
    np.testing.assert_allclose(merged.var, whole[1].numpy(), rtol=tol.FLOAT64_REORDERED)

    calls = [(d, c, None, *whole, weight, bias, 1e-5, "silu") for c, d in chunks]
    sums = Sums(*(sum(parts) for parts in zip(*(kernels.reduce(*call) for call in calls), strict=True)))
    torch.testing.assert_close(sums.sum_dy_xhat, dweight, rtol=tol.FLOAT64_REORDERED, atol=1e-12)
    dx = torch.cat([kernels.apply(*call, sums, 140)[0] for call in calls])
    torch.testing.assert_close(dx, whole_dx, rtol=1e-11, atol=1e-13)
    y = torch.cat([kernels.normalize(c, None, *whole, weight, bias, 1e-5, "silu") for c, _ in chunks])
    torch.testing.assert_close(y, whole_y, rtol=tol.FLOAT64_REORDERED, atol=1e-13)


def test_kernels_leave_their_inputs_alone(kernels: ModuleType) -> None:
    tensors = _inputs(torch.float32)
    copies = [t.clone() for t in tensors]
    x, dy, residual, weight, bias = tensors
    _, *statistics = kernels.forward(x, residual, weight, bias, 1e-5, "gelu")
    kernels.backward(dy, x, residual, *statistics, weight, bias, 1e-5, "gelu", batch_statistics=True)
    assert all(torch.equal(t, c) for t, c in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_running_average_is_computed_in_float64_and_rounded_once(kernels: ModuleType, dtype: torch.dtype) -> None:
    running, value = torch.tensor([1.0, -3.0, 100.0]).to(dtype), torch.tensor([1e-3, 5.0, 7.0], dtype=torch.float64)
    exact = running.double() + 0.1 * (value * 1.25 - running.double())
    kernels.average(running, value, 0.1, 1.25)
    torch.testing.assert_close(running, exact.to(dtype), rtol=tol.FLOAT64_REORDERED, atol=0)


def test_strided_running_statistics_are_averaged(kernels: ModuleType) -> None:
    both = torch.zeros(3, 2)
    kernels.average(both[:, 1], torch.ones(3, dtype=torch.float64), 0.25, 1.0)
    assert both.tolist() == [[0, 0.25]] * 3


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_parameters_may_differ_in_dtype(kernels: ModuleType, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x, dy, _, weight, bias = (t.to(torch.bfloat16) for t in _inputs())
    y, mean, var = kernels.forward(x, None, weight.float(), bias.float(), 1e-5, "relu")
    weight, bias = weight.to(dtypes[0]), bias.to(dtypes[1])
    assert torch.equal(kernels.forward(x, None, weight, bias, 1e-5, "relu")[0], y)
    _, _, dweight, dbias = kernels.backward(dy, x, None, mean, var, weight, bias, 1e-5, "relu", True)
    assert (dweight.dtype, dbias.dtype) == dtypes


def test_negated_views_are_what_they_stand_for(kernels: ModuleType) -> None:
    x, dy, residual, weight, bias = _inputs()
    negated = [torch.complex(torch.zeros_like(t), -t).conj().imag for t in (x, dy, residual)]
    assert all(t.is_neg() for t in negated)
    y, mean, var = kernels.forward(x, residual, weight, bias, 1e-5, "silu")
    again = kernels.forward(negated[0], negated[2], weight, bias, 1e-5, "silu")
    torch.testing.assert_close(again, (y, mean, var), rtol=tol.FLOAT64_REORDERED, atol=tol.FLOAT64_REORDERED)
    rest = (mean, var, weight, bias, 1e-5, "silu", True)
    dx, dz, *_ = kernels.backward(dy, x, residual, *rest)
    again = kernels.backward(negated[1], negated[0], negated[2], *rest)[:2]
    torch.testing.assert_close(again, (dx, dz), rtol=tol.FLOAT64_REORDERED, atol=tol.FLOAT64_REORDERED)
