"""Short trainings on a few images, for claims whose protocol no plan describes: data in memory, a loop of ten lines."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm import Ghost, recalibrate
from batchnorm.lab.data import load
from batchnorm.lab.models import Normalization, build
from batchnorm.lab.training.evaluation import fixed_subset

OPTIMIZERS: dict[str, Callable[[Any, float, float], torch.optim.Optimizer]] = {
    "SGD": lambda weights, lr, l2: torch.optim.SGD(weights, lr, weight_decay=l2),
    "momentum": lambda weights, lr, l2: torch.optim.SGD(weights, lr, momentum=0.9, weight_decay=l2),
    "RMSprop": lambda weights, lr, l2: torch.optim.RMSprop(weights, lr, weight_decay=l2),
    "Adam": lambda weights, lr, l2: torch.optim.Adam(weights, lr, weight_decay=l2),
}


def falling(done: float) -> float:
    """Fall linearly to 0."""
    return 1.0 - done


def constant(_done: float) -> float:
    """Stay."""
    return 1.0


class Images(NamedTuple):
    """Examples to train and to test on, (N, C, H, W), with their classes, (N,) int64."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int


def few_images(data: str, train: int, test: int, side: int) -> Images:
    """Load a few images, always the same, made smaller by averaging.

    Parameters
    ----------
    data : str
        As for :func:`batchnorm.lab.data.load`.
    train, test : int
        At most so many.
    side : int
        Side of the images; those that are not larger stay as they are.

    Returns
    -------
    Images
        The mean of all training values is 0 and their standard deviation 1.

    Raises
    ------
    DataError
        As :func:`batchnorm.lab.data.load`.
    """
    dataset = load(data)
    parts = []
    for examples, count in ((dataset.train, train), (dataset.test, test)):
        few = fixed_subset(examples, count)
        x = few.fetch(torch.arange(len(few)))
        parts += [functional.adaptive_avg_pool2d(x, side) if x.shape[-1] > side else x, few.targets]
    std, mean = torch.std_mean(parts[0])
    return Images((parts[0] - mean) / std, parts[1], (parts[2] - mean) / std, parts[3], dataset.classes)


def network(model: str, norm: str, images: Images, *, seed: int, ghost: int = 0, **options: Any) -> nn.Module:
    """Build a network of the lab.

    Parameters
    ----------
    model, norm : str
        Names.
    images : Images
        What it is for.
    seed : int
        Of its weights.
    ghost : int
        Samples that batch normalization normalizes together; 0: all of the batch.
    **options
        Of :func:`batchnorm.lab.models.build`.

    Returns
    -------
    Module
        In training mode.
    """
    shape = tuple(images.x.shape[1:])
    made = build(model, Normalization(norm), input_shape=shape, classes=images.classes, seed=seed, **options)
    for layer in normalizations(made) if ghost else ():
        layer.statistics = Ghost(ghost)
    return made


def normalizations(model: nn.Module) -> list[Any]:
    """Return the layers of batch normalization."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]


def descend(
    model: nn.Module,
    images: Images,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    optimizer: str = "momentum",
    l2: float = 0.0,
    l1: float = 0.0,
    schedule: Callable[[float], float] = falling,
    reshuffled: bool = True,
    arranged: Callable[[Tensor], Tensor] | None = None,
    changed: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Iterator[float]:
    """Train, step by step.

    Parameters
    ----------
    model : Module
        Changed.
    images : Images
        What it is trained on.
    steps, batch : int
        Steps, and examples in each.
    lr : float
        Learning rate at the start.
    seed : int
        Of the order of the examples.
    optimizer : str
        One of ``OPTIMIZERS``.
    l2 : float
        Weight decay.
    l1 : float
        Factor of the sum of absolute weights (of two or more dimensions) that is added to the loss.
    schedule : callable
        From the share of the steps that are done to the factor of the rate.
    reshuffled : bool
        Draw a new order in each epoch; otherwise the first is kept, and the same examples meet again.
    arranged : callable, optional
        From the indices of a batch to those indices in another order.
    changed : callable, optional
        From step, examples and classes to what is trained on: images, and classes or a share of each.

    Yields
    ------
    float
        The training loss of the step. It ends early when that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    rule = OPTIMIZERS[optimizer](model.parameters(), lr, l2)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        model.train()
        if len(order) < batch:
            if not reshuffled:
                generator.manual_seed(seed)
            order = torch.randperm(len(images.y), generator=generator)
        chosen, order = order[:batch], order[batch:]
        chosen = arranged(chosen) if arranged else chosen
        rule.param_groups[0]["lr"] = lr * schedule(step / steps)
        x, y = images.x[chosen], images.y[chosen]
        x, y = (x, y) if changed is None else changed(step, x, y)
        loss = functional.cross_entropy(model(x), y)
        if l1:
            loss = loss + l1 * torch.stack([w.abs().sum() for w in model.parameters() if w.dim() > 1]).sum()
        rule.zero_grad()
        loss.backward()
        rule.step()
        value = loss.item()
        yield value
        if not torch.isfinite(loss):
            return


def run_out(steps: Iterator[float]) -> float:
    """Take all steps; return the last loss."""
    return list(steps)[-1]


def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, training: bool = False, batch: int = 500) -> float:
    """Return the share of examples that are classified correctly.

    Parameters
    ----------
    model : Module
        Its mode, running statistics and counters come back.
    x, y : Tensor
        Examples, in the order in which they form batches, and their classes.
    training : bool
        Normalize with the statistics of each batch.
    batch : int
        Examples in a batch.

    Returns
    -------
    float
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model.training
    model.train(training)
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(batch), y.split(batch), strict=True))
    model.load_state_dict(state)
    model.train(before)
    return right / len(y)


def measure_statistics(model: nn.Module, x: Tensor, *, batch: int = 500) -> nn.Module:
    """Give the model, in place, the population statistics of some examples.

    Layer by layer, so that each sees its inputs as in inference.

    Parameters
    ----------
    model : Module
        Changed.
    x : Tensor
        Examples.
    batch : int
        Examples in a batch.

    Returns
    -------
    Module
        The same.
    """
    if normalizations(model):
        recalibrate(model, list(x.split(batch)), inplace=True, mode="sequential")
    return model
