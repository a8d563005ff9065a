"""The comparison: every arm trained in lockstep on the same batches, and recorded as it goes.

At each step the arms take the same mini-batch one after the other, so they see the same data by construction, their
times are measured under the same conditions, and an interruption finds them within one step of each other.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from batchnorm.lab.compare.artefacts import RunWriter, TrialWriter
from batchnorm.lab.compare.config import CompareConfig, Norm, evaluation_steps
from batchnorm.lab.compare.evaluation import evaluate, training_loss
from batchnorm.lab.data import Dataset, batches
from batchnorm.lab.data.dataset import everything
from batchnorm.lab.errors import LabError
from batchnorm.lab.models import Network, Normalization, build


@dataclass(frozen=True)
class Progress:
    """How far the comparison is; sent at each evaluation, and when a trial diverges.

    Parameters
    ----------
    trials_done, trials : int
        Trials that have ended, and all trials (arms times learning rates times seeds).
    step, steps : int
        Training step of the trials that are running, and their last one.
    lr : float
        Their learning rate.
    seed : int
        Their seed.
    accuracy : dict of str to float
        Latest test accuracy of each arm.
    """

    trials_done: int
    trials: int
    step: int
    steps: int
    lr: float
    seed: int
    accuracy: Mapping[str, float]


@dataclass
class _Arm:
    """One trial while it runs."""

    norm: Norm
    network: Network
    optimizer: torch.optim.Optimizer
    writer: TrialWriter
    step: int = 0
    ended: bool = False
    accuracy: float = math.nan
    # Since the last record:
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def train(self, x: Tensor, y: Tensor) -> None:
        """Take one step, or end as diverged instead."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.network(x), y)
        value = loss.item()
        if not math.isfinite(value):
            self.end("diverged", f"the training loss became {value} in step {self.step + 1}")
            return
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(value)
        self.step += 1

    def record(self, test: tuple[Tensor, Tensor], classes: int, *, last: bool = False) -> None:
        """Evaluate, write it down, and begin a new interval; after the last one, end."""
        evaluation = evaluate(self.network, *test)
        self.accuracy = evaluation.accuracy
        train_loss = statistics.fmean(self.losses)
        self.writer.record(
            {
                "step": self.step,
                "train_loss": _rounded(train_loss),
                "test_loss": _rounded(evaluation.loss),
                "test_accuracy": _rounded(evaluation.accuracy),
                "saturated": _rounded(evaluation.saturated),
                "percentiles": _rounded(evaluation.percentiles),
                "step_seconds": _rounded(statistics.median(self.seconds)) if self.seconds else None,
            }
        )
        if not math.isfinite(evaluation.loss):
            self.end("diverged", f"the test loss was {evaluation.loss} after step {self.step}")
        elif last:
            self.end(*_outcome(train_loss, classes))
        self.losses.clear()
        self.seconds.clear()

    def end(self, status: str, reason: str = "") -> None:
        """Say how the trial ended; it takes no more steps."""
        self.ended = True
        self.writer.end(status=status, step=self.step, reason=reason)


def describe(config: CompareConfig, dataset: Dataset) -> dict[str, Any]:
    """Describe a comparison before it starts, for the run directory.

    Parameters
    ----------
    config : CompareConfig
        The comparison.
    dataset : Dataset
        What it trains on.

    Returns
    -------
    dict
        ``config`` with every setting resolved, ``data`` and ``model``: the content of config.json but for the command.

    Raises
    ------
    LabError
        The mini-batch is larger than the data set.
    """
    config = _resolved(config, dataset)
    networks = {norm: _network(config, dataset, norm, seed=0) for norm in ("none", "batch")}
    network = networks["none"]
    return {
        "config": asdict(config),
        "data": {
            "name": dataset.name,
            "train": len(dataset.train),
            "test": len(dataset.test),
            "input_shape": list(dataset.input_shape),
            "classes": dataset.classes,
            "preprocessing": dataset.preprocessing,
        },
        "model": {
            "name": config.model,
            "description": network.description,
            "activation": network.activation,
            "hidden_units": list(network.hidden_units),
            "parameters": {norm: sum(p.numel() for p in networks[norm].parameters()) for norm in networks},
        },
    }


