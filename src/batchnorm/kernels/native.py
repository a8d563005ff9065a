"""Batch normalization in C++ for CPUs (``csrc/``): statistics, scaling, residual and activation in one pass each way.

This file is the border: it finds how to walk a tensor, allocates what the kernels write, and passes addresses. What is
made neither of contiguous planes nor of contiguous rows (channels last) is copied once, into the layout of ``x``.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import Statistics, Sums

try:
    from batchnorm.kernels import _native
except ImportError as error:  # built without a compiler (BATCHNORM_NATIVE=0), or for another Python
    _native = None  # type: ignore[assignment]  # asked about in `refusal`
    _missing = f"this installation has no compiled kernels ({error})"

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# The order of the enumeration in csrc/kernels.h.
_ACTIVATIONS = {
    name: i for i, name in enumerate([None, "relu", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh"])
}
assert set(ACTIVATIONS) == set(_ACTIVATIONS) - {None}

_ABSENT = (0, 0, 0)


def refusal(x: Tensor) -> str | None:
    """Say why these kernels cannot compute ``x``, or None when they can."""
    if x.device.type != "cpu":
        return f"it computes on CPUs; the tensor is on {x.device}"
    if _native is None:
        return _missing
    if x.dtype not in _DTYPES:
        return f"it has no kernel for {x.dtype}"
    if type(x) is not Tensor and not isinstance(x, torch.nn.Parameter):
        return f"it needs the memory of a plain tensor; this is a {type(x).__name__}"
    return None


def targets() -> list[str]:
    """Return the instruction-set targets that this processor runs, best first; empty without compiled kernels."""
    return [] if _native is None else list(_native.targets())


def target() -> str:
    """Return the target that runs: the best, or the one that ``BATCHNORM_TARGET`` or `set_target` names."""
    return str(_native.target())


def set_target(name: str) -> None:
    """Make one target run from now on.

    Parameters
    ----------
    name : str
        One of `targets`.

    Raises
    ------
    ValueError
        This processor does not run it, or it does not exist.
    """
    if name not in targets():
        raise ValueError(
            f"a target must be one that this processor runs, {targets()}; got '{name}'. "
            "Set BATCHNORM_TARGET (read when the kernels are first used) to one of them, or leave it unset."
        )
    _native.set_target(name)


if _native is not None and os.environ.get("BATCHNORM_TARGET"):
    set_target(os.environ["BATCHNORM_TARGET"])


class _Plan(NamedTuple):
    """How the kernels walk a tensor of one shape, strides and dtype, and the outputs that belong to it."""

    layout: tuple[bool, int, int, int, int]  # rows, outer, channels, inner, dtype: first in every call into C++
    distances: tuple[int, int]  # between samples and channels, or between rows; in elements
    output_strides: tuple[int, ...]  # those of torch.empty_like, which an operator promises
    output_distances: tuple[int, int]
    recycles: bool  # whether outputs are large enough for recycled memory


#: Bytes from which the system's allocator hands out fresh pages at each call (glibc's largest threshold is higher, but
#: moves): there, faulting pages in costs more than writing them.
_LARGE = 1 << 20


@functools.lru_cache(maxsize=4096)
def _plan(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> _Plan | None:
    """Return how to walk such a tensor in place, or None where it must be copied first."""
    found = _walk(shape, strides)
    if found is None:
        return None
    rows, distances = found
    model = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    output_strides = torch.empty_like(model).stride()
    output = _walk(shape, output_strides, rows)
    if output is None:
        return None
    outer, channels, inner = shape[0], shape[1], math.prod(shape[2:])
    layout = (True, outer * inner, channels, 1) if rows else (False, outer, channels, inner)
    recycles = math.prod(shape) * dtype.itemsize >= _LARGE
    return _Plan((*layout, _DTYPES[dtype]), distances, output_strides, output[1], recycles)


def _walk(shape: torch.Size, strides: tuple[int, ...], rows: bool | None = None) -> tuple[bool, tuple[int, int]] | None:
    """Return (whether in rows, distances) for a layout that the kernels read, the given one if any; else None."""
    inner = math.prod(shape[2:])
    if rows is not True and inner > 1 and _distance(shape[2:], strides[2:]) == 1:
        return False, (strides[0], strides[1])
    if rows is not False and (shape[1] == 1 or strides[1] == 1):
        row = _distance((shape[0], *shape[2:]), (strides[0], *strides[2:]))
        if row is not None and (row >= shape[1] or shape[0] * inner == 1):
            return True, (row, 1)
    return None


def _distance(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """Return the distance between the values of dimensions that can be walked as one; None where they cannot."""
    first = expected = None
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if first is None:
            first = stride
        elif stride != expected:
            return None
        expected = stride * size
    return 1 if first is None else first


class _Call:
    """One call: the tensors whose memory it uses, kept alive, and the arguments that every kernel takes."""

    __slots__ = ("arguments", "held", "plan", "strides", "x")

    def __init__(
        self, x: Tensor, plan: _Plan, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None
    ) -> None:
        self.x, self.plan, self.strides = x, plan, x.stride()
        weight = None if weight is None else weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        parameter = bias if weight is None else weight
        self.held: list[Tensor | None] = [weight, bias]
        self.arguments = (
            *plan.layout,
            0 if weight is None else weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if parameter is None else _DTYPES[parameter.dtype],
            eps,
            _ACTIVATIONS[activation],
            torch.get_num_threads(),
        )

    def vector(self, vector: Tensor) -> int:
        """Return the address of a (C,) float64 vector."""
        vector = vector.to(torch.float64).contiguous()
        self.held.append(vector)
        return vector.data_ptr()

    def input(self, tensor: Tensor | None) -> tuple[int, int, int]:
        """Return address and distances of a tensor of x's shape, copied into x's layout where it has another."""
        if tensor is None:
            return _ABSENT
        distances = self.plan.distances
        if tensor.stride() != self.strides or tensor.dtype != self.x.dtype:
            other = None if tensor.dtype != self.x.dtype else _plan(tensor.shape, tensor.stride(), tensor.dtype)
            if other is None or other.layout != self.plan.layout:
                tensor = self._new().copy_(tensor)
                distances = self.plan.output_distances
            else:
                distances = other.distances
            self.held.append(tensor)
        return tensor.data_ptr(), *distances

    def output(self) -> tuple[Tensor, tuple[int, int, int]]:
        """Return a new tensor for a result, and its address and distances."""
        tensor = self._new()
        return tensor, (tensor.data_ptr(), *self.plan.output_distances)

    def _new(self) -> Tensor:
        """Return ``torch.empty_like(x)``, in memory that an earlier large output has left where there is some."""
        if not self.plan.recycles:
            return torch.empty_like(self.x)
        x, plan = self.x, self.plan
        capsule = _native.recycled(x.numel() * x.element_size(), plan.layout[-1], x.shape, plan.output_strides)
        return torch.empty_like(x) if capsule is None else from_dlpack(capsule)


def _vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return torch.empty(channels, dtype=torch.float64), torch.empty(channels, dtype=torch.float64)


def _of_nothing(x: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Return two (C,) vectors for a tensor without values."""
    first = torch.full((x.shape[1],), value, dtype=torch.float64)
    return first, first.clone()


