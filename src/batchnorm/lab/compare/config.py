"""What a comparison is: one frozen dataclass, which is also the command line of ``batchnorm compare``.

The docstring below each field is its help text. Nothing here imports torch.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from batchnorm.lab.errors import LabError

DataName = Literal["digits", "mnist_binary"]
ModelName = Literal["mlp", "convnet"]
Norm = Literal["none", "batch"]

# Half a decade apart, around the best rate of the arm without normalization, so that it is compared at its best: at the
# last of them it does not learn, at the first it learns more slowly. (Tried: 0.01 to 30 for the mlp, 0.003 to 3 for the
# convnet.)
LEARNING_RATES = {"mlp": (0.3, 1.0, 3.0, 10.0), "convnet": (0.03, 0.1, 0.3, 1.0)}
STEPS = {
    ("digits", "mlp"): 3000,
    ("digits", "convnet"): 1000,
    ("mnist_binary", "mlp"): 5000,
    ("mnist_binary", "convnet"): 1000,
}
# 1 / sqrt(100): an input of unit size stays of unit size through a layer of 100 units. The paper says only "small".
MLP_WEIGHT_STD = 0.1
# Both arms change fastest at the start, where evenly spaced points would see nothing.
EARLY_STEPS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class CompareConfig:
    """Train the same network with and without batch normalization, on the same batches from the same initial weights.

    By default: three hidden layers of 100 sigmoids, mini-batches of 60 and plain SGD, as in section 4.1 of Ioffe and
    Szegedy (arXiv 1502.03167). What the paper does not state (learning rate, deviation of the initial weights, eps,
    momentum) is an option here, and is recorded with the run.
    """

    data: DataName = "digits"
    """Data to train on. digits: 1797 handwritten digits of 8x8 pixels that come with scikit-learn. mnist_binary:
    MNIST in black and white, 28x28 pixels, as in the paper, read from --data-dir."""

    model: ModelName = "mlp"
    """Network. mlp: the paper's three hidden layers of 100 sigmoids. convnet: two of convolution, ReLU and max pool,
    then one hidden layer of 100 ReLUs; on mnist_binary about 40 minutes by default, mostly of evaluations: for a first
    look take fewer --seeds and --evaluations."""

    norm: tuple[Norm, ...] = ("none", "batch")
    """Arms to train: without normalization, with batch normalization before each nonlinearity, or both."""

    lr: tuple[float, ...] | None = None
    """Learning rates; each is trained in every arm with every seed. None: 0.3 1 3 10 for the mlp, 0.03 0.1 0.3 1 for
    the convnet."""

    seeds: int = 3
    """Number of seeds, 0 to seeds - 1. A seed fixes the initial weights and the order of the batches, for all arms."""

    steps: int | None = None
    """Training steps of each trial. None: for the mlp 3000 on digits and 5000 on mnist_binary, for the convnet 1000.
    The paper takes 50000."""

    batch_size: int = 60
    """Examples in a mini-batch (the paper's 60)."""

    weight_std: float | None = None
    """Standard deviation of the Gaussian initial weights; biases start at zero. None: 0.1 for the mlp; for the convnet
    He's sqrt(2 / fan_in) in each layer. The mlp without normalization depends on it: on digits it hardly starts to
    train from 0.01, and starts at once from 0.3."""

    eps: float = 1e-5
    """Added to the variance by batch normalization."""

    momentum: float = 0.1
    """Weight of the new batch in the running statistics of batch normalization."""

    evaluations: int = 60
    """Evenly spaced evaluations of each trial on the test set, the last at the end; a few early ones (before any
    training, and after 1, 2, 5, 10, 20 and 50 steps) come on top."""

    data_dir: Path | None = None
    """Folder that holds MNIST/raw/*.gz, the layout of torchvision. None: the environment variable BATCHNORM_DATA, else
    the user's cache. Files that are not there are downloaded into it."""

    out: Path | None = None
    """Run directory to write. None: a new one under runs/."""

    # A step of the mlp takes half a millisecond, and no less with two threads. But where another process wants one of
    # their cores, each of its many small operations waits for the scheduler: 70 ms a step, measured.
    threads: int = 1
    """Threads that torch computes with. One is enough for networks as small as these; on a machine with nothing else to
    do, more can make the convnet on mnist_binary faster."""

    def __post_init__(self) -> None:
        """Check every field; nothing behind this border checks again."""
        _check_choice("data", self.data, DataName)
        _check_choice("model", self.model, ModelName)
        _check_several("norm", self.norm)
        for norm in self.norm:
            _check_choice("norm", norm, Norm)
        if self.lr is not None:
            _check_several("lr", self.lr)
            for lr in self.lr:
                _check_positive("lr", lr)
        for name, least in {"seeds": 1, "steps": 1, "batch_size": 2, "evaluations": 1, "threads": 1}.items():
            _check_integer(name, getattr(self, name), least)
        if self.weight_std is not None:
            _check_positive("weight_std", self.weight_std)
        _check_positive("eps", self.eps)
        _check_positive("momentum", self.momentum)
        if self.momentum > 1:
            raise LabError(f"momentum must be at most 1, as it is the weight of the new batch; got {self.momentum}")

    def resolved(self) -> "CompareConfig":
        """Fill in the defaults that depend on the data and on the model.

        Returns
        -------
        CompareConfig
            The same, with ``lr`` and ``steps`` given, and ``weight_std`` too for the mlp (for the convnet None stands
            for He's rule).
        """
        mlp = self.model == "mlp"
        return replace(
            self,
            lr=LEARNING_RATES[self.model] if self.lr is None else self.lr,
            steps=STEPS[self.data, self.model] if self.steps is None else self.steps,
            weight_std=MLP_WEIGHT_STD if mlp and self.weight_std is None else self.weight_std,
        )


def evaluation_steps(steps: int, evaluations: int) -> tuple[int, ...]:
    """After which training steps a trial is evaluated.

    Parameters
    ----------
    steps : int
        Training steps of the trial, at least 1.
    evaluations : int
        Number of evenly spaced evaluations, at least 1.

    Returns
    -------
    tuple of int
        Increasing; 0 (before any training) and ``steps`` are always among them, then 1, 2, 5, 10, 20 and 50 as far as
        ``steps`` reaches, and the evenly spaced ones.

    Examples
    --------
    >>> evaluation_steps(400, 4)
    (0, 1, 2, 5, 10, 20, 50, 100, 200, 300, 400)
    """
    early = {step for step in EARLY_STEPS if step < steps}
    even = {round(steps * k / evaluations) for k in range(1, evaluations + 1)}
    return tuple(sorted({0} | early | even))


def _check_choice(name: str, value: object, choices: object) -> None:
    known: tuple[str, ...] = choices.__args__  # type: ignore[attr-defined]  # the values of a Literal
    if value not in known:
        raise LabError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _check_several(name: str, values: tuple[object, ...]) -> None:
    if not values:
        raise LabError(f"{name} must hold at least one value; got none")
    if len(set(values)) < len(values):
        raise LabError(f"{name} must hold each value once, as each is one trial; got {' '.join(map(str, values))}")


def _check_positive(name: str, value: float) -> None:
    # Written so that nan, which compares false with everything, is refused too.
    if not (0 < value < math.inf):
        raise LabError(f"{name} must be a finite number above 0; got {value}")


def _check_integer(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        reason = ": a batch of one has no variance" if name == "batch_size" else ""
        raise LabError(f"{name} must be at least {least}{reason}; got {value}")
