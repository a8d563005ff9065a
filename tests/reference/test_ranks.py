"""One batch on several ranks against the same batch on one, and the two naive forms."""

import doctest

import numpy as np
import pytest

from batchnorm.reference import batch_norm, ranks
from batchnorm.reference.statistics import batch_statistics
from numeric import assert_close, assert_gradient

CUTS = {"even": [3, 6, 9], "uneven": [1, 2, 9], "empty_ranks": [0, 5, 5, 12], "one_rank": []}


def make(shape, seed=0, mean=3.0):
    rng = np.random.default_rng(seed)
    arguments = {
        "x": rng.normal(mean, 2.0, shape),
        "weight": rng.normal(1.0, 0.5, shape[1]),
        "bias": rng.normal(0.0, 0.5, shape[1]),
        "residual": rng.normal(0.0, 1.0, shape),
    }
    return arguments, rng.normal(size=shape)


def spread(arguments, cuts):
    """The arguments of `ranks.forward_train` for a batch that is cut at these samples."""
    return {
        "batches": np.split(arguments["x"], cuts),
        "residuals": np.split(arguments["residual"], cuts),
        "weight": arguments["weight"],
        "bias": arguments["bias"],
    }


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("mean", [3.0, -1e6])
@pytest.mark.parametrize("shape", [(12, 3), (12, 2, 3)], ids=str)
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_ranks_together_are_the_layer_on_the_whole_batch(cuts, shape, mean, activation):  # (183) to (185)
    arguments, dy = make(shape, mean=mean)
    y, cache = ranks.forward_train(**spread(arguments, cuts), activation=activation)
    gradients = ranks.backward(np.split(dy, cuts), cache)
    expected, expected_cache = batch_norm.forward_train(**arguments, activation=activation)
    expected_gradients = batch_norm.backward(dy, expected_cache)
    # Means of ranks are rounded to 1e-10 deviations at a mean of 1e6, and enter the variance squared or in products.
    rtol = 1e-12 if mean == 3.0 else 1e-10
    assert_close(np.concatenate(y), expected, rtol)
    assert_close(np.concatenate([part.dx for part in gradients]), expected_gradients.dx, rtol)
    assert_close(np.concatenate([part.dresidual for part in gradients]), expected_gradients.dresidual, rtol)
    assert_close(sum(part.dweight for part in gradients), expected_gradients.dweight, rtol)
    assert_close(sum(part.dbias for part in gradients), expected_gradients.dbias, rtol)
    assert cache.statistics.count == expected_cache.count
    assert_close(cache.statistics.mean, expected_cache.mean, 1e-15)
    assert_close(cache.statistics.var, expected_cache.var, rtol)


def test_backward_equals_central_differences():
    arguments, dy = make((6, 2, 2))
    cuts = [1, 4]
    _, cache = ranks.forward_train(**spread(arguments, cuts), activation="tanh")
    gradients = ranks.backward(np.split(dy, cuts), cache)
    joined = {
        "x": np.concatenate([part.dx for part in gradients]),
        "weight": sum(part.dweight for part in gradients),
        "bias": sum(part.dbias for part in gradients),
        "residual": np.concatenate([part.dresidual for part in gradients]),
    }
    for name, gradient in joined.items():

        def along(value, name=name):
            return np.concatenate(ranks.forward_train(**spread(arguments | {name: value}, cuts), activation="tanh")[0])

        assert_gradient(along, arguments[name], dy, gradient)


def test_a_rank_of_one_value_is_no_error():
    y, _ = ranks.forward_train([[[1.0]], [[5.0]]], eps=0.0)
    assert [part.tolist() for part in y] == [[[-1.0]], [[1.0]]]
    with pytest.raises(ValueError, match=r"more than one value per channel on all ranks together\. Try a larger batch"):
        ranks.forward_train([np.ones((1, 2)), np.ones((0, 2))])


def test_ranks_without_a_value():
    y, cache = ranks.forward_train([np.ones((0, 2)), np.ones((0, 2))])
    assert [part.shape for part in y] == [(0, 2), (0, 2)]
    assert cache.statistics.count == 0
    for part in ranks.backward(y, cache):
        assert part.dx.shape == (0, 2)
        assert part.dweight.tolist() == part.dbias.tolist() == [0.0, 0.0]


def test_averages_with_equal_weights_are_wrong():  # (186)
    x = make((12, 3))[0]["x"] + np.arange(12)[:, None]  # the ranks differ by more than chance
    whole = batch_statistics(x)
    for cuts in ([3, 6, 9], [1, 2, 9]):
        parts = [batch_statistics(part) for part in np.split(x, cuts)]
        mean, var = (np.mean([getattr(part, name) for part in parts], axis=0) for name in ("mean", "var"))
        if cuts == [3, 6, 9]:
            assert_close(mean, whole.mean)
            assert_close(var, whole.var - np.mean([(part.mean - whole.mean) ** 2 for part in parts], axis=0))
        else:
            assert np.min(np.abs(mean - whole.mean)) > 0.3
        assert np.max(var / whole.var) < 0.6
    _, cache = ranks.forward_train(np.split(x, [1, 2, 9]))
    assert_close(cache.statistics.mean, whole.mean)
    assert_close(cache.statistics.var, whole.var)


def test_a_backward_with_local_sums_is_seen():
    arguments, dy = make((12, 3))
    cuts = [1, 2, 9]
    _, cache = ranks.forward_train(**spread(arguments, cuts))
    right = ranks.backward(np.split(dy, cuts), cache)
    for part, local, dy_part in zip(right, cache.local, np.split(dy, cuts), strict=True):
        gain, count = local.weight[0] * local.invstd[0], len(dy_part)
        naive = gain * (dy_part - (part.dbias + local.x_hat * part.dweight) / count)
        assert np.max(np.abs(naive - part.dx)) > 0.05


def test_examples_in_docstrings_run():
    failed, attempted = doctest.testmod(ranks)
    assert attempted > 0
    assert failed == 0
