"""Whitening: full decorrelation of a batch, the costly alternative to batch normalization.

Batch normalization makes the variance of each channel 1 and leaves the channels correlated. Whitening makes the
covariance matrix the identity. It needs an eigendecomposition, forward and backward, which is why the paper (section
3) decides against it; `cost` has the numbers. Equation numbers: ``DERIVATION_2_WHITENING.md``, section 12.

References
----------
Ioffe and Szegedy 2015, arXiv:1502.03167, section 2. Kessy, Lewin and Strimmer 2018, "Optimal whitening and
decorrelation", arXiv:1512.00809. Huang et al. 2018, "Decorrelated Batch Normalization", arXiv:1804.08450.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference._checks import Array, as_float, one_of, with_shape
from batchnorm.reference.statistics import as_batch, centre, from_rows, row_mean, to_rows

METHODS = ("pca", "zca")


class Cache(NamedTuple):
    """What the backward needs of a forward.

    Attributes
    ----------
    centred : ndarray of shape (count, C)
        ``x - mean``, as rows.
    mean : ndarray of shape (C,)
        Mean of the batch.
    matrix : ndarray of shape (C, C)
        The whitening matrix: ``x_hat = matrix @ centred`` for each row.
    eigenvalues : ndarray of shape (C,)
        Of the covariance matrix, largest first, without ``eps``.
    eigenvectors : ndarray of shape (C, C)
        One per column. The component of the largest absolute value is positive in each, so that PCA has one result.
    eps : float
        Added to the eigenvalues.
    method : {'pca', 'zca'}
        Which matrix it is.
    shape : tuple of int
        That of ``x``.
    """

    centred: Array
    mean: Array
    matrix: Array
    eigenvalues: Array
    eigenvectors: Array
    eps: float
    method: str
    shape: tuple[int, ...]


class Cost(NamedTuple):
    """Floating-point operations of one forward over (count, C) rows.

    Attributes
    ----------
    batch_norm : int
        Mean, centring, variance and scaling.
    pca, zca : int
        Mean, centring, covariance, eigendecomposition (about 9 C^3), matrix and product.
    """

    batch_norm: int
    pca: int
    zca: int


def forward(x: ArrayLike, *, method: str = "zca", eps: float = 1e-5) -> tuple[Array, Cache]:
    r"""Subtract the mean and decorrelate the channels: the covariance of the output is the identity, up to ``eps``.

    .. math:: \hat x_i = P (x_i - \mu), \qquad P (\Sigma + \epsilon I) P^T = I

    Parameters
    ----------
    x : array_like of shape (N, C, *S)
        The batch. A position in space counts as one more sample.
    method : {'zca', 'pca'}, default='zca'
        zca: the symmetric matrix, whose output is the nearest to the input. pca: the output's channels are the
        principal components, largest variance first.
    eps : float, default=1e-5
        Added to the eigenvalues of the covariance matrix. At least 0. Without it more values per channel than
        channels are needed, because the covariance of fewer is singular.

    Returns
    -------
    x_hat : ndarray of shape (N, C, *S)
        The whitened batch.
    cache : Cache
        For `backward`; its ``mean`` and ``matrix`` are what `apply` needs.

    Raises
    ------
    ValueError
        An unknown method, an empty batch, or a covariance matrix that is singular even with ``eps``.

    Examples
    --------
    >>> import numpy as np
    >>> x_hat, cache = forward([[0.0, 0.0], [4.0, 1.0], [1.0, 4.0], [5.0, 5.0]], eps=0.0)
    >>> (x_hat.T @ x_hat / 4).round(12).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    one_of("method", method, METHODS)
    x = as_batch(x)
    rows = to_rows(x)
    if len(rows) == 0:
        raise ValueError(f"whitening needs at least one value per channel, but x has shape {x.shape}. Try a batch.")
    mean, centred = centre(rows)  # (1), (2)
    covariance = centred.T @ centred / len(rows)  # (65)
    eigenvalues, eigenvectors = _eigen(covariance)  # (66)
    if not eps >= 0 or eigenvalues[-1] + eps <= len(covariance) * np.finfo(np.float64).eps * eigenvalues[0]:
        raise ValueError(
            f"the covariance matrix plus eps must be positive definite and eps at least 0, but eps is {eps} and the "
            f"eigenvalues go from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g} for {len(rows)} values of each of "
            f"{len(covariance)} channels. Try eps=1e-5, or a larger batch."
        )
    root = 1.0 / np.sqrt(eigenvalues + eps)  # (67)
    matrix = root[:, None] * eigenvectors.T  # (68)
    if method == "zca":
        matrix = eigenvectors @ matrix  # (69)
    x_hat = centred @ matrix.T  # (70)
    cache = Cache(centred, mean, matrix, eigenvalues, eigenvectors, eps, method, x.shape)
    return from_rows(x_hat, x.shape), cache


