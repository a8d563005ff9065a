"""How good a network is on a part of the data: in eval mode, shared among processes, changing nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import batchnorm
from batchnorm.lab.data import Dataset, Examples, Loader
from batchnorm.lab.training.config import TrainConfig
from batchnorm.lab.training.machine import total

TOP = 5
#: Evaluating keeps no activations, so that a batch this large fits where a training batch of a few does.
LEAST_BATCH = 32


@dataclass(frozen=True)
class Score:
    """What an evaluation gives.

    Attributes
    ----------
    loss : float
        Mean cross-entropy over the examples, without penalties and without label smoothing.
    accuracy : float
        Share classified correctly.
    top5_accuracy : float or None
        Share whose class is among the five with the largest scores; None with five classes or fewer.
    """

    loss: float
    accuracy: float
    top5_accuracy: float | None

    def values(self) -> dict[str, float]:
        """Give what there is, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Subset:
    """Some examples of a part, in a fixed order: a part itself.

    Attributes
    ----------
    whole : Examples
        The part.
    indices : Tensor of shape (n,), int64
        Which of its examples.
    """

    whole: Examples
    indices: Tensor

    @property
    def targets(self) -> Tensor:
        """Classes of the chosen examples."""
        return self.whole.targets[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, indices: Tensor) -> Tensor:
        """Give chosen examples by their position among the chosen."""
        return self.whole.fetch(self.indices[indices])


def fixed_subset(examples: Examples, count: int) -> Subset:
    """Choose at most ``count`` examples at random: always the same, whatever the seed of the run.

    Not evenly spaced ones: MNIST's files alternate between two sources of digits, so that every 30th is of one source.
    """
    chosen = np.random.default_rng(0).permutation(len(examples))[:count]
    return Subset(examples, torch.from_numpy(np.sort(chosen)))


def batch_of_evaluation(config: TrainConfig, world: int) -> int:
    """Say how many examples are evaluated together, over all processes."""
    assert config.batch_size is not None
    return max(config.batch_size // config.accumulate, LEAST_BATCH * world)


def evaluate(
    fabric: Fabric, model: nn.Module, examples: Examples, *, classes: int, batch_size: int, channels_last: bool = False
) -> Score:
    """Evaluate a network in eval mode; modes and random state are afterwards as they were.

    Parameters
    ----------
    fabric : Fabric
        Each process takes its share, and all get the score of the whole.
    model : Module
        The network, unwrapped; every process holds the same.
    examples : Examples
        What to evaluate on.
    classes : int
        Number of classes.
    batch_size : int
        Examples at a time, over all processes.
    channels_last : bool
        Memory format of images.

    Returns
    -------
    Score
    """
    sums = torch.zeros(4, dtype=torch.float64, device=_wide(fabric))  # loss, right, right among five, examples
    loader = Loader(
        examples,
        batch_size,
        seed=0,
        classes=classes,
        shuffle=False,
        drop_last=False,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    with evaluation_mode(model), torch.no_grad():
        for batch in loader.epoch(0):
            if not len(batch.y):  # the last batch is smaller than the number of processes
                continue
            x, y = to_device(fabric, batch.x, channels_last), fabric.to_device(batch.y)
            with fabric.autocast():
                scores = model(x)
            scores = scores.float()
            right = scores.topk(min(TOP, classes)).indices == y.unsqueeze(1)
            loss = nn.functional.cross_entropy(scores, y, reduction="sum")
            sums += torch.stack([loss, right[:, 0].sum(), right.sum(), torch.tensor(len(y))]).to(sums)
    loss_sum, first, among, count = total(fabric, sums).tolist()
    return Score(loss_sum / count, first / count, among / count if classes > TOP else None)


def with_population_statistics(
    fabric: Fabric, model: nn.Module, examples: Examples, config: TrainConfig, *, classes: int
) -> nn.Module:
    """Copy a network and give the copy population statistics of the training data (Algorithm 2).

    Every process measures its shares of the same batches, and all get the same statistics.

    Parameters
    ----------
    fabric : Fabric
        Where.
    model : Module
        The network, unwrapped; it is left as it is, its running statistics too.
    examples : Examples
        The training part.
    config : TrainConfig
        Resolved; ``population_batches`` batches of ``batch_size`` without augmentation.
    classes : int
        Number of classes.

    Returns
    -------
    Module
        The copy.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`, Algorithm 2.
    """
    assert config.batch_size is not None
    # As in training: a process normalizes its share of a batch, cut in pieces.
    most = min(config.batch_size // config.accumulate, len(examples)) // fabric.world_size
    joint = max(2, most) * fabric.world_size
    loader = Loader(
        examples, joint, seed=config.seed, classes=classes, rank=fabric.global_rank, world=fabric.world_size
    )
    batches = (to_device(fabric, batch.x, config.channels_last) for batch in loader.epoch(0))
    with fabric.autocast():
        measured: nn.Module = batchnorm.recalibrate(
            model,
            batches,
            batches=config.population_batches,
            group=torch.distributed.group.WORLD if fabric.world_size > 1 else None,
        )
    return measured


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and each of its modules back into its own mode, whatever happens.

    Parameters
    ----------
    model : Module
        The network.

    Yields
    ------
    None
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def to_device(fabric: Fabric, x: Tensor, channels_last: bool) -> Tensor:
    """Move a batch to the device, images in the memory format asked for."""
    x = fabric.to_device(x)
    return x.contiguous(memory_format=torch.channels_last) if channels_last and x.ndim == 4 else x


def parts_of(dataset: Dataset, config: TrainConfig) -> dict[str, Examples]:
    """Give the parts that are evaluated, by their kind of record, in their order."""
    parts = {} if dataset.validation is None else {"validation": dataset.validation}
    parts["test"] = dataset.test
    if config.train_subset:
        parts["train_evaluation"] = fixed_subset(dataset.train, config.train_subset)
    return parts


def _wide(fabric: Fabric) -> torch.device:
    # MPS has no float64.
    return torch.device("cpu") if fabric.device.type == "mps" else fabric.device
