"""The values that every call is made of, the functions of a backend, and facts on which all backends agree."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Reduction(NamedTuple):
    """Which values share statistics. In place of one, None: the statistics are constants.

    Attributes
    ----------
    group_size : int or None
        Samples per group, taken consecutively; the last group may be shorter. None: the whole batch is one group.
    mask : Tensor of shape (N, 1, *), bool, or None
        The values that enter the statistics, contiguous. None: all of them.
    """

    group_size: int | None = None
    mask: Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether all values of a channel share statistics."""
        return self.group_size is None and self.mask is None

    def groups(self, samples: int) -> int:
        """Return G, the number of groups among ``samples``; at least 1."""
        return 1 if self.group_size is None else max(1, -(-samples // self.group_size))


#: All values of each channel.
WHOLE_BATCH = Reduction()


class Statistics(NamedTuple):
    """Mean and variance of each channel in each of G groups, in `statistics_dtype`.

    Attributes
    ----------
    mean : Tensor of shape (G, C)
        Mean; NaN for a group without a value.
    var : Tensor of shape (G, C)
        Biased variance (divides by the count).
    count : Tensor of shape (G, 1) or None
        Values per channel. It may exceed what one process holds. None: unknown, for statistics that are constants;
        then ``mean`` and ``var`` may also have shape (C,) and any floating dtype.
    """

    mean: Tensor
    var: Tensor
    count: Tensor | None = None  # type: ignore[assignment]  # instead of a tuple's method of that name

    @property
    def unbiased_var(self) -> Tensor:
        """The variance that divides by count - 1, which only running statistics use."""
        count: Tensor = self.count  # type: ignore[assignment]  # of a batch: there is one
        return self.var * (count / (count - 1))

    def usable(self, finite_only: bool) -> Tensor:
        """Return which groups may enter running statistics: of two values or more and, if so asked, finite ones.

        Returns
        -------
        Tensor of shape (G,), bool
        """
        several = torch.gt(self.count, 1).view(-1)  # type: ignore[arg-type]  # of a batch: there is one
        if not finite_only:
            return several
        return several & self.mean.isfinite().all(1) & self.var.isfinite().all(1)


class Running(NamedTuple):
    """The buffers that a training forward changes; None where a layer has no such buffer.

    Attributes
    ----------
    mean, var : Tensor of shape (C,)
        Running statistics.
    tracked, skipped : Tensor of shape (), int
        How many batches have entered them, and how many have not because they were not finite.
    """

    mean: Tensor | None
    var: Tensor | None
    tracked: Tensor | None = None
    skipped: Tensor | None = None

    def count_groups(self, entered: Tensor, statistics: Statistics) -> None:
        """Count the groups that have entered, and those of two values or more that have not, in place."""
        if self.tracked is not None:
            self.tracked.add_(entered)
        if self.skipped is not None:
            self.skipped.add_(statistics.usable(finite_only=False).sum() - entered)


class Epilogue(NamedTuple):
    """What follows the normalization.

    Attributes
    ----------
    weight, bias : Tensor of shape (C,) or None
        Affine parameters; None: 1 and 0.
    residual : Tensor of shape (N, C, *) or None
        Added before the activation.
    activation : str or None
        A name of `batchnorm.kernels.activations`.
    mask : Tensor of shape (N, 1, *), bool, or None
        The outputs to keep, contiguous; outputs and gradients elsewhere are exactly 0. None: all of them.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: str | None = None
    mask: Tensor | None = None


class Sums(NamedTuple):
    """The two reductions of the backward pass, of shape (G, C), with dz the gradient before the activation.

    Attributes
    ----------
    sum_dy : Tensor
        Sum of dz; over all groups it is the gradient of ``bias``.
    sum_dy_xhat : Tensor
        Sum of dz times ``x_hat``; over all groups it is the gradient of ``weight``.
    """

    sum_dy: Tensor
    sum_dy_xhat: Tensor


class Gradients(NamedTuple):
    """Gradients of x, residual, weight and bias, each in the dtype of its tensor; None for a tensor that is None."""

    dx: Tensor
    dresidual: Tensor | None
    dweight: Tensor | None
    dbias: Tensor | None


class Kernels(Protocol):
    """A backend: a module with these functions.

    ``x`` is (N, C, *), ``residual`` and ``dy`` have its shape, and outputs are laid out as ``x``. `forward` is
    `collect` then `normalize`, and `backward` is `reduce` then `apply`, each in as few passes as the backend can. The
    halves are the seams at which a policy merges statistics and sums of several batches or ranks.
    """

    def refusal(self, x: Tensor, reduction: Reduction | None = None, epilogue: Epilogue | None = None) -> str | None:
        """Return why this backend cannot compute the call, or None when it can."""

    def target(self) -> str:
        """Return the name of the instruction set that runs; empty where torch chooses it."""

    def copied(self, x: Tensor) -> str | None:
        """Return why ``x`` is copied before it is computed, or None when it is read in place."""

    def collect(self, x: Tensor, reduction: Reduction) -> Statistics:
        """Return the statistics of ``x``."""

    def normalize(
        self,
        x: Tensor,
        statistics: Statistics,
        reduction: Reduction | None,
        epilogue: Epilogue,
        eps: float,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return ``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``.

        ``out``, where the result is written if given, is x, the residual, or a tensor that shares no memory with them.
        """

    def forward(self, x: Tensor, reduction: Reduction, epilogue: Epilogue, eps: float) -> tuple[Tensor, Statistics]:
        """Return the result of `normalize` with the statistics of ``x``, and these."""

    def reduce(
        self,
        dy: Tensor,
        x: Tensor,
        statistics: Statistics,
        reduction: Reduction | None,
        epilogue: Epilogue,
        eps: float,
    ) -> Sums:
        """Return the two sums of the backward pass."""

    def apply(
        self,
        dy: Tensor,
        x: Tensor,
        statistics: Statistics,
        sums: Sums,
        reduction: Reduction | None,
        epilogue: Epilogue,
        eps: float,
    ) -> tuple[Tensor, Tensor | None]:
        """Return dx and dresidual (None without a residual), given the sums over all values that share statistics."""

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        statistics: Statistics,
        reduction: Reduction | None,
        epilogue: Epilogue,
        eps: float,
    ) -> Gradients:
        """Return the gradients of all inputs."""

    def update(self, running: Running, statistics: Statistics, factor: float | Tensor, finite_only: bool) -> None:
        """Move running statistics, which are there, towards those of each group in turn, and count, in place.

        Buffers are rounded once per group. ``factor`` is the weight of a group: one for all, or a tensor of shape (G,).
        The variance enters unbiased. A group that is not `Statistics.usable` leaves the buffers alone.
        """


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
    """Return the dtype of statistics on ``device``: float64 where the device has it.

    A float32 mean is too coarse to centre float32 data whose mean is large against its deviation, and a float32
    variance overflows where float32 data do not (docs/decisions/0002).
    """
    return torch.float32 if device.type == "mps" else torch.float64