def backward(dy: ArrayLike, cache: Cache) -> Array:
    """Backward of `forward`, through the eigendecomposition.

    The gradient of PCA divides by the differences of eigenvalues: where two are equal the principal axes are not
    unique, the function jumps, and there is no gradient. ZCA has one everywhere, because these differences cancel.

    Parameters
    ----------
    dy : array_like of shape (N, C, *S)
        Gradient of the loss with respect to the output.
    cache : Cache
        From `forward`.

    Returns
    -------
    dx : ndarray of shape (N, C, *S)
        Gradient of the loss with respect to ``x``.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of ``x``, or the method is pca and two eigenvalues are equal.
    """
    rows = to_rows(with_shape("dy", dy, cache.shape, "x"))
    centred, values, vectors = cache.centred, cache.eigenvalues, cache.eigenvectors
    root = 1.0 / np.sqrt(values + cache.eps)  # (67)

    dcentred = rows @ cache.matrix  # (73)
    dmatrix = rows.T @ centred  # (74)
    if cache.method == "pca":
        gaps = _gaps(values)
        dvalues = -0.5 * root**3 * np.diag(dmatrix @ vectors)  # (75)
        rotation = np.divide(vectors.T @ dmatrix.T * root, gaps, out=np.zeros_like(gaps), where=gaps != 0)  # (76)
        dcovariance = vectors @ _symmetric(np.diag(dvalues) + rotation) @ vectors.T  # (77)
    else:
        slopes = -(np.outer(root, root) ** 2) / (root[:, None] + root)  # (78)
        dcovariance = vectors @ (slopes * (vectors.T @ _symmetric(dmatrix) @ vectors)) @ vectors.T  # (79)
    dcentred = dcentred + 2.0 / len(rows) * centred @ dcovariance  # (80)
    dx = dcentred - row_mean(dcentred)  # (81)
    return from_rows(dx, cache.shape)


def apply(x: ArrayLike, mean: ArrayLike, matrix: ArrayLike) -> Array:
    """Whiten by a stored mean and matrix, as at test time.

    Parameters
    ----------
    x : array_like of shape (N, C, *S)
        The batch, of any size.
    mean : array_like of shape (C,)
        Stored mean.
    matrix : array_like of shape (C, C)
        Stored whitening matrix.

    Returns
    -------
    x_hat : ndarray of shape (N, C, *S)
        The output.

    Raises
    ------
    ValueError
        A shape that does not fit ``x``.
    """
    x = as_batch(x)
    channels = x.shape[1]
    mean = with_shape("mean", mean, (channels,), "the channels of x (axis 1)")
    matrix = with_shape("matrix", matrix, (channels, channels), "a square of the channels of x")
    return from_rows((to_rows(x) - mean) @ matrix.T, x.shape)  # (70)


def cost(count: int, channels: int) -> Cost:
    """Count the floating-point operations of one forward, by batch normalization and by whitening.

    Parameters
    ----------
    count : int
        Values per channel.
    channels : int
        Number of channels.

    Returns
    -------
    Cost
        A multiplication, an addition, a root each count as one; of order C they are left out for whitening. It is
        work and not time: a matrix product runs many operations for each value that it reads.

    Raises
    ------
    ValueError
        A size below 1.

    Examples
    --------
    >>> batch_norm, pca, zca = cost(count=128 * 8 * 8, channels=256)
    >>> round(zca / batch_norm)
    223
    """
    if count < 1 or channels < 1:
        raise ValueError(f"count and channels must be at least 1, but are {count} and {channels}. Try cost(64, 100).")
    batch_norm = 5 * count * channels + 5 * channels  # (82)
    pca = 2 * count * channels + 4 * count * channels**2 + 9 * channels**3 + 2 * channels**2  # (83)
    return Cost(batch_norm, pca, pca + 2 * channels**3)


def _eigen(covariance: Array) -> tuple[Array, Array]:
    """Eigenvalues, largest first, and eigenvectors as columns, of one fixed sign."""
    values, vectors = np.linalg.eigh(as_float(covariance))
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(len(values))]
    return values, vectors * np.sign(largest)


def _gaps(values: Array) -> Array:
    """``values[k] - values[j]`` at (j, k); raise ValueError if two of them are equal to rounding."""
    gaps = values - values[:, None]
    smallest = np.min(np.abs(np.diff(values)), initial=np.inf)
    if smallest <= len(values) * np.finfo(np.float64).eps * values[0]:
        raise ValueError(
            f"the gradient of PCA whitening needs eigenvalues that differ, but two are {smallest:.3g} apart: the "
            "principal axes of equal variances are not unique. Try method='zca', which has a gradient everywhere."
        )
    return gaps


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)
