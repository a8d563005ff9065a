"""What may reach the compiled kernels: any strides, few values, none, more than 2^31, and NaN and infinities."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import regimes
from batchnorm.functional import batch_norm
from batchnorm.kernels import eager, native, use_backend
from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import WHOLE_BATCH, Epilogue, Statistics
from batchnorm.reference import activations as reference
from cases import Case, check

pytestmark = pytest.mark.skipif(
    native.refusal(torch.zeros(1, 1)) is not None, reason=str(native.refusal(torch.zeros(1, 1)))
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# Memory.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [2, 5000], ids=["small", "large"])
def test_what_no_kernel_writes_is_nan_in_the_tests(dtype: torch.dtype, rows: int) -> None:
    x = torch.zeros(rows, 17, dtype=dtype)
    for _ in range(2):  # the second lies where the first was
        made = native._native.empty_like(x)
        assert made.isnan().all()
        made.fill_(1.0)
        del made


# Strides.


@st.composite
def _laid_out(draw: st.DrawFn, x: Tensor) -> Tensor:
    """The values of ``x`` in another order of dimensions in memory, with steps and gaps that hold NaN."""
    order = draw(st.permutations(range(x.dim())))
    steps = [draw(st.integers(1, 3)) if draw(st.booleans()) else 1 for _ in order]
    before = [draw(st.integers(0, 2)) for _ in order]
    sizes = [before[i] + steps[i] * x.shape[order[i]] for i in range(x.dim())]
    larger = torch.full(sizes, torch.nan, dtype=x.dtype)
    inner = larger[tuple(slice(b, None, s) for b, s in zip(before, steps, strict=True))]
    inner = inner.permute([order.index(i) for i in range(x.dim())])
    assert inner.shape == x.shape
    return inner.copy_(x)


@dataclass(frozen=True)
class _Drawn(Case):
    """A case whose tensors lie in memory as hypothesis has drawn it."""

    tensors: dict[str, Tensor | None] = field(default_factory=dict)

    def inputs(self) -> dict[str, Tensor | None]:
        return {name: None if t is None else t.detach() for name, t in self.tensors.items()}


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_strides_on_every_target(target: str, data: st.DataObject) -> None:
    """Shapes, orders of dimensions, steps, gaps, expanded dimensions; each tensor of a call in its own way."""
    rank = data.draw(st.integers(2, 5))
    longest = data.draw(st.sampled_from([3, 6, 20] if rank < 4 else [3, 6]))
    shape = tuple(data.draw(st.integers(1, longest)) for _ in range(rank))
    dtype = data.draw(st.sampled_from(DTYPES))
    values = [v for v in regimes.VALUES if dtype != torch.float16 or v not in regimes.NEEDS_WIDE_RANGE]
    case = _Drawn(
        data.draw(st.sampled_from(values)),
        shape,
        dtype=dtype,
        activation=data.draw(st.sampled_from(regimes.ACTIVATIONS)),
        affine=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
        training=math.prod(shape) > shape[1] and data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)),
    )
    for name, tensor in Case.inputs(case).items():
        if tensor is not None and name not in ("running_mean", "running_var"):  # `check` copies those
            for dim in range(tensor.dim()) if name in ("x", "dy", "residual") else ():
                if data.draw(st.integers(0, 9)) == 0:
                    tensor = tensor.narrow(dim, 0, 1).expand_as(tensor)
            if 0 not in tensor.stride():
                tensor = data.draw(_laid_out(tensor))
        case.tensors[name] = tensor
    check(case)


def test_parameters_and_buffers_that_are_slices_of_others(target: str) -> None:
    inputs = Case(activation="silu").inputs()
    names = ("running_mean", "running_var", "weight", "bias")
    slices = [torch.full((13,), torch.nan) for _ in names]
    for whole, name in zip(slices, names, strict=True):
        whole[1::2] = inputs[name]
    plain = [inputs[name].clone() for name in names]
    y = batch_norm(inputs["x"], *(whole[1::2] for whole in slices), training=True, activation="silu")
    assert torch.equal(y, batch_norm(inputs["x"], *plain, training=True, activation="silu"))
    for whole, expected in zip(slices, plain, strict=True):
        # The averaging is another one for these, and rounds once as well.
        torch.testing.assert_close(whole[1::2], expected, rtol=1.2e-7, atol=0)
        assert whole[::2].isnan().all()


# Sizes.


@pytest.mark.parametrize("shape", [(2, 1000), (3, 1001, 1, 1), (1, 300, 1, 2), (2, 133, 3)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_channels_than_values_in_each(target: str, shape: tuple[int, ...], layout: str) -> None:
    for dtype in DTYPES:
        check(Case("mean_1e4", shape, layout, dtype, activation="relu", residual=True))
        check(Case("normal", shape, layout, dtype, activation="gelu", training=False))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 3, 5, 5), (2, 3, 0, 5), (2, 0, 4, 4), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_no_values_at_all(target: str, shape: tuple[int, ...], layout: str, training: bool) -> None:
    x, residual, dy = (regimes.LAYOUTS[layout](torch.empty(shape)).requires_grad_() for _ in range(3))
    weight, bias, mean, var = (torch.full((shape[1],), 2.0) for _ in range(4))
    leaves = (x, residual, weight.requires_grad_(), bias.requires_grad_())
    y = batch_norm(x, mean, var, weight, bias, training, activation="relu6", residual=residual)
    grads = torch.autograd.grad(y, leaves, dy)
    assert y.shape == shape
    assert [g.shape for g in grads] == [leaf.shape for leaf in leaves]
    assert not torch.cat([g.flatten() for g in grads]).any()
    assert (mean == 2).all()
    assert (var == 2).all()
    statistics, epilogue = Statistics(mean.double(), var.double()), Epilogue(weight, bias, residual, "relu6")
    for sums in native.reduce(dy, x, statistics, None, epilogue, 1e-5):
        assert sums.shape == (1, shape[1])
        assert not sums.any()
    mean, var, count = native.collect(x, WHOLE_BATCH)
    assert mean.isnan().all()
    assert var.isnan().all()
    assert count.tolist() == [[0]]


#: Values of 2 bytes that nobody has written take no memory: the system shows one page of zeros for all of them.
BEYOND = 2**31 + 2**16


def _zeros() -> Tensor:
    return torch.from_numpy(np.zeros(BEYOND, np.int16)).view(torch.bfloat16)


@pytest.mark.parametrize("shape", [(1, 2, BEYOND // 2), (BEYOND // 64, 64)], ids=str)
def test_more_than_2_to_31_values(shape: tuple[int, ...]) -> None:
    """A 32-bit index would see the first values twice, the last ones never, or crash."""
    zeros = _zeros()
    x = zeros.view(shape)
    zeros[-1] = 256.0
    channels = shape[1]
    count = BEYOND / channels
    mean = torch.zeros(channels, dtype=torch.float64)
    mean[-1] = 256 / count
    var = 256 * mean - mean.square()
    collected = native.collect(x, WHOLE_BATCH)
    torch.testing.assert_close(collected.mean[0], mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(collected.var[0], var, rtol=1e-6, atol=0)
    constants = Statistics(torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64))
    sums = native.reduce(x, x, constants, None, Epilogue(activation="relu"), 0.0)
    assert sums.sum_dy.tolist() == [[0.0] * (channels - 1) + [256.0]]
    assert sums.sum_dy_xhat.tolist() == [[0.0] * (channels - 1) + [65536.0]]


@pytest.mark.parametrize(("shape", "strides"), [((3, 2, 8), (2**30, 16, 1)), ((3, 5), (2**30, 1))])
def test_values_that_lie_further_apart_than_2_to_31(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    x = _zeros().as_strided(shape, strides)
    x.copy_(Case(shape=shape, dtype=torch.bfloat16).inputs()["x"])
    assert native._native.walkable(x)
    dense, dy = x.contiguous(), torch.randn(shape).bfloat16()
    results = []
    for values in (x, dense):
        epilogue = Epilogue(residual=values, activation="silu")
        y, statistics = native.forward(values, WHOLE_BATCH, epilogue, 1e-5)
        dx, dresidual, *_ = native.backward(dy, values, statistics, WHOLE_BATCH, epilogue, 1e-5)
        results.append((y, *statistics, *native.collect(values, WHOLE_BATCH), dx, dresidual))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# Values.


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_activations_far_out(target: str, activation: str, dtype: torch.dtype) -> None:
    """An exponential that stops at a constant would come back multiplied by the input: silu(-1e37) was -0.045."""
    finite = [-1e37, -1e30, -1e4, -100.0, -88.0, -6.0, -3.0, -0.0, 0.0, 3.0, 6.0, 88.0, 100.0, 1e4, 1e30, 1e37]
    x = torch.tensor([*finite, -math.inf, math.inf, math.nan], dtype=dtype).expand(2, -1).clone().requires_grad_()
    stored = torch.zeros(x.shape[1], dtype=dtype), torch.ones(x.shape[1], dtype=dtype)
    y = batch_norm(x, *stored, eps=0.0, activation=activation)
    (dx,) = torch.autograd.grad(y, x, torch.full_like(x, 0.5))
    exact = x[0, :-3].detach().double().numpy()
    function, derivative = reference.get_activation(activation)
    unit = {torch.float32: 5e-6, torch.float64: 1e-12, torch.bfloat16: 8e-3}[dtype]
    # Slopes are differences of numbers up to 1.
    of_one = 1e-15 if dtype == torch.float64 else 2e-7
    for got, expected, close in ((y, function(exact), unit * 1e-30), (dx, 0.5 * derivative(exact), of_one)):
        np.testing.assert_allclose(got[0, :-3].detach().double(), expected, rtol=unit, atol=close)
    # torch has NaN where a form of its makes inf * 0; its slope at NaN differs from form to form.
    torchs = ACTIVATIONS[activation].function(x)
    assert all(a == b for a, b in zip(y[0, -3:-1], torchs[0, -3:-1], strict=True) if not b.isnan())
    assert y[:, -1].isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_values_that_are_not_finite_are_eagers(target: str, layout: str, bad: float) -> None:
    for name in ("x", "dy", "residual"):
        inputs = Case(shape=(4, 19, 5, 5), layout=layout, residual=True).inputs()
        inputs["residual"][1, 17, 2, 3] = 100  # the ReLU is on there
        inputs[name][1, 17, 2, 3] = bad
        found = []
        for kernels in (native, eager):
            after = (WHOLE_BATCH, Epilogue(residual=inputs["residual"], activation="relu"), 1e-5)
            y, statistics = kernels.forward(inputs["x"], *after)
            dx, dresidual, *_ = kernels.backward(inputs["dy"], inputs["x"], statistics, *after)
            found.append((y, statistics.mean, statistics.var, dx, dresidual))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one.isfinite(), other.isfinite())
        turned_off = name == "residual" and bad == -torch.inf
        assert all(t.isfinite().all() for t in found[0]) == turned_off


def test_a_tensor_without_memory_gets_a_result_without_memory() -> None:
    x = torch.empty(4, 3, 5, device="meta")
    vectors = [torch.empty(3, device="meta") for _ in range(4)]
    y = batch_norm(x, *vectors, training=True, activation="relu6", residual=x)
    assert y.device.type == "meta"
    assert y.shape == x.shape
    with pytest.raises(ValueError, match="same device"):
        batch_norm(torch.randn(4, 3, 5), *vectors, training=True)
    with use_backend("native"), pytest.raises(ValueError, match="on CPUs; the tensor is on meta"):
        batch_norm(x, *vectors, training=True)
