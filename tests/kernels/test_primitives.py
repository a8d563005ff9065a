"""The split primitives of each backend: halves agree with the whole, and parts merge into it."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

import regimes
import tolerances as tol
from batchnorm.kernels import eager, native
from batchnorm.kernels.interface import WHOLE_BATCH, Epilogue, Running, Statistics, Sums
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
    epilogue = Epilogue(weight, bias, residual, activation)
    y, statistics = kernels.forward(x, WHOLE_BATCH, epilogue, 1e-5)
    collected = kernels.collect(x, WHOLE_BATCH)
    assert all(torch.equal(*pair) for pair in zip(collected, statistics, strict=True))
    again = kernels.normalize(x, collected, WHOLE_BATCH, epilogue, 1e-5)
    torch.testing.assert_close(again, y, rtol=tol.FLOAT64_REORDERED, atol=tol.FLOAT64_REORDERED)

    rest = (WHOLE_BATCH, epilogue, 1e-5)
    dx, dz, dweight, dbias = kernels.backward(dy, x, statistics, *rest)
    halves = kernels.reduce(dy, x, statistics, *rest)
    assert torch.equal(halves.sum_dy[0], dbias)
    assert torch.equal(halves.sum_dy_xhat[0], dweight)
    for got, expected in zip(kernels.apply(dy, x, statistics, halves, *rest), (dx, dz), strict=True):
        assert torch.equal(got, expected)


def test_parts_of_a_batch_merge_into_the_whole(kernels: ModuleType) -> None:
    """Statistics and sums of chunks, merged, give every chunk the gradient that it has in the whole batch."""
    x, dy, _, weight, bias = _inputs()
    epilogue = Epilogue(weight, bias, None, "silu")
    rest = (WHOLE_BATCH, epilogue, 1e-5)
    whole_y, whole = kernels.forward(x, *rest)
    whole_dx, _, dweight, _ = kernels.backward(dy, x, whole, *rest)
    chunks = list(zip(x.split([2, 4, 1]), dy.split([2, 4, 1]), strict=True))

    merged = None
    for chunk, _ in chunks:
        mean, var, _ = (t.numpy()[0] for t in kernels.collect(chunk, WHOLE_BATCH))
        part = reference.Statistics(mean, var, chunk.shape[0] * 20)
        merged = part if merged is None else reference.merge(merged, part)
    np.testing.assert_allclose(merged.mean, whole.mean[0].numpy(), rtol=tol.FLOAT64_REORDERED, atol=1e-14)
    np.testing.assert_allclose(merged.var, whole.var[0].numpy(), rtol=tol.FLOAT64_REORDERED)

    parts = [kernels.reduce(d, c, whole, *rest) for c, d in chunks]
    sums = Sums(*(sum(part) for part in zip(*parts, strict=True)))
    torch.testing.assert_close(sums.sum_dy_xhat[0], dweight, rtol=tol.FLOAT64_REORDERED, atol=1e-12)
    dx = torch.cat([kernels.apply(d, c, whole, sums, *rest)[0] for c, d in chunks])
    torch.testing.assert_close(dx, whole_dx, rtol=1e-11, atol=1e-13)
    y = torch.cat([kernels.normalize(c, whole, *rest) for c, _ in chunks])
    torch.testing.assert_close(y, whole_y, rtol=tol.FLOAT64_REORDERED, atol=1e-13)


def test_kernels_leave_their_inputs_alone(kernels: ModuleType) -> None:
    tensors = _inputs(torch.float32)
    copies = [t.clone() for t in tensors]
    x, dy, residual, weight, bias = tensors
    rest = (WHOLE_BATCH, Epilogue(weight, bias, residual, "gelu"), 1e-5)
    kernels.backward(dy, x, kernels.forward(x, *rest)[1], *rest)
    assert all(torch.equal(t, c) for t, c in zip(tensors, copies, strict=True))


def _statistics(mean: list[float], var: list[float], count: float) -> Statistics:
    return Statistics(*(torch.tensor([v], dtype=torch.float64) for v in (mean, var, [count])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_running_average_is_computed_in_float64_and_rounded_once(kernels: ModuleType, dtype: torch.dtype) -> None:
    running = [torch.tensor([1.0, -3.0, 100.0]).to(dtype), torch.tensor([2.0, 3.0, 100.0]).to(dtype)]
    batch = _statistics([1e-3, 5.0, 7.0], [1e-3, 5.0, 7.0], 5)
    values = batch.mean[0], batch.var[0] * 1.25
    exact = [r.double() + 0.1 * (v - r.double()) for r, v in zip(running, values, strict=True)]
    kernels.update(Running(*running), batch, 0.1, finite_only=False)
    for got, expected in zip(running, exact, strict=True):
        torch.testing.assert_close(got, expected.to(dtype), rtol=tol.FLOAT64_REORDERED, atol=0)


def test_strided_running_statistics_are_averaged(kernels: ModuleType) -> None:
    both = torch.zeros(3, 2)
    kernels.update(Running(both[:, 1], both[:, 0]), _statistics([1.0] * 3, [1.0] * 3, 2), 0.25, finite_only=False)
    assert both.tolist() == [[0.5, 0.25]] * 3


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_without_a_variance_leaves_running_statistics_alone(kernels: ModuleType, count: int) -> None:
    running = torch.zeros(2), torch.ones(2)
    kernels.update(Running(*running), _statistics([5.0, torch.nan], [0.0, torch.nan], count), 0.1, finite_only=False)
    assert running[0].tolist() == [0, 0]
    assert running[1].tolist() == [1, 1]


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_parameters_may_differ_in_dtype(kernels: ModuleType, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x, dy, _, weight, bias = (t.to(torch.bfloat16) for t in _inputs())
    y, statistics = kernels.forward(x, WHOLE_BATCH, Epilogue(weight.float(), bias.float(), None, "relu"), 1e-5)
    epilogue = Epilogue(weight.to(dtypes[0]), bias.to(dtypes[1]), None, "relu")
    assert torch.equal(kernels.forward(x, WHOLE_BATCH, epilogue, 1e-5)[0], y)
    _, _, dweight, dbias = kernels.backward(dy, x, statistics, WHOLE_BATCH, epilogue, 1e-5)
    assert (dweight.dtype, dbias.dtype) == dtypes


def test_negated_views_are_what_they_stand_for(kernels: ModuleType) -> None:
    x, dy, residual, weight, bias = _inputs()
    negated = [torch.complex(torch.zeros_like(t), -t).conj().imag for t in (x, dy, residual)]
    assert all(t.is_neg() for t in negated)
    rest = (WHOLE_BATCH, Epilogue(weight, bias, residual, "silu"), 1e-5)
    rest_negated = (WHOLE_BATCH, Epilogue(weight, bias, negated[2], "silu"), 1e-5)
    y, statistics = kernels.forward(x, *rest)
    again = kernels.forward(negated[0], *rest_negated)
    torch.testing.assert_close(again, (y, statistics), rtol=tol.FLOAT64_REORDERED, atol=tol.FLOAT64_REORDERED)
    dx, dz, *_ = kernels.backward(dy, x, statistics, *rest)
    again = kernels.backward(negated[1], negated[0], statistics, *rest_negated)[:2]
    torch.testing.assert_close(again, (dx, dz), rtol=tol.FLOAT64_REORDERED, atol=tol.FLOAT64_REORDERED)