def collect(x: Tensor) -> Statistics:
    """Return the mean and biased variance of each channel; NaN where it holds no value."""
    if x.numel() == 0:
        return Statistics(*_of_nothing(x, torch.nan))
    plan = _plan(x.shape, x.stride(), x.dtype)
    if plan is None:
        return collect(x.contiguous())
    call = _Call(x, plan, None, None, 0.0, None)
    mean, var = _vectors(x)
    _native.collect(*call.arguments, x.data_ptr(), *plan.distances, mean.data_ptr(), var.data_ptr())
    return Statistics(mean, var)


def normalize(
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> Tensor:
    """Return ``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``."""
    if x.numel() == 0:
        return torch.empty_like(x)
    plan = _plan(x.shape, x.stride(), x.dtype)
    if plan is None:
        y = normalize(x.contiguous(), residual, mean, var, weight, bias, eps, activation)
        return torch.empty_like(x).copy_(y)
    call = _Call(x, plan, weight, bias, eps, activation)
    y, output = call.output()
    _native.normalize(
        *call.arguments,
        x.data_ptr(),
        *plan.distances,
        *call.input(residual),
        call.vector(mean),
        call.vector(var),
        *output,
    )
    return y


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Statistics]:
    """Return the result of `normalize` with the statistics of ``x``, and these."""
    if x.numel() == 0:
        return torch.empty_like(x), Statistics(*_of_nothing(x, torch.nan))
    plan = _plan(x.shape, x.stride(), x.dtype)
    if plan is None:
        y, statistics = forward(x.contiguous(), residual, weight, bias, eps, activation)
        return torch.empty_like(x).copy_(y), statistics
    call = _Call(x, plan, weight, bias, eps, activation)
    mean, var = _vectors(x)
    y, output = call.output()
    _native.forward(
        *call.arguments,
        x.data_ptr(),
        *plan.distances,
        *call.input(residual),
        mean.data_ptr(),
        var.data_ptr(),
        *output,
    )
    return y, Statistics(mean, var)


