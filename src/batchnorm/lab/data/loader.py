"""Batches: in an order, and with changes, that depend on (seed, epoch, batch number) alone."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from batchnorm.lab.data.augmentation import ORDER, Augmentation, Draw, generator, mixed
from batchnorm.lab.data.dataset import Croppable, Examples, InMemory
from batchnorm.lab.errors import LabError


@dataclass(frozen=True)
class Batch:
    r"""Examples that are trained on together, or this process's share of them.

    Parameters
    ----------
    x : Tensor of shape (n, \*input_shape), float32
        The examples.
    y : Tensor of shape (n,), int64, or of shape (n, classes), float32
        Their classes; after Mixup, the share of each class.
    """

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class _Fetched:
    """A batch before anything is done to it: what a background thread prepares."""

    x: Tensor
    y: Tensor
    own: Tensor
    draw: Draw | None
    partners: Tensor | None


class Loader:
    """Draw the batches of one part of a data set.

    Nothing depends on the process's random state, on what was drawn before, or on how a batch is shared among
    processes: together they see exactly what one process would see alone.

    Images that are decoded when they are fetched are prepared ahead in a thread. Examples in memory are not, as a
    thread costs more than it saves: a batch of CIFAR-10 takes below a millisecond.

    Parameters
    ----------
    examples : Examples
        The part.
    batch_size : int
        Examples in a batch, of all processes together.
    seed : int
        Of the order and of the augmentation. At least 0.
    classes : int
        Number of classes.
    shuffle : bool
        Draw a new order in each epoch.
    augmentation : Augmentation, optional
        What is done to the images.
    rank, world : int
        Which process this is, and of how many. It gets a contiguous share of each batch.
    drop_last : bool
        Leave out the examples that do not fill a batch; with ``shuffle`` they are others in each epoch. False: they are
        the last batch, and processes may differ by one example, and by one batch if there are fewer than processes.
    prefetch : int
        Batches prepared ahead of the one that is used. 0: none, and no thread.

    Raises
    ------
    LabError
        The batch is larger than the data or cannot be shared evenly, or the augmentation cannot be done to these
        examples.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        *,
        seed: int,
        classes: int,
        shuffle: bool = True,
        augmentation: Augmentation | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        prefetch: int = 2,
    ) -> None:
        assert 0 <= rank < world, (rank, world)
        if batch_size < 1:
            raise LabError(f"batch_size must be at least 1; got {batch_size}")
        if seed < 0:
            raise LabError(f"seed must be at least 0; got {seed}")
        if prefetch < 0:
            raise LabError(f"prefetch must be at least 0; got {prefetch}")
        if drop_last and batch_size > len(examples):
            raise LabError(
                f"batch_size must be at most the number of examples to train on, {len(examples)}; got {batch_size}"
            )
        if drop_last and batch_size % world:
            raise LabError(
                f"batch_size must be a multiple of the number of processes, {world}, as it is shared evenly among "
                f"them; got {batch_size}; take {math.ceil(batch_size / world) * world}"
            )
        if not 0 <= int(examples.targets.min()) <= int(examples.targets.max()) < classes:
            raise LabError(
                f"targets must be from 0 to {classes - 1}, as there are {classes} classes; got "
                f"{int(examples.targets.min())} to {int(examples.targets.max())}"
            )
        self._shape = tuple(examples.fetch(torch.arange(0)).shape[1:])
        if augmentation is not None:
            augmentation.check(self._shape, croppable=isinstance(examples, Croppable))
            if augmentation == Augmentation(padding=augmentation.padding):
                augmentation = None  # nothing to draw
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._classes = classes
        self._shuffle = shuffle
        self._augmentation = augmentation
        self._rank = rank
        self._world = world
        self._drop_last = drop_last
        self._prefetch = 0 if isinstance(examples, InMemory) else prefetch

    def __len__(self) -> int:
        """Count the batches of an epoch, as this process sees them."""
        full, rest = divmod(len(self._examples), self._batch_size)
        low, high = self._share(rest)
        return full if self._drop_last or low == high else full + 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Parameters
        ----------
        epoch : int
            Which one, from 0.
        start : int
            The first batch to yield: where an interrupted epoch goes on.

        Yields
        ------
        Batch
            Its tensors are the caller's.

        Raises
        ------
        DataError
            An image cannot be read.
        """
        assert 0 <= start <= len(self), (start, len(self))
        order = self._order(epoch)
        numbers = range(start, len(self))
        if not self._prefetch:
            for batch in numbers:
                yield self._finish(self._fetch(order, epoch, batch))
            return
        # One thread, so that batches come in order; fetching shares the work of each among as many as there are cores.
        pool = ThreadPoolExecutor(1, thread_name_prefix="batchnorm-data")
        ahead: deque[Future[_Fetched]] = deque()
        try:
            for batch in numbers:
                ahead.append(pool.submit(self._fetch, order, epoch, batch))
                if len(ahead) > self._prefetch:
                    yield self._finish(ahead.popleft().result())
            while ahead:
                yield self._finish(ahead.popleft().result())
        finally:
            # Also when the caller stops early, or is interrupted: what has not begun does not begin.
            pool.shutdown(wait=True, cancel_futures=True)

    def _order(self, epoch: int) -> Tensor:
        n = len(self._examples)
        return (
            torch.from_numpy(generator(ORDER, self._seed, epoch).permutation(n)) if self._shuffle else torch.arange(n)
        )

    def _share(self, n: int) -> tuple[int, int]:
        """Return first and last position, exclusive, of this process's share of n examples."""
        return n * self._rank // self._world, n * (self._rank + 1) // self._world

    def _fetch(self, order: Tensor, epoch: int, batch: int) -> _Fetched:
        """Draw for the whole batch, and fetch what this process needs of it."""
        joint = order[batch * self._batch_size : (batch + 1) * self._batch_size]
        own = torch.arange(*self._share(len(joint)))
        if self._augmentation is None:
            return _Fetched(self._examples.fetch(joint[own]), self._examples.targets[joint[own]], own, None, None)
        draw = self._augmentation.draw(len(joint), self._shape, self._seed, epoch, batch)
        # With Mixup also the examples that its own are mixed with, which may be in the share of another process.
        needed, partners = own, None
        if draw.partners is not None:
            needed, back = torch.cat([own, draw.partners[own]]).unique(return_inverse=True)
            own, partners = back[: len(own)], back[len(own) :]
        else:
            own = torch.arange(len(own))
        indices, draw = joint[needed], draw.of(needed)
        if draw.crops is not None:
            assert isinstance(self._examples, Croppable)
            x = self._examples.fetch_crops(indices, draw.crops)
        else:
            x = self._examples.fetch(indices)
        return _Fetched(x, self._examples.targets[indices], own, draw, partners)

    def _finish(self, fetched: _Fetched) -> Batch:
        """Do what was drawn; in the caller's thread, where torch has its workers."""
        x, y = fetched.x, fetched.y
        if fetched.draw is None:
            return Batch(x, y)
        x = fetched.draw.change(x)
        if fetched.partners is None:
            return Batch(x, y)
        soft = nn.functional.one_hot(y, self._classes).float()
        share = fetched.draw.share
        return Batch(
            mixed(x[fetched.own], x[fetched.partners], share), mixed(soft[fetched.own], soft[fetched.partners], share)
        )


def batches(n: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Draw mini-batches for ever, reshuffled in each epoch; examples that do not fill a batch wait for another epoch.

    The order depends on these three arguments alone, and on no other random number of the process, so that every arm
    and every learning rate sees the same batches. (The order of ``batchnorm compare``.)

    Parameters
    ----------
    n : int
        Number of training examples.
    batch_size : int
        Examples in a batch.
    seed : int
        Seed of the order.

    Yields
    ------
    Tensor of shape (batch_size,), int64
        Indices of examples.
    """
    assert n >= batch_size, (n, batch_size)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=generator)[: n - n % batch_size]
        yield from order.view(-1, batch_size)
