"""Batches: each example once, the same for any number of processes, and no thread left behind."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch

from batchnorm.lab.data import Augmentation, InMemory, Loader, batches
from batchnorm.lab.errors import DataError, LabError

FULL = Augmentation(crop=1, flip=True, cutout=2, mixup=1.0)


def examples(n, shape=(1, 4, 4)):
    """Examples whose values say which they are."""
    x = torch.arange(n, dtype=torch.float32).view(-1, *[1] * len(shape)).expand(n, *shape).contiguous()
    return InMemory(x, torch.arange(n) % 3)


class Slow:
    """Examples that are not in memory: each fetch takes a while, and is counted."""

    def __init__(self, n, seconds=0.0, broken=()):
        self.inner = examples(n)
        self.seconds = seconds
        self.broken = broken
        self.fetched = []

    @property
    def targets(self):
        return self.inner.targets

    def __len__(self):
        return len(self.inner)

    def fetch(self, indices):
        self.fetched.append(indices)
        time.sleep(self.seconds)
        if set(indices.tolist()) & set(self.broken):
            raise DataError("an image is broken")
        return self.inner.fetch(indices)


def loader(part, batch_size, **settings):
    return Loader(part, batch_size, **{"seed": 0, "classes": 3} | settings)


def whole(batches):
    batches = list(batches)
    return torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batchnorm")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert data_threads() == []


def test_an_epoch_is_each_example_once_in_another_order():
    part = examples(20)
    first, second = (whole(loader(part, 4).epoch(epoch)) for epoch in (0, 1))
    for x, y in (first, second):
        assert x[:, 0, 0, 0].sort().values.tolist() == list(range(20))
        assert torch.equal(y, x[:, 0, 0, 0].long() % 3)
    assert not torch.equal(first[1], second[1])
    assert not torch.equal(first[0], whole(loader(part, 4, seed=1).epoch(0))[0])
    assert torch.equal(whole(loader(part, 4, shuffle=False).epoch(3))[0], part.x)


def test_examples_that_do_not_fill_a_batch_are_left_out_and_not_always_the_same():
    drawn = loader(examples(10), 4)
    assert len(drawn) == 2
    left = set()
    for epoch in range(5):
        x, _ = whole(drawn.epoch(epoch))
        assert len(x) == 8
        left.add(frozenset(range(10)) - frozenset(x[:, 0, 0, 0].int().tolist()))
    assert len(left) > 1
    kept = loader(examples(10), 4, drop_last=False)
    assert len(kept) == 3
    assert [len(batch.x) for batch in kept.epoch(0)] == [4, 4, 2]


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("augmentation", [None, FULL])
def test_an_epoch_resumes_at_any_batch_bit_for_bit(memory, augmentation):
    part = examples(30) if memory else Slow(30)
    straight = list(loader(part, 4, augmentation=augmentation).epoch(3))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  # must not matter
    for start in (0, 3, 6, 7):
        resumed = list(loader(part, 4, augmentation=augmentation).epoch(3, start))
        assert len(resumed) == 7 - start
        for found, expected in zip(resumed, straight[start:], strict=True):
            assert torch.equal(found.x, expected.x)
            assert torch.equal(found.y, expected.y)


@pytest.mark.parametrize("augmentation", [None, Augmentation(crop=1, flip=True, cutout=2), FULL])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_together_see_what_one_would_see(world, augmentation):
    generator = torch.Generator().manual_seed(0)
    part = InMemory(torch.randn(50, 1, 4, 4, generator=generator), torch.arange(50) % 3)
    alone = list(loader(part, 12, augmentation=augmentation).epoch(1))
    shares = [list(loader(part, 12, augmentation=augmentation, rank=r, world=world).epoch(1)) for r in range(world)]
    for batch, *share in zip(alone, *shares, strict=True):
        assert [len(part.x) for part in share] == [12 // world] * world
        assert torch.equal(torch.cat([part.x for part in share]), batch.x)
        assert torch.equal(torch.cat([part.y for part in share]), batch.y)
    if augmentation == FULL:
        # Each process drawing for itself would not: its partners would all be its own.
        x, _ = whole(alone)
        assert len(x.unique(dim=0)) == len(x)


@pytest.mark.parametrize(("n", "batch_size", "world"), [(10, 4, 2), (10, 4, 3), (9, 4, 2), (13, 6, 4), (3, 8, 4)])
def test_evaluation_sees_every_example_once_however_many_processes(n, batch_size, world):
    part = examples(n)
    seen, sizes = [], []
    for rank in range(world):
        own = loader(part, batch_size, shuffle=False, drop_last=False, rank=rank, world=world)
        found = list(own.epoch(0))
        assert len(found) == len(own)
        assert all(len(batch.x) > 0 for batch in found)
        seen += [value for batch in found for value in batch.x[:, 0, 0, 0].int().tolist()]
        sizes.append(sum(len(batch.x) for batch in found))
    assert sorted(seen) == list(range(n))
    assert sum(sizes) == n


def test_soft_targets_are_mixed_as_the_images_are():
    """Each image is a constant that says which it is, so the shares can be read off it."""
    part = InMemory(torch.eye(6), torch.arange(6))
    for batch in Loader(part, 6, seed=0, classes=6, augmentation=Augmentation(mixup=1.0)).epoch(0):
        assert batch.y.shape == (6, 6)
        assert batch.y.dtype == torch.float32
        assert torch.equal(batch.x, batch.y)
        torch.testing.assert_close(batch.y.sum(1), torch.ones(6))
        assert ((batch.y > 0).sum(1) == 2).any()


def test_augmentation_does_not_touch_the_data():
    part = examples(12)
    before = part.x.clone()
    list(loader(part, 4, augmentation=FULL).epoch(0))
    assert torch.equal(part.x, before)


def test_batches_are_prepared_ahead_and_no_more_than_asked_for():
    part = Slow(40)
    epoch = loader(part, 4, prefetch=2).epoch(0)
    next(epoch)
    deadline = time.monotonic() + 30
    while (
        len(part.fetched) < 4 and time.monotonic() < deadline
    ):  # the empty one of the constructor, one used, two ahead
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(part.fetched) == 4
    assert data_threads() != []
    epoch.close()


def test_examples_in_memory_need_no_thread():
    epoch = loader(examples(40), 4).epoch(0)
    next(epoch)
    assert data_threads() == []


@pytest.mark.parametrize("stop", ["close", "forget", "break", "interrupt"])
def test_an_epoch_that_is_left_early_frees_its_thread(stop):
    part = Slow(400, seconds=0.01)
    epoch = loader(part, 4, prefetch=3).epoch(0)
    next(epoch)
    if stop == "close":
        epoch.close()
    elif stop == "forget":
        del epoch
    elif stop == "break":
        for _ in epoch:
            break
        del epoch
    else:
        with pytest.raises(KeyboardInterrupt):
            epoch.throw(KeyboardInterrupt())
    assert data_threads() == []
    assert len(part.fetched) < 20


def test_an_error_while_fetching_is_raised_where_the_batch_is_used():
    part = Slow(40, broken=[9])
    epoch = loader(part, 4, shuffle=False).epoch(0)
    assert [int(next(epoch).x[0, 0, 0, 0]) for _ in range(2)] == [0, 4]
    with pytest.raises(DataError, match="an image is broken"):
        next(epoch)
    assert data_threads() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 11}, "batch_size must be at most the number of examples to train on, 10; got 11"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"batch_size": 4, "world": 3}, "a multiple of the number of processes, 3, .*; got 4; take 6"),
        ({"batch_size": 4, "seed": -1}, "seed must be at least 0; got -1"),
        ({"batch_size": 4, "prefetch": -1}, "prefetch must be at least 0"),
        ({"batch_size": 4, "classes": 2}, "targets must be from 0 to 1, as there are 2 classes; got 0 to 2"),
        ({"batch_size": 4, "augmentation": Augmentation(resized_crop=0.5)}, "resized_crop needs images from a folder"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(LabError, match=message):
        loader(examples(10), **settings)


def test_batches_for_ever_are_epochs_without_repetition():
    drawn = list(itertools.islice(batches(10, 4, seed=0), 6))
    assert all(batch.shape == (4,) for batch in drawn)
    for epoch in zip(drawn[::2], drawn[1::2], strict=True):
        assert len(set(torch.cat(epoch).tolist())) == 8
    # The two examples that an epoch leaves out are not always the same.
    assert len({frozenset(range(10)) - frozenset(torch.cat(drawn[k : k + 2]).tolist()) for k in (0, 2, 4)}) > 1


def test_batches_for_ever_depend_on_the_seed_alone():
    def draw(seed):
        return torch.stack(list(itertools.islice(batches(100, 10, seed), 25)))

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(draw(0), first)
    assert not torch.equal(draw(1), first)
    assert torch.equal(torch.get_rng_state(), before)
