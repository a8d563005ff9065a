"""What a backend must provide, and the few facts about shapes and dtypes on which all backends agree."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """Statistics to normalize with, of shape (C,) and of `statistics_dtype`.

    Attributes
    ----------
    mean : Tensor
        Mean of each channel.
    var : Tensor
        Biased variance of each channel (divides by the count).
    """

    mean: Tensor
    var: Tensor


class Sums(NamedTuple):
    """The two reductions of the backward pass, of shape (C,), with dz the gradient before the activation.

    Attributes
    ----------
    sum_dy : Tensor
        Sum of dz; it is also the gradient of ``bias``.
    sum_dy_xhat : Tensor
        Sum of dz times ``x_hat``; it is also the gradient of ``weight``.
    """

    sum_dy: Tensor
    sum_dy_xhat: Tensor


#: Of x, residual, weight and bias, each in the dtype of its tensor; None where there is no such tensor.
Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Kernels(Protocol):
    """A backend: a module with these functions.

    ``x`` is (N, C, *); ``residual`` and ``dy`` have its shape; ``weight`` and ``bias`` are (C,) or None;
    ``mean`` and ``var`` are (C,) of any floating dtype; ``activation`` is a name of `batchnorm.kernels.activations` or
    None; outputs are laid out as ``x``. `forward` is
    `collect` then `normalize`, and `backward` is `reduce` then `apply`, each in as few passes as the backend can: the
    halves are the seams at which statistics of several batches, chunks or ranks are merged.
    """

    def refusal(self, x: Tensor) -> str | None:
        """Say why this backend cannot compute ``x``, or None when it can."""

    def collect(self, x: Tensor) -> Statistics:
        """Return the statistics of ``x``; NaN where it holds no value."""

    def normalize(
        self,
        x: Tensor,
        residual: Tensor | None,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        activation: str | None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return ``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, in ``out`` where it is given.

        ``out`` is x, the residual, or a tensor that shares no memory with them.
        """

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        activation: str | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result of `normalize` with the statistics of ``x``, and these: y, mean, var."""

    def reduce(
        self,
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

    def apply(
        self,
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

    def backward(
        self,
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
    ) -> Gradients:
        """Return the gradients of all inputs; ``batch_statistics``: mean and var are those of ``x``."""

    def average(self, running: Tensor, value: Tensor, factor: float | Tensor, scale: float) -> None:
        """Move ``running`` to ``(1 - factor) * running + factor * scale * value``, in place, rounded once."""


def channel_shape(x: Tensor) -> list[int]:
    """Return the shape that lines a (C,) tensor up with the channels of ``x``: (1, C, 1, ...)."""
    return [1, -1] + [1] * (x.dim() - 2)


def reduced_dims(x: Tensor) -> list[int]:
    """Return the dimensions over which the statistics of ``x`` run: all but the channels."""
    return [0, *range(2, x.dim())]


def values_per_channel(x: Tensor) -> int:
    """Return the count of ``x``: N times the spatial size, 0 for an empty tensor."""
    channels = x.shape[1]
    return x.numel() // channels if channels else 0


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of elementwise arithmetic on ``dtype``: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def statistics_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of (C,) statistics on ``device``: float64 where the device has it.

    A float32 mean is too coarse to centre float32 data whose mean is large against its deviation, and a float32
    variance overflows where float32 data do not (docs/decisions/0002).
    """
    return torch.float32 if device.type == "mps" else torch.float64