def reduce(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> Sums:
    """Return the two sums of the backward pass."""
    if x.numel() == 0:
        return Sums(*_of_nothing(x, 0.0))
    plan = _plan(x.shape, x.stride(), x.dtype)
    if plan is None:
        return reduce(dy, x.contiguous(), residual, mean, var, weight, bias, eps, activation)
    call = _Call(x, plan, weight, bias, eps, activation)
    sum_dy, sum_dy_xhat = _vectors(x)
    _native.reduce(
        *call.arguments,
        *call.input(dy),
        x.data_ptr(),
        *plan.distances,
        *call.input(residual),
        call.vector(mean),
        call.vector(var),
        sum_dy.data_ptr(),
        sum_dy_xhat.data_ptr(),
    )
    return Sums(sum_dy, sum_dy_xhat)


def apply(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    sums: Sums,
    count: int,
) -> tuple[Tensor, Tensor | None]:
    """Return dx and dz (None without a residual), given the sums over all ``count`` values of a channel."""
    if x.numel() == 0:
        return torch.empty_like(x), None if residual is None else torch.empty_like(x)
    plan = _plan(x.shape, x.stride(), x.dtype)
    if plan is None:
        dx, dz = apply(dy, x.contiguous(), residual, mean, var, weight, bias, eps, activation, sums, count)
        return torch.empty_like(x).copy_(dx), None if dz is None else torch.empty_like(x).copy_(dz)
    call = _Call(x, plan, weight, bias, eps, activation)
    dx, dx_output = call.output()
    dz, dz_output = (None, _ABSENT) if residual is None else call.output()
    _native.apply(
        *call.arguments,
        *call.input(dy),
        x.data_ptr(),
        *plan.distances,
        *call.input(residual),
        call.vector(mean),
        call.vector(var),
        call.vector(sums.sum_dy),
        call.vector(sums.sum_dy_xhat),
        float(count),
        *dx_output,
        *dz_output,
    )
    return dx, dz


def backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    batch_statistics: bool,
) -> tuple[Tensor, Tensor | None, Sums]:
    """Return dx, dz (None without a residual) and the sums; ``batch_statistics``: mean and var are those of ``x``."""
    if x.numel() == 0:
        return torch.empty_like(x), None if residual is None else torch.empty_like(x), Sums(*_of_nothing(x, 0.0))
    plan = _plan(x.shape, x.stride(), x.dtype)
    if plan is None:
        dx, dz, sums = backward(
            dy, x.contiguous(), residual, mean, var, weight, bias, eps, activation, batch_statistics
        )
        return torch.empty_like(x).copy_(dx), None if dz is None else torch.empty_like(x).copy_(dz), sums
    call = _Call(x, plan, weight, bias, eps, activation)
    dx, dx_output = call.output()
    dz, dz_output = (None, _ABSENT) if residual is None else call.output()
    sum_dy, sum_dy_xhat = _vectors(x)
    _native.backward(
        *call.arguments,
        *call.input(dy),
        x.data_ptr(),
        *plan.distances,
        *call.input(residual),
        call.vector(mean),
        call.vector(var),
        batch_statistics,
        sum_dy.data_ptr(),
        sum_dy_xhat.data_ptr(),
        *dx_output,
        *dz_output,
    )
    return dx, dz, Sums(sum_dy, sum_dy_xhat)
