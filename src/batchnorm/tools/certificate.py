"""Bounds on how far a folded layer's output can be from that of the two layers that it replaces.

Every sum of ``n`` products in floating point, in any order, is within ``gamma(n) = n u / (1 - n u)`` of the exact one,
times the sum of the absolute values (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1); ``u``
is half the distance from 1 to the next number. Below, both ways are compared with the exact value, and the two errors
are added. Algorithms that do not sum products (Winograd's, TensorFloat-32) are outside this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchnorm.tools import linear
from batchnorm.tools.affine import Affine

#: Roundings in the evaluation of (x - mean) / sqrt(var + eps) * weight + bias, in any form.
_AFFINE = 10


@dataclass(frozen=True)
class _Arithmetic:
    """The roundings of a dtype: half precision is summed in float32 and rounded at the end."""

    dtype: torch.dtype

    @property
    def _sum(self) -> float:
        wide = torch.float32 if self.dtype in (torch.float16, torch.bfloat16) else self.dtype
        return torch.finfo(wide).eps / 2

    @property
    def stored(self) -> float:
        """Relative error of a number that was computed in float64 and stored."""
        return float(torch.finfo(self.dtype).eps / 2 + 16 * torch.finfo(torch.float64).eps)

    @property
    def last(self) -> float:
        """Relative error of rounding a result to the dtype; part of the sum's where that is in the dtype."""
        return self.stored if self.dtype in (torch.float16, torch.bfloat16) else 0.0

    @property
    def least(self) -> float:
        """Absolute error of any operation whose result is too small for a normal number."""
        return float(torch.finfo(self.dtype).tiny)

    def gamma(self, n: int) -> float:
        n = n + 2
        return n * self._sum / (1 - n * self._sum) if n * self._sum < 1 else float("inf")


def of_linear_then_affine(layer: Any, found: Affine, largest: float) -> float:
    """Bound the error of a layer with a normalization folded into its outputs, for inputs up to ``largest``."""
    a = _Arithmetic(layer.weight.dtype)
    rows, bias, scale = linear.rows(layer), linear.bias_of(layer), found.scale.abs()
    n = rows.shape[1] * rows.shape[2] + 1
    size = rows.abs().sum((1, 2)) * largest + bias.abs()
    error = _rounded(a, a.gamma(n) * size, size) + (n + 1) * a.least
    before = scale * error + _affine(a, found, size + error)
    folded = rows.abs().sum((1, 2)) * scale * largest + (found.bias + (bias - found.mean) * found.scale).abs()
    after = _rounded(a, (a.stored + a.gamma(n) * (1 + a.stored)) * folded, folded) + (n + 1) * a.least * (1 + largest)
    return float((before + after).amax())


def of_affine_then_linear(found: Affine, layer: Any, largest: float) -> float:
    """Bound the error of a layer with a normalization folded into its inputs."""
    a = _Arithmetic(layer.weight.dtype)
    rows, bias = linear.rows(layer), linear.bias_of(layer)
    n = rows.shape[1] * rows.shape[2] + 1
    x = torch.full_like(found.scale, largest)
    middle = found.scale.abs() * x + found.shift.abs()
    inner = _affine(a, found, x)
    weights = rows.abs()
    through = (weights * linear.per_input(layer, inner)).sum((1, 2))
    size = (weights * linear.per_input(layer, middle + inner)).sum((1, 2)) + bias.abs()
    before = through + _rounded(a, a.gamma(n) * size, size) + (n + 1) * a.least
    added = (weights * linear.per_input(layer, found.shift.abs())).sum((1, 2)) + bias.abs()
    folded = (weights * linear.per_input(layer, found.scale.abs())).sum((1, 2)) * largest + added
    wide = n * torch.finfo(torch.float64).eps
    after = _rounded(a, (a.stored + wide + a.gamma(n) * (1 + a.stored)) * folded, folded)
    return float((before + after + (n + 1) * a.least * (1 + largest)).amax())


def of_affine_then_affine(first: Affine, second: Affine, both: Affine, dtype: torch.dtype, largest: float) -> float:
    """Bound the error of two normalizations as one."""
    a = _Arithmetic(dtype)
    x = torch.full_like(first.scale, largest)
    inner = _affine(a, first, x)
    middle = first.scale.abs() * x + first.shift.abs() + inner
    before = second.scale.abs() * inner + _affine(a, second, middle)
    stored = a.stored * ((x + both.mean.abs()) * both.scale.abs() + both.bias.abs())
    return float((before + 2 * stored + _affine(a, both, x)).amax())


def _affine(a: _Arithmetic, found: Affine, size: Tensor) -> Tensor:
    """Bound the rounding error of a normalization for inputs up to ``size``."""
    terms = (size + found.mean.abs()) * found.scale.abs() + found.bias.abs()
    return _rounded(a, a.gamma(_AFFINE) * terms, terms) + _AFFINE * a.least * (1 + found.scale.abs())


def _rounded(a: _Arithmetic, error: Tensor, size: Tensor) -> Tensor:
    return error + a.last * (size + error)
