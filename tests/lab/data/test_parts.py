"""Digits and points, what is held out, and how values are normalized."""

import numpy as np
import pytest
import torch

from batchnorm.lab import data
from batchnorm.lab.data.parts import Part, Parts, assemble, moments
from batchnorm.lab.data.split import hold_out
from batchnorm.lab.errors import DataError


def test_digits_are_all_of_scikit_learns_and_always_split_alike():
    from sklearn.datasets import load_digits

    first, second = data.load("digits"), data.load("digits")
    assert first.train.x.shape == (1437, 1, 8, 8)
    assert first.test.x.shape == (360, 1, 8, 8)
    assert first.input_shape == (1, 8, 8)
    assert first.validation is None
    assert first.train.x.dtype == torch.float32
    assert (first.train.x.min(), first.train.x.max()) == (0, 1)
    for name in ("train", "test"):
        assert torch.equal(getattr(first, name).x, getattr(second, name).x)
        assert torch.equal(getattr(first, name).targets, getattr(second, name).targets)
    # Each image with its class is there once, in one part or the other.
    images = torch.cat([first.train.x, first.test.x]).flatten(1) * 16
    found = torch.cat([images, torch.cat([first.train.targets, first.test.targets])[:, None]], 1)
    bunch = load_digits()
    expected = np.column_stack([bunch.data, bunch.target])
    np.testing.assert_array_equal(sorted(found.tolist()), sorted(expected.tolist()))
    # Stratified: each class has its share of the test set, to within one image.
    share = np.bincount(bunch.target) * 360 / 1797
    assert np.abs(first.test.targets.bincount().numpy() - share).max() < 1


def test_fetch_is_a_new_tensor_of_the_examples_asked_for():
    digits = data.load("digits").train
    indices = torch.tensor([5, 3, 5])
    fetched = digits.fetch(indices)
    assert torch.equal(fetched, digits.x[indices])
    fetched.zero_()
    assert digits.fetch(indices).any()
    whole = data.InMemory(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))
    whole.x.zero_()
    assert torch.equal(whole.x, torch.ones(2, 3))


@pytest.mark.parametrize(("name", "classes"), [("two_moons", 2), ("circles", 2), ("spirals", 3), ("blobs", 5)])
def test_points_are_always_the_same_and_can_be_told_apart(name, classes):
    from sklearn.neighbors import KNeighborsClassifier

    first, second = data.load(name), data.load(name)
    assert torch.equal(first.train.x, second.train.x)
    assert (first.classes, first.input_shape, len(first.train), len(first.test)) == (classes, (2,), 2000, 1000)
    assert not torch.equal(first.train.x[:1000], first.test.x)
    sizes = first.train.targets.bincount()
    assert int(sizes.max() - sizes.min()) <= 1
    neighbours = KNeighborsClassifier(15).fit(first.train.x.numpy(), first.train.targets.numpy())
    assert neighbours.score(first.test.x.numpy(), first.test.targets.numpy()) > 0.93
    # And not by a line, but for the clouds.
    straight = torch.linalg.lstsq(
        torch.nn.functional.pad(first.train.x, (0, 1), value=1.0),
        torch.nn.functional.one_hot(first.train.targets).float(),
    ).solution
    guessed = (torch.nn.functional.pad(first.test.x, (0, 1), value=1.0) @ straight).argmax(1)
    accuracy = (guessed == first.test.targets).double().mean()
    assert (accuracy > 0.95) == (name == "blobs")


def test_validation_is_held_out_of_training_by_class_and_never_of_the_test():
    whole, split, again = (data.load("digits", validation=share) for share in (0.0, 0.1, 0.1))
    assert torch.equal(split.test.x, whole.test.x)
    assert (len(split.train), len(split.validation)) == (1293, 144)
    # Together they are what there was to train on, each image once.
    both = torch.cat([split.train.x, split.validation.x]).flatten(1).tolist()
    assert sorted(both) == sorted(whole.train.x.flatten(1).tolist())
    shares = whole.train.targets.bincount() * 144 / 1437
    assert (split.validation.targets.bincount() - shares).abs().max() < 1
    assert torch.equal(split.validation.x, again.validation.x)
    other = data.load("digits", validation=0.1, seed=1)
    assert not torch.equal(split.validation.x, other.validation.x)
    assert "a share of 0.1 of the examples held out by class to validate on (split seed 0)" in split.preprocessing


