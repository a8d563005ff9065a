"""What is remembered of a batch: the arithmetic of running statistics."""

from __future__ import annotations

from torch import Tensor

from batchnorm import autograd
from batchnorm.kernels import eager, registry
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


def update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, factor: float | Tensor
) -> None:
    r"""Move the running statistics towards those of a batch, in place.

    .. math:: r \leftarrow (1 - f) r + f s

    with s the mean, and the unbiased variance: :math:`\mathrm{var} \cdot m / (m - 1)` for m values.

    Parameters
    ----------
    running_mean, running_var : Tensor of shape (C,)
        Updated in place, computed in the dtype of ``mean`` and rounded once.
    mean, var : Tensor of shape (C,)
        Of the batch; the variance is the biased one.
    count : int
        Values per channel; at least 2.
    factor : float or Tensor of shape ()
        Weight of the batch.

    References
    ----------
    DERIVATION, running statistics. Ioffe and Szegedy 2015, :arxiv:`1502.03167`, Algorithm 2, step 10.

    Examples
    --------
    >>> import torch
    >>> from batchnorm.statistics import update
    >>> running_mean, running_var = torch.tensor([0.0]), torch.tensor([1.0])
    >>> update(running_mean, running_var, torch.tensor([10.0]), torch.tensor([2.0]), 3, 0.5)
    >>> running_mean, running_var
    (tensor([5.]), tensor([2.]))
    """
    # Where somebody traces, or the factor is a tensor, torch's own operations are what can be seen and need no reading.
    direct = isinstance(factor, float) and autograd.nobody_looks(running_mean)
    kernels = registry.select(running_mean) if direct else eager
    kernels.average(running_mean, mean, factor, 1.0)
    kernels.average(running_var, var, factor, count / (count - 1))
