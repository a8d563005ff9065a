"""Whitening: the covariance becomes the identity; ZCA is the nearest; gradients through the eigendecomposition."""

import itertools

import numpy as np
import pytest
import torch

from batchnorm.reference import batch_norm, whitening
from batchnorm.reference.statistics import to_rows
from numeric import assert_close, assert_gradient

SHAPES = [(9, 3), (5, 3, 4), (4, 2, 3, 2)]


def make(shape, seed=0):
    """A correlated batch with a mean, and a random dy."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(shape[1], shape[1]))
    x = np.moveaxis(np.moveaxis(rng.normal(size=shape), 1, -1) @ mixing + rng.normal(size=shape[1]), -1, 1)
    return x, rng.normal(size=shape)


def covariance(x):
    rows = to_rows(np.asarray(x))
    return np.cov(rows, rowvar=False, bias=True)


# --- values ---


@pytest.mark.parametrize("method", whitening.METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_covariance_becomes_the_identity(shape, method):
    x, _ = make(shape)
    x_hat, cache = whitening.forward(x, method=method, eps=0.0)
    assert_close(covariance(x_hat), np.eye(shape[1]), rtol=1e-11)
    assert_close(to_rows(x_hat).mean(axis=0) + 1.0, np.ones(shape[1]))
    assert_close(cache.matrix @ covariance(x) @ cache.matrix.T, np.eye(shape[1]), rtol=1e-11)  # (71)


def test_eps_shrinks_each_eigenvalue_by_the_same_rule_as_the_variance_of_bn():
    x, _ = make((50, 4))
    x_hat, cache = whitening.forward(x, method="pca", eps=0.3)
    assert_close(covariance(x_hat), np.diag(cache.eigenvalues / (cache.eigenvalues + 0.3)))  # (71)


@pytest.mark.parametrize("method", whitening.METHODS)
def test_one_channel_is_batch_norm(method):
    x, dy = make((6, 1, 3))
    y, bn_cache = batch_norm.forward_train(x, eps=0.1)
    x_hat, cache = whitening.forward(x, method=method, eps=0.1)
    assert_close(x_hat, y)
    assert_close(whitening.backward(dy, cache), batch_norm.backward(dy, bn_cache).dx)


def test_batch_norm_leaves_the_correlation_that_whitening_removes():
    x, _ = make((40, 3))
    y, _ = batch_norm.forward_train(x, eps=0.0)
    assert_close(covariance(y), np.corrcoef(x, rowvar=False), rtol=1e-11)
    assert np.abs(covariance(y) - np.eye(3)).max() > 0.1


def test_zca_is_symmetric_and_the_nearest_of_all_whitenings():
    x, _ = make((30, 4))
    x_hat, cache = whitening.forward(x, eps=0.0)
    assert_close(cache.matrix, cache.matrix.T)
    centred = x - x.mean(axis=0)
    nearest = np.mean((x_hat - centred) ** 2)
    rng = np.random.default_rng(1)
    for _ in range(50):
        rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
        other = x_hat @ rotation
        assert_close(covariance(other), np.eye(4), rtol=1e-11)  # it is a whitening too
        assert np.mean((other - centred) ** 2) > nearest  # (72)
    assert np.mean((whitening.forward(x, method="pca", eps=0.0)[0] - centred) ** 2) > nearest


def test_pca_puts_the_largest_variance_first_with_one_sign():
    x, _ = make((30, 4))
    _, cache = whitening.forward(x, method="pca")
    assert np.all(np.diff(cache.eigenvalues) < 0)
    largest = np.abs(cache.eigenvectors).argmax(axis=0)
    assert np.all(cache.eigenvectors[largest, np.arange(4)] > 0)
    _, flipped = whitening.forward(-x, method="pca")
    assert_close(flipped.matrix, cache.matrix, rtol=1e-11)


def test_apply_repeats_the_batch_and_maps_one_sample_alone():
    x, _ = make((5, 3, 4))
    x_hat, cache = whitening.forward(x)
    assert_close(whitening.apply(x, cache.mean, cache.matrix), x_hat)
    assert_close(whitening.apply(x[:1], cache.mean, cache.matrix), x_hat[:1])


# --- gradients ---


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("method", whitening.METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_equals_central_differences(shape, method, eps):
    x, dy = make(shape, seed=2)
    _, cache = whitening.forward(x, method=method, eps=eps)
    dx = whitening.backward(dy, cache)
    assert_gradient(lambda x: whitening.forward(x, method=method, eps=eps)[0], x, dy, dx, rtol=1e-7)
    assert_close(to_rows(dx).sum(axis=0) + 1.0, np.ones(shape[1]))  # as (54): adding a constant changes nothing


def test_gradient_of_zca_equals_torch_through_eigh():
    x, dy = make((12, 4))
    xt = torch.tensor(x, requires_grad=True)
    d = xt - xt.mean(0)
    values, vectors = torch.linalg.eigh(d.T @ d / len(x))
    (d @ (vectors * (values + 1e-3) ** -0.5) @ vectors.T).backward(torch.tensor(dy))
    _, cache = whitening.forward(x, eps=1e-3)
    assert_close(whitening.backward(dy, cache), xt.grad.numpy(), rtol=1e-10)


def test_zca_has_a_gradient_where_eigenvalues_are_equal_and_pca_says_that_it_has_none():
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))  # covariance I: three equal eigenvalues
    dy = np.random.default_rng(3).normal(size=corners.shape)
    _, cache = whitening.forward(corners, eps=0.1)
    dx = whitening.backward(dy, cache)
    assert_gradient(lambda x: whitening.forward(x, eps=0.1)[0], corners, dy, dx)
    _, cache = whitening.forward(corners, method="pca", eps=0.1)
    with pytest.raises(ValueError, match=r"needs eigenvalues that differ.*Try method='zca'"):
        whitening.backward(dy, cache)


# --- cost and errors ---


def test_cost_is_linear_in_channels_for_bn_and_cubic_for_whitening():
    small, large = whitening.cost(10_000, 100), whitening.cost(10_000, 200)
    assert small.batch_norm == 5 * 10_000 * 100 + 500  # (82)
    assert small.pca == 2 * 10**6 + 4 * 10**8 + 9 * 10**6 + 2 * 10**4  # (83)
    assert small.zca - small.pca == 2 * 10**6
    assert large.batch_norm == 2 * small.batch_norm
    assert 3.9 < large.zca / small.zca < 4.2  # the products over the batch dominate: C^2
    alone = whitening.cost(1, 1000).pca / whitening.cost(1, 500).pca
    assert 7.9 < alone < 8.1  # the eigendecomposition: C^3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: whitening.forward(np.ones((4, 2)), method="cholesky"), "method must be one of pca, zca, but is 'chol"),
        (lambda: whitening.forward(np.eye(3), eps=0.0), r"for 3 values of each of 3 channels\. Try eps=1e-5"),
        (lambda: whitening.forward(np.eye(3), eps=-1.0), "eps at least 0, but eps is -1.0"),
        (lambda: whitening.forward(np.empty((0, 3))), r"has shape \(0, 3\)"),
        (lambda: whitening.backward(np.ones(3), whitening.forward(np.eye(3))[1]), r"dy must have shape \(3, 3\)"),
        (lambda: whitening.apply(np.eye(3), np.ones(2), np.eye(3)), r"mean must have shape \(3,\)"),
        (lambda: whitening.cost(0, 3), "at least 1, but are 0 and 3"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
