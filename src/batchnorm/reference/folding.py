"""Folding: a batch normalization in test mode disappears into the layer before it.

A layer is linear in its weight, and test-mode batch normalization multiplies each of its output channels by one number
and adds another, so both together are one layer. Here are the arrays only; tools for networks are elsewhere.
Equation numbers: ``DERIVATION_2_WHITENING.md``, section 13.

In this module ``weight`` and ``bias`` are those of the normalization, ``layer_weight`` and ``layer_bias`` those of the
layer. Folding is exact algebra but not free of rounding: see section 11 for when the mean is large.

References
----------
Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv:1712.05877, section 3.2.
"""

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference._checks import Array, as_float, with_shape


def scale_shift(
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """Two numbers per channel that say all that batch normalization does at test time: ``y = scale * x + shift``.

    Parameters
    ----------
    running_mean, running_var : array_like of shape (C,)
        Stored statistics.
    weight, bias : array_like of shape (C,), optional
        Default: 1 and 0.
    eps : float, default=1e-5
        Added to ``running_var`` inside the root.

    Returns
    -------
    scale, shift : ndarray of shape (C,)
        ``weight * invstd`` and ``bias - running_mean * scale``.

    Raises
    ------
    ValueError
        Shapes that differ, or ``running_var + eps`` not positive.

    Examples
    --------
    >>> scale, shift = scale_shift([1.0], [4.0], weight=[3.0], eps=0.0)
    >>> scale.tolist(), shift.tolist()
    ([1.5], [-1.5])
    """
    mean = as_float(running_mean)
    var = with_shape("running_var", running_var, mean.shape, "running_mean")
    weight = np.ones_like(mean) if weight is None else with_shape("weight", weight, mean.shape, "running_mean")
    bias = np.zeros_like(mean) if bias is None else with_shape("bias", bias, mean.shape, "running_mean")
    if not eps >= 0 or np.any(var + eps <= 0):
        raise ValueError(
            f"running_var + eps must be positive in every channel and eps at least 0, but eps is {eps} and the "
            f"smallest running_var is {np.min(var, initial=np.inf)}. Try eps=1e-5."
        )
    scale = weight / np.sqrt(var + eps)  # (84)
    return scale, bias - mean * scale  # (32)


def fold(
    layer_weight: ArrayLike,
    layer_bias: ArrayLike | None,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """Fold a normalization into the linear layer or convolution before it.

    Parameters
    ----------
    layer_weight : array_like of shape (C, in) or (C, in / groups, *K)
        Output channels first, as torch stores them: then the number of groups makes no difference.
    layer_bias : array_like of shape (C,), or None
        None: the layer has no bias. The folded one always has.
    running_mean, running_var : array_like of shape (C,)
        Stored statistics of the normalization.
    weight, bias : array_like of shape (C,), optional
        Of the normalization. Default: 1 and 0.
    eps : float, default=1e-5
        Added to ``running_var`` inside the root.

    Returns
    -------
    folded_weight : ndarray of the shape of ``layer_weight``
        Each output channel times its scale.
    folded_bias : ndarray of shape (C,)
        What is added after it.

    Raises
    ------
    ValueError
        Shapes that do not fit, or ``running_var + eps`` not positive.

    Examples
    --------
    >>> folded_weight, folded_bias = fold([[2.0]], [5.0], running_mean=[1.0], running_var=[4.0], eps=0.0)
    >>> folded_weight.tolist(), folded_bias.tolist()  # (2 x + 5 - 1) / 2
    ([[1.0]], [2.0])
    """
    scale, folded_bias = _scale_and_bias(layer_bias, running_mean, running_var, weight, bias, eps)
    kernel = as_float(layer_weight)
    if kernel.ndim < 2 or len(kernel) != len(scale):
        raise ValueError(
            f"layer_weight must have {len(scale)} output channels on axis 0, as many as running_mean, but has shape "
            f"{kernel.shape}. Try fold_transposed for a transposed convolution, or layer_weight.T."
        )
    return kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1)), folded_bias  # (86)


def fold_transposed(
    layer_weight: ArrayLike,
    layer_bias: ArrayLike | None,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    groups: int = 1,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """Fold a normalization into the transposed convolution before it.

    Parameters
    ----------
    layer_weight : array_like of shape (in, C / groups, *K)
        Input channels first, as torch stores those of a transposed convolution.
    layer_bias, running_mean, running_var, weight, bias : optional
        As in `fold`.
    groups : int, default=1
        Input channels come in ``groups`` blocks; block g makes the g-th block of C / groups output channels.
    eps : float, default=1e-5
        Added to ``running_var`` inside the root.

    Returns
    -------
    folded_weight : ndarray of the shape of ``layer_weight``
        Each output channel times its scale.
    folded_bias : ndarray of shape (C,)
        What is added after it.

    Raises
    ------
    ValueError
        Shapes or ``groups`` that do not fit, or ``running_var + eps`` not positive.
    """
    scale, folded_bias = _scale_and_bias(layer_bias, running_mean, running_var, weight, bias, eps)
    kernel = as_float(layer_weight)
    if kernel.ndim < 3 or groups < 1 or len(kernel) % groups or kernel.shape[1] * groups != len(scale):
        raise ValueError(
            f"layer_weight must have shape (in, {len(scale)} / groups, *K) with in a multiple of groups, but has shape "
            f"{kernel.shape} and groups is {groups}. Try fold for a convolution that is not transposed."
        )
    blocks = kernel.reshape(groups, -1, *kernel.shape[1:])  # (groups, in / groups, C / groups, *K)
    factors = scale.reshape(groups, 1, -1, *[1] * (kernel.ndim - 2))
    return (blocks * factors).reshape(kernel.shape), folded_bias  # (87)


def _scale_and_bias(
    layer_bias: ArrayLike | None,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    eps: float,
) -> tuple[Array, Array]:
    scale, _ = scale_shift(running_mean, running_var, weight, bias, eps=eps)
    mean = as_float(running_mean)
    bias = np.zeros_like(mean) if bias is None else as_float(bias)
    layer_bias = np.zeros_like(mean) if layer_bias is None else layer_bias
    layer_bias = with_shape("layer_bias", layer_bias, mean.shape, "running_mean")
    # The difference first: a layer's bias is part of what the running mean has seen, and the two cancel.
    return scale, bias + (layer_bias - mean) * scale  # (85)