def compare(
    config: CompareConfig,
    dataset: Dataset,
    writer: RunWriter,
    on_event: Callable[[Progress], None] = lambda _progress: None,
) -> None:
    """Train every arm at every learning rate with every seed, and write down what happens.

    Seeds are the outer loop: whatever stops the run, the learning rates have been treated alike. Training is plain
    stochastic gradient descent on the cross-entropy. A trial whose loss is not finite ends there as "diverged", and so
    does one whose training loss over its last interval is more than twice that of guessing; the others go on.

    Parameters
    ----------
    config : CompareConfig
        What to compare.
    dataset : Dataset
        What to train on.
    writer : RunWriter
        The run directory. Each evaluation is on disk when ``compare`` goes on.
    on_event : callable
        Called with :class:`Progress`.

    Raises
    ------
    LabError
        The mini-batch is larger than the data set.
    OutputError
        The run directory cannot be written any more.
    KeyboardInterrupt
        As it came: the trials that were running and the run have been ended as "interrupted".

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`, section 4.1 and figure 1.
    """
    config = _resolved(config, dataset)
    assert config.lr is not None
    trials = len(config.norm) * len(config.lr) * config.seeds
    done = 0
    status = "interrupted"
    try:
        with _threads(config.threads):
            for seed in range(config.seeds):
                for lr in config.lr:
                    _lockstep(config, dataset, writer, on_event, lr=lr, seed=seed, done=done, trials=trials)
                    done += len(config.norm)
        status = "finished"
    finally:
        writer.finish(status)


def _lockstep(
    config: CompareConfig,
    dataset: Dataset,
    writer: RunWriter,
    on_event: Callable[[Progress], None],
    *,
    lr: float,
    seed: int,
    done: int,
    trials: int,
) -> None:
    """Train all arms at one learning rate with one seed."""
    assert config.steps is not None
    steps = config.steps
    evaluate_at = set(evaluation_steps(steps, config.evaluations))
    arms: list[_Arm] = []
    test = everything(dataset.test)

    def tell(step: int) -> None:
        ended = sum(arm.ended for arm in arms)
        accuracy: dict[str, float] = {arm.norm: arm.accuracy for arm in arms}
        on_event(Progress(done + ended, trials, step, steps, lr, seed, accuracy))

    try:
        first = next(batches(len(dataset.train), config.batch_size, seed))
        for norm in config.norm:
            network = _network(config, dataset, norm, seed)
            optimizer = torch.optim.SGD(network.parameters(), lr)
            arm = _Arm(norm, network, optimizer, writer.trial(norm=norm, lr=lr, seed=seed))
            arms.append(arm)
            arm.losses.append(training_loss(network, dataset.train.fetch(first), dataset.train.targets[first]))
            arm.record(test, dataset.classes)
        tell(0)
        order = batches(len(dataset.train), config.batch_size, seed)
        for step, index in zip(range(1, steps + 1), order, strict=False):  # the order has no end
            running = [arm for arm in arms if not arm.ended]
            if not running:
                break
            x, y = dataset.train.fetch(index), dataset.train.targets[index]
            # Whoever goes first finds the batch in a colder cache, so they take turns.
            for arm in running if step % 2 else reversed(running):
                arm.train(x, y)
            if step in evaluate_at:
                for arm in running:
                    if not arm.ended:
                        arm.record(test, dataset.classes, last=step == steps)
            if step in evaluate_at or any(arm.ended for arm in running):
                tell(step)
    finally:
        for arm in arms:
            if not arm.ended:
                arm.end("interrupted")


def _resolved(config: CompareConfig, dataset: Dataset) -> CompareConfig:
    """Fill in the defaults, and check what cannot be known without the data."""
    if config.batch_size > len(dataset.train):
        raise LabError(
            f"batch_size must be at most the number of training examples of {dataset.name}, {len(dataset.train)}; "
            f"got {config.batch_size}"
        )
    return config.resolved()


def _outcome(train_loss: float, classes: int) -> tuple[str, str]:
    """Status and reason of a trial that took all its steps and ended with this training loss."""
    guessing = math.log(classes)
    if train_loss <= 2 * guessing:
        return "finished", ""
    return "diverged", f"the training loss ended at {train_loss:.3g}, more than twice that of guessing, {guessing:.3g}"


def _network(config: CompareConfig, dataset: Dataset, norm: Norm, seed: int) -> Network:
    network = build(
        config.model,
        Normalization(norm, eps=config.eps, momentum=config.momentum),
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        weight_std=config.weight_std,
        seed=seed,
    )
    assert isinstance(network, Network)
    return network


def _rounded(values: ArrayLike) -> Any:
    """Six significant digits: float32 holds seven, and the files stay small."""
    array = np.asarray(values, dtype=np.float64)
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[np.float64])(array).tolist()


@contextlib.contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
