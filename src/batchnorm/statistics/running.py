"""What is remembered of a batch: how much it weighs in the running statistics."""

from __future__ import annotations

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
