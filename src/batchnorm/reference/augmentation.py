"""Regularizers that change the data or leave out a layer: Cutout, Mixup, stochastic depth.

Equation numbers: ``DERIVATION_3_NETWORKS.md``, section 18.

References
----------
DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552.
Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412.
Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.reference import dropout
from batchnorm.reference._checks import Array, RandomSource, as_float, one_of, probability


class Mixed(NamedTuple):
    """A batch in which each sample is mixed with another.

    Attributes
    ----------
    x : ndarray of shape (N, *D)
        ``share * x + (1 - share) * x[order]``.
    y : ndarray of shape (N, K)
        The targets, mixed in the same way.
    share : float
        How much of itself each sample keeps.
    order : ndarray of shape (N,), int
        Which sample each was mixed with.
    """

    x: Array
    y: Array
    share: float
    order: NDArray[np.int64]


def cutout(x: ArrayLike, size: int, generator: RandomSource) -> tuple[Array, NDArray[np.bool_]]:
    """Zero one square of each image, in all channels.

    The centre is any pixel with the same probability, so part of the square may lie outside the image, as in the
    paper. An even size reaches one pixel further up and left than down and right.

    Parameters
    ----------
    x : array_like of shape (N, C, H, W)
        The images, normalized beforehand: then 0 is the mean and not black.
    size : int
        Side of the square in pixels. At least 0.
    generator : numpy.random.Generator or numpy.random.RandomState
        Where the centres are drawn from: all rows, then all columns.

    Returns
    -------
    y : ndarray of shape (N, C, H, W)
        The images with holes.
    mask : ndarray of shape (N, 1, H, W), bool
        False in the hole. The gradient with respect to ``x`` is ``dy * mask``.

    Raises
    ------
    ValueError
        ``x`` does not have four axes, or the size is negative.
    """
    x = as_float(x)
    if x.ndim != 4 or size < 0:
        raise ValueError(
            f"x must have shape (N, C, H, W) and size must be at least 0, but x has shape {x.shape} and size is "
            f"{size}. Try x[None] for one image."
        )
    samples, _, height, width = x.shape
    rows = _inside(height, np.floor(height * generator.random(samples)), size)
    columns = _inside(width, np.floor(width * generator.random(samples)), size)
    mask = ~(rows[:, None, :, None] & columns[:, None, None, :])
    return np.where(mask, x, 0.0), mask  # (114)


def mixup(x: ArrayLike, y: ArrayLike, alpha: float, generator: RandomSource) -> Mixed:
    """Mix each sample, and its target, with another of the batch.

    Parameters
    ----------
    x : array_like of shape (N, *D)
        The samples.
    y : array_like of shape (N, K)
        The targets: one-hot rows, or probabilities. For softmax the loss of mixed targets is the mixture of the losses.
    alpha : float
        The share is drawn from Beta(alpha, alpha): near 0 or 1 for a small alpha, near 1/2 for a large one. Positive.
    generator : numpy.random.Generator or numpy.random.RandomState
        Where the share and then the order are drawn from.

    Returns
    -------
    Mixed
        The samples, the targets, and how they were mixed.

    Raises
    ------
    ValueError
        ``x`` and ``y`` have different numbers of samples, ``y`` does not have two axes, or alpha is not positive.

    Examples
    --------
    >>> mixed = mixup([[0.0], [1.0]], [[1.0, 0.0], [0.0, 1.0]], alpha=1.0, generator=np.random.default_rng(0))
    >>> bool(np.all(mixed.y[:, 1] == mixed.x[:, 0]))
    True
    """
    x, y = as_float(x), as_float(y)
    if y.ndim != 2 or x.ndim < 1 or len(x) != len(y) or not alpha > 0:
        raise ValueError(
            f"y must have one row per sample of x and alpha must be positive, but x has shape {x.shape}, y {y.shape} "
            f"and alpha is {alpha}. Try np.eye(classes)[y] for integer labels."
        )
    share = float(generator.beta(alpha, alpha))
    order = np.asarray(generator.permutation(len(x)), dtype=np.int64)
    mixed_x = share * x + (1.0 - share) * x[order]  # (115)
    mixed_y = share * y + (1.0 - share) * y[order]  # (115)
    return Mixed(mixed_x, mixed_y, share, order)


def stochastic_depth_forward(
    branch: ArrayLike,
    *,
    keep_prob: float | None = None,
    drop_prob: float | None = None,
    generator: RandomSource | None = None,
    mode: str = "row",
    training: bool = True,
    inverted: bool = True,
) -> tuple[Array, dropout.Cache]:
    """Leave out the branch of a residual block: ``x + stochastic_depth(branch(x))``.

    Parameters
    ----------
    branch : array_like of shape (N, *D)
        What the block would add to its input.
    keep_prob, drop_prob : float
        One of them, by its name: in (0, 1] to keep, or in [0, 1) to drop. See `linear_survival`.
    generator : numpy.random.Generator or numpy.random.RandomState, optional
        Where it is drawn from. Needed in training.
    mode : {'row', 'batch'}, default='row'
        Decide for each sample, or once for the batch as in the paper.
    training : bool, default=True
        False: nothing is left out.
    inverted : bool, default=True
        True: a branch that is kept is divided by keep_prob, and nothing is done at test time (torchvision). False:
        the paper's rule, which multiplies by keep_prob at test time.

    Returns
    -------
    y : ndarray of shape (N, *D)
        The branch, or zeros.
    cache : dropout.Cache
        For `dropout.backward`.

    Raises
    ------
    ValueError
        An unknown mode, or what `dropout.forward` raises.
    """
    one_of("mode", mode, ("row", "batch"))
    branch = as_float(branch)
    mask = None
    if training and generator is not None:
        decisions = (len(branch) if mode == "row" else 1, *[1] * (branch.ndim - 1))
        drawn = dropout.draw_mask(decisions, keep_prob=keep_prob, drop_prob=drop_prob, generator=generator)
        mask = np.broadcast_to(drawn, branch.shape)
    forward = dropout.forward if inverted else dropout.original_forward
    return forward(branch, keep_prob=keep_prob, drop_prob=drop_prob, mask=mask, training=training)  # (116)


def linear_survival(block: int, blocks: int, last: float = 0.5) -> float:
    """Probability to keep a block that falls with depth, from almost 1 to ``last``.

    Parameters
    ----------
    block : int
        Which block, from 1 to ``blocks``.
    blocks : int
        How many there are.
    last : float, default=0.5
        Probability to keep the last one.

    Returns
    -------
    float
        ``1 - block / blocks * (1 - last)``.

    Raises
    ------
    ValueError
        A block that does not exist, or a probability outside [0, 1].

    Examples
    --------
    >>> [linear_survival(block, 4) for block in (1, 2, 3, 4)]
    [0.875, 0.75, 0.625, 0.5]
    """
    if not 1 <= block <= blocks:
        raise ValueError(f"block must be from 1 to {blocks}, but is {block}. Try block + 1 if it counts from 0.")
    return 1.0 - block / blocks * (1.0 - probability("last", last))  # (117)


def _inside(length: int, centre: Array, size: int) -> NDArray[np.bool_]:
    """Which of ``length`` positions lie within ``size`` of each centre: shape (N, length)."""
    start = centre[:, None] - size // 2
    position = np.arange(length)
    return (position >= start) & (position < start + size)
