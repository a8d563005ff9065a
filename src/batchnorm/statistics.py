"""What is remembered of a batch: the arithmetic of running statistics."""

from __future__ import annotations

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


def unbiased_var(var: Tensor, count: int) -> Tensor:
    """Return the variance that divides by ``count - 1``, from the one that divides by ``count``.

    Parameters
    ----------
    var : Tensor
        Biased variance.
    count : int
        Values per channel; at least 2.

    Returns
    -------
    Tensor
        Same shape and dtype as ``var``.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`, Algorithm 2, step 10.
    """
    return var * (count / (count - 1))


def average(running: Tensor, new: Tensor, factor: float | Tensor) -> Tensor:
    """Return ``(1 - factor) * running + factor * new``, computed in the dtype of ``new``.

    Parameters
    ----------
    running, new : Tensor of shape (C,)
        The average so far and the value of this batch.
    factor : float or Tensor of shape ()
        Weight of ``new``.

    Returns
    -------
    Tensor of shape (C,)
        In the dtype of ``new``: it is rounded once, when it is stored.

    Examples
    --------
    >>> import torch
    >>> from batchnorm.statistics import average
    >>> average(torch.tensor([0.0]), torch.tensor([10.0]), 0.1)
    tensor([1.])
    """
    return torch.lerp(running.to(new.dtype), new, factor)
