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
    y, statistics = kernels.forward(x, residual, weight, bias, 1e-5, activation)
    collected = kernels.collect(x)
    assert torch.equal(collected.mean, statistics.mean)
    assert torch.equal(collected.var, statistics.var)
    again = kernels.normalize(x, residual, *collected, weight, bias, 1e-5, activation)
    torch.testing.assert_close(again, y, rtol=tol.FLOAT64_REORDERED, atol=tol.FLOAT64_REORDERED)

    arguments = (dy, x, residual, *statistics, weight, bias, 1e-5, activation)
    dx, dz, sums = kernels.backward(*arguments, batch_statistics=True)
    halves = kernels.reduce(*arguments)
    assert torch.equal(halves.sum_dy, sums.sum_dy)
    assert torch.equal(halves.sum_dy_xhat, sums.sum_dy_xhat)
    for got, expected in zip(kernels.apply(*arguments, halves, 140), (dx, dz), strict=True):
        assert torch.equal(got, expected)


def test_parts_of_a_batch_merge_into_the_whole(kernels: ModuleType) -> None:
    """Statistics and sums of chunks, merged, give every chunk the gradient that it has in the whole batch."""
    x, dy, _, weight, bias = _inputs()
    whole_y, whole = kernels.forward(x, None, weight, bias, 1e-5, "silu")
    whole_dx, _, whole_sums = kernels.backward(dy, x, None, *whole, weight, bias, 1e-5, "silu", batch_statistics=True)
    chunks = list(zip(x.split([2, 4, 1]), dy.split([2, 4, 1]), strict=True))

    merged = None
    for chunk, _ in chunks:
        mean, var = (t.numpy() for t in kernels.collect(chunk))
        part = reference.Statistics(mean, var, chunk.shape[0] * 20)
        merged = part if merged is None else reference.merge(merged, part)
    np.testing.assert_allclose(merged.mean, whole.mean.numpy(), rtol=tol.FLOAT64_REORDERED, atol=1e-14)
    np.testing.assert_allclose(merged.var, whole.var.numpy(), rtol=tol.FLOAT64_REORDERED)

    calls = [(d, c, None, *whole, weight, bias, 1e-5, "silu") for c, d in chunks]
    sums = Sums(*(sum(parts) for parts in zip(*(kernels.reduce(*call) for call in calls), strict=True)))
    torch.testing.assert_close(sums.sum_dy_xhat, whole_sums.sum_dy_xhat, rtol=tol.FLOAT64_REORDERED, atol=1e-12)
    dx = torch.cat([kernels.apply(*call, sums, 140)[0] for call in calls])
    torch.testing.assert_close(dx, whole_dx, rtol=1e-11, atol=1e-13)
    y = torch.cat([kernels.normalize(c, None, *whole, weight, bias, 1e-5, "silu") for c, _ in chunks])
    torch.testing.assert_close(y, whole_y, rtol=tol.FLOAT64_REORDERED, atol=1e-13)


def test_kernels_leave_their_inputs_alone(kernels: ModuleType) -> None:
    tensors = _inputs(torch.float32)
    copies = [t.clone() for t in tensors]
    x, dy, residual, weight, bias = tensors
    _, statistics = kernels.forward(x, residual, weight, bias, 1e-5, "gelu")
    kernels.backward(dy, x, residual, *statistics, weight, bias, 1e-5, "gelu", batch_statistics=True)
    assert all(torch.equal(t, c) for t, c in zip(tensors, copies, strict=True))
