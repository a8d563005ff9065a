"""What is remembered of a batch: how much it weighs in the running statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from batchnorm.kernels.interface import statistics_dtype


def cumulative_factor(num_batches_tracked: Tensor) -> Tensor:
    r"""Return the weight of the new batch in the cumulative average: 1 over the number of batches.

    .. math:: r_n = (1 - f) r_{n-1} + f s_n

    With :math:`f = 1/n` that is the mean of the first n values; a constant f is the exponential average.

    Parameters
    ----------
    num_batches_tracked : Tensor of shape ()
        How many batches the average will hold, the new one included.

    Returns
    -------
    Tensor of shape ()
        It is never read on the host, so graphs stay whole (pytorch/pytorch#194504).

    References
    ----------
    DERIVATION, running statistics. Ioffe and Szegedy 2015, :arxiv:`1502.03167`, section 3.1.
    """
    return num_batches_tracked.to(statistics_dtype(num_batches_tracked.device)).reciprocal()


def debiased_factor(momentum: float | Tensor, num_batches_tracked: Tensor) -> Tensor:
    r"""Return the weight of the new batch in an exponential average without its initial value.

    .. math:: f_n = \frac{\alpha}{1 - (1 - \alpha)^n}

    :math:`f_1 = 1`, and :math:`f_n \to \alpha`; for :math:`\alpha \to 0` it is the cumulative average.

    Parameters
    ----------
    momentum : float or Tensor of shape ()
        Weight of a new batch in the long run, in (0, 1].
    num_batches_tracked : Tensor
        How many batches the average will hold, the new one included.

    Returns
    -------
    Tensor
        Shape of ``num_batches_tracked``.

    References
    ----------
    DERIVATION (182). Kingma and Ba 2015, :arxiv:`1412.6980`, section 3.
    """
    n = num_batches_tracked.to(statistics_dtype(num_batches_tracked.device))
    if isinstance(momentum, Tensor):
        return momentum / -torch.expm1(n * torch.log1p(-momentum))
    return torch.ones_like(n) if momentum == 1 else momentum / -torch.expm1(n * math.log1p(-momentum))


def momentum_of_half_life(half_life: float) -> float:
    r"""Return the momentum with which the weight of a batch has halved after so many batches.

    .. math:: \alpha = 1 - 2^{-1/h}

    Parameters
    ----------
    half_life : float
        In batches; positive.

    Returns
    -------
    float

    References
    ----------
    DERIVATION (179).

    Examples
    --------
    >>> momentum_of_half_life(1.0)
    0.5
    """
    return -math.expm1(-math.log(2) / half_life)