def test_a_split_does_not_touch_the_random_state_of_the_process():
    np.random.seed(0)  # noqa: NPY002  # what scikit-learn would draw from
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    data.load("digits", validation=0.1)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(DataError, match="validation share must be above 0 and below 1, or 0 for none; got"):
        data.load("digits", validation=share)


def test_a_share_too_small_or_too_large_for_the_classes_is_refused():
    for share in (0.001, 0.999):
        with pytest.raises(DataError, match=r"one example of each of its 10 classes on both sides .* give another"):
            data.load("digits", validation=share)
    with pytest.raises(DataError, match="3 examples, 1 in the smallest class, and 2 to hold out"):
        hold_out(torch.tensor([0, 0, 1]), 2, 0, "some")


def some(n, test=True, validation=False, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(n)

    def part(k):
        x = torch.randint(0, 256, (k, 3, 4, 4), generator=generator).to(dtype)
        return Part(x, torch.arange(k) % 2)

    return Parts(part(n), part(10) if test else None, classes=2, validation=part(6) if validation else None)


def test_without_test_examples_as_many_are_held_out_to_test_as_to_validate():
    found = assemble("some", some(100, test=False), validation=0.2, seed=0)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [60, 20, 20]
    for part in (found.train, found.validation, found.test):
        assert int(part.targets.sum()) * 2 == len(part)
    images = torch.cat([part.x for part in (found.train, found.validation, found.test)]).flatten(1)
    assert len(images.unique(dim=0)) == 100
    assert "to validate on, and as many again to test on" in found.preprocessing
    for share in (0.0, 0.5):
        with pytest.raises(DataError, match="some has no test examples of its own: give --validation a share"):
            assemble("some", some(100, test=False), validation=share, seed=0)


def test_validation_examples_of_its_own_are_used_and_no_others():
    found = assemble("some", some(100, validation=True), validation=0.0, seed=0)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [100, 6, 10]
    with pytest.raises(DataError, match=r"some has validation examples of its own, .* leave out --validation"):
        assemble("some", some(100, validation=True), validation=0.1, seed=0)


def test_normalization_is_that_of_the_examples_that_are_trained_on():
    found = assemble("some", some(100), validation=0.3, seed=0)
    assert len(found.train) == 70
    x = found.train.x.double()
    # Of values up to 1.7 deviations, rounded three times to float32.
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.test.x.mean().abs() > 1e-3  # not by itself


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_lose_no_digits_far_from_zero(offset):
    """The mean of squares less the square of the mean, in float32, is wrong by more than the variance there."""
    random = np.random.default_rng(0)
    x = torch.from_numpy((offset + random.normal(size=(500, 2, 8))).astype(np.float32))
    mean, std = moments(x)
    np.testing.assert_allclose(mean, x.double().numpy().mean((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, x.double().numpy().std((0, 2)), rtol=1e-9)
    naive = (x.square().mean((0, 2)) - x.mean((0, 2)).square()).clamp(min=0).sqrt()
    assert (offset > 0) == bool((naive.double() - std).abs().max() > 0.1)


def test_moments_of_bytes_are_those_of_numpy():
    x = some(50).train.x
    mean, std = moments(x)
    np.testing.assert_allclose(mean, x.double().numpy().mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, x.double().numpy().std((0, 2, 3)), rtol=1e-12)


def test_a_value_that_never_changes_becomes_zero():
    x = torch.rand(20, 3)
    x[:, 1] = 7.0
    found = assemble(
        "some", Parts(Part(x, torch.arange(20) % 2), Part(x, torch.arange(20) % 2), 2), validation=0, seed=0
    )
    assert torch.equal(found.train.x[:, 1], torch.zeros(20))
    assert found.train.x[:, 0].std() > 0.9


def test_unknown_names_are_refused_with_what_is_known(tmp_path):
    with pytest.raises(DataError, match=r"one of digits, mnist, .*; got 'cifar', which does not exist, and is none"):
        data.load("cifar")
    file = tmp_path / "table.csv"
    file.touch()
    with pytest.raises(DataError, match=r"table.csv', which is none of them"):
        data.load(str(file))
    with pytest.raises(DataError, match="digits has its own, so leave out --image-size"):
        data.load("digits", image_size=32)
