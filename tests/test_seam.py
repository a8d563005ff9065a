"""The seam for policies: a new one is a class of a few lines, and nothing else changes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import batchnorm
from batchnorm.kernels.interface import Reduction, Statistics, Sums
from batchnorm.statistics.policies import Policy
from batchnorm.statistics.population import merge


@dataclass(frozen=True)
class FirstHalf(Policy):
    """Normalize the whole batch with the statistics of its first half."""

    def reduction(self, x: Tensor, mask: Tensor | None) -> Reduction:
        half = torch.zeros(x.shape[0], 1, *x.shape[2:], dtype=torch.bool, device=x.device)
        half[: x.shape[0] // 2] = True
        return Reduction(mask=half if mask is None else half & mask)


@dataclass(frozen=True)
class WithElsewhere(Policy):
    """Normalize with the statistics of this batch and of values that another rank holds."""

    elsewhere: Statistics
    sums: Sums

    def merge(self, statistics: Statistics) -> Statistics:
        return merge(statistics, self.elsewhere)

    def total(self, sums: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(sums, self.sums, strict=True)))


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _first_half(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    half, shape = x[: x.shape[0] // 2], (1, -1, *[1] * (x.dim() - 2))
    dims = [0, *range(2, x.dim())]
    mean, var = half.mean(dims, keepdim=True), half.var(dims, unbiased=False, keepdim=True)
    return torch.relu((x - mean) * (var + eps).rsqrt() * weight.view(shape) + bias.view(shape))


@pytest.mark.parametrize("shape", [(9, 3), (5, 3, 4), (6, 3, 4, 5)], ids=str)
def test_statistics_of_the_first_half_of_the_batch(shape: tuple[int, ...]) -> None:
    layers = {2: batchnorm.BatchNorm1d, 3: batchnorm.BatchNorm1d, 4: batchnorm.BatchNorm2d}
    layer = layers[len(shape)](3, activation="relu", statistics=FirstHalf()).double()
    x, dy = (_draw(*shape, seed=s) * 3 + 5 for s in (0, 1))
    with torch.no_grad():
        layer.weight.copy_(_draw(3, seed=2))
        layer.bias.copy_(_draw(3, seed=3))
    results = []
    for function in (layer, lambda x: _first_half(x, layer.weight, layer.bias)):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        results.append((y, *torch.autograd.grad(y, (leaf, layer.weight, layer.bias), dy)))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    half = x[: shape[0] // 2].transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.running_mean, 0.1 * half.mean(1))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * half.var(1))
    assert layer.num_batches_tracked == 1
    arguments = (x[:4].clone().requires_grad_(), layer.weight, layer.bias)
    function = lambda x, w, b: torch.func.functional_call(copy.deepcopy(layer), {"weight": w, "bias": b}, (x,))  # noqa: E731
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


def test_statistics_and_sums_of_two_ranks() -> None:
    """Each half, given what the other one has, gets the output and the gradient that it has in the whole batch."""
    x, dy = _draw(7, 3, 4, seed=0) * 2 + 1, _draw(7, 3, 4, seed=1)
    whole = batchnorm.BatchNorm1d(3, activation="silu").double()
    leaf = x.clone().requires_grad_()
    y = whole(leaf)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    cuts = slice(0, 3), slice(3, 7)
    for mine, other in (cuts, cuts[::-1]):
        found, sums = [], []
        # What the other rank has: its statistics, then, given those of the whole batch, its sums.
        flat = (None, None, whole.weight.detach(), whole.bias.detach(), None, "silu", None, 1e-5)
        found = Statistics(*torch.ops.batchnorm.collect(x[other], None, None))
        all_of_it = torch.ops.batchnorm.collect(x, None, None)
        sums = Sums(*torch.ops.batchnorm.reduce(dy[other], x[other], *all_of_it, *flat))
        layer = batchnorm.BatchNorm1d(3, activation="silu", statistics=WithElsewhere(found, sums)).double()
        leaf = x[mine].clone().requires_grad_()
        part = layer(leaf)
        torch.testing.assert_close(part, y[mine], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(part, leaf, dy[mine])[0], dx[mine], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(layer.running_var, whole.running_var)


def test_a_merged_policy_is_right_in_second_derivatives_and_forward_mode() -> None:
    elsewhere = Statistics(*torch.ops.batchnorm.collect(_draw(5, 2, seed=3) + 2, None, None))
    none = Sums(*(torch.zeros(1, 2, dtype=torch.float64) for _ in range(2)))  # the other rank's values are constants
    policy = WithElsewhere(elsewhere, none)

    def function(x: Tensor) -> Tensor:
        return batchnorm.functional.batch_norm(x, None, None, training=True, statistics=policy, activation="tanh")

    x = _draw(4, 2, seed=0).requires_grad_()
    assert gradcheck(function, x, check_forward_ad=True)
    assert gradgradcheck(function, x)
    naive = batchnorm.functional.batch_norm(x, None, None, training=True, activation="tanh")
    assert (function(x) - naive).abs().max() > 0.1
