"""The training loop: steps, and around them what is due: records, evaluations, checkpoints."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from batchnorm.lab.data import Batch, Dataset, Loader
from batchnorm.lab.training import checkpoints
from batchnorm.lab.training.evaluation import (
    Score,
    batch_of_evaluation,
    evaluate,
    parts_of,
    with_population_statistics,
)
from batchnorm.lab.training.journal import Journal
from batchnorm.lab.training.machine import average_statistics, gathered, total
from batchnorm.lab.training.progress import Progress
from batchnorm.lab.training.randomness import random_state, restore_random_state
from batchnorm.lab.training.schedules import Schedule
from batchnorm.lab.training.step import Stepper

#: A run whose loss ends above this many times that of guessing, and above where it began, has diverged.
GUESSING = 2.0


class Diverged(Exception):  # noqa: N818  # an ending, not an error
    """The loss is not finite, or the run ended far above guessing and above its beginning."""


@dataclass
class Position:
    """Where a training is: all that a step or a record depends on besides weights, optimizer and random state.

    Attributes
    ----------
    step : int
        Optimizer steps done.
    seconds : float
        Time spent, over all resumptions.
    losses : list of float or Tensor
        Training losses since the last record; tensors until they are read, as reading waits for the device.
    durations : list of float
        Seconds of these steps, with the wait for data.
    first_loss : float or None
        Training loss of the first step, once it is read.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[Any] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    first_loss: float | None = None


@dataclass
class Loop:
    """One training, from where it stands to its end.

    Attributes
    ----------
    stepper : Stepper
        Takes a step; holds Fabric, config and network.
    dataset : Dataset
        What to evaluate on.
    loader : Loader
        This process's share of the training batches.
    schedule : callable
        Learning rate of each step.
    steps : int
        Steps of the whole run.
    journal : Journal
        What is written down.
    directory : Path
        Where checkpoints go.
    tell : callable
        Called with :class:`Progress` in the first process.
    asked_to_stop : callable
        Whether somebody wants this process to stop.
    """

    stepper: Stepper
    dataset: Dataset
    loader: Loader
    schedule: Schedule
    steps: int
    journal: Journal
    directory: Path
    tell: Callable[[Progress], None]
    asked_to_stop: Callable[[], bool]
    at: Position = field(default_factory=Position)
    scores: dict[str, Score] = field(default_factory=dict)

    def train(self) -> tuple[str, str]:
        """Train to the end.

        Returns
        -------
        tuple of str
            Status, 'finished' or 'interrupted', and reason.

        Raises
        ------
        Diverged
            The loss is not finite, or at the end far above guessing and above its beginning. What was recorded and
            saved before it stays.
        """
        if self.at.step == 0:
            self._evaluate()
            self._save()
        if self.at.step == self.steps:
            return "finished", ""
        clock = time.perf_counter()
        for batch in self._batches():
            loss, readings = self.stepper(batch, self.schedule(self.at.step), probing=self._probing())
            self.at.step += 1
            self.at.losses.append(loss)
            self.at.durations.append(time.perf_counter() - clock)
            self.at.seconds += self.at.durations[-1]
            clock = time.perf_counter()

            for name, reading in readings.items():
                self.journal.probe(name, **self._where(), scalars=reading.scalars, layers=reading.layers)
            last = self.at.step == self.steps
            recording = self._due("log", last)
            stop = self._asked(together=recording)
            if recording:
                self._record_losses(last=last)
            reached = self._due("evaluate", last) and self._evaluate()
            if self._due("checkpoint", last) or stop or reached:
                self._save()
            self.at.seconds += time.perf_counter() - clock
            clock = time.perf_counter()
            if last or reached:
                return "finished", "" if last else f"target accuracy {self._config.target_accuracy} reached"
            if stop:
                return "interrupted", "asked to stop"
        raise AssertionError("batches have no end")

    def restore(self, state: checkpoints.State) -> None:
        """Go back to where a checkpoint was written."""
        stepper = self.stepper
        stepper.model.load_state_dict(state["model"])
        stepper.plain_optimizer.load_state_dict(state["optimizer"])
        stepper.fabric.strategy.precision.load_state_dict(state["precision"])
        own = state["processes"][stepper.fabric.global_rank]
        self.at = Position(
            state["step"], state["seconds"], list(own["losses"]), list(state["durations"]), state["first_loss"]
        )
        restore_random_state(own["random"])

    def _save(self) -> None:
        """Write a checkpoint: the first process writes, every process adds what it alone knows."""
        stepper, fabric = self.stepper, self.stepper.fabric
        average_statistics(fabric, stepper.model)
        processes = gathered(fabric, {"random": random_state(), "losses": [float(loss) for loss in self.at.losses]})
        if not all(math.isfinite(loss) for process in processes for loss in process["losses"]):
            self._record_losses(last=False)  # which ends the run: what is saved is always good to go on from
        if fabric.is_global_zero:
            state = {
                "model": stepper.model.state_dict(),
                "optimizer": stepper.plain_optimizer.state_dict(),
                "precision": fabric.strategy.precision.state_dict(),
                "step": self.at.step,
                "seconds": self.at.seconds,
                "durations": self.at.durations,
                "first_loss": self.at.first_loss,
                "processes": processes,
            }
            checkpoints.save(self.directory, self.at.step, state)

    def _record_losses(self, *, last: bool) -> None:
        """Write down the steps since the last record, averaged over processes; see that their losses are finite."""
        fabric, at = self.stepper.fabric, self.at
        shares = torch.stack([torch.as_tensor(loss, dtype=torch.float32, device=fabric.device) for loss in at.losses])
        losses = (total(fabric, shares) / fabric.world_size).tolist()
        at.first_loss = losses[0] if at.first_loss is None else at.first_loss
        mean, rate = statistics.fmean(losses), self._batch_size * len(losses) / sum(at.durations)
        self.journal.metrics(
            "train",
            **self._where(),
            seconds=at.seconds,
            loss=mean,
            lr=self.schedule(at.step - 1),
            step_seconds=statistics.median(at.durations),
            examples_per_second=rate,
        )
        at.losses, at.durations = [], []
        self._tell(loss=mean, examples_per_second=rate)
        for number, value in enumerate(losses, start=at.step - len(losses) + 1):
            if not math.isfinite(value):
                raise Diverged(f"the training loss became {value} in step {number}")
        guessing = math.log(self.dataset.classes)
        # A run of a few steps may end high because it began there, or be all beginning.
        if last and at.step > self._config.log_every and mean > max(GUESSING * guessing, at.first_loss):
            raise Diverged(
                f"the training loss ended at {mean:.3g}, more than {GUESSING:g} times that of guessing, "
                f"{guessing:.3g}, and above where it began, {at.first_loss:.3g}"
            )

    def _evaluate(self) -> bool:
        """Evaluate on every part, and say whether the target accuracy is reached."""
        start, config, fabric, network = time.perf_counter(), self._config, self.stepper.fabric, self.stepper.model
        average_statistics(fabric, network)
        remembers = any(name.endswith("running_mean") for name, _ in network.named_buffers())
        if remembers and config.statistics == "population":
            try:
                network = with_population_statistics(
                    fabric, network, self.dataset.train, config, classes=self.dataset.classes
                )
            except ValueError as error:  # of values that are not finite
                raise Diverged(f"population statistics after step {self.at.step}: {error}") from error
        for kind, examples in parts_of(self.dataset, config).items():
            score = evaluate(
                fabric,
                network,
                examples,
                classes=self.dataset.classes,
                batch_size=batch_of_evaluation(config, fabric.world_size),
                channels_last=config.channels_last,
            )
            self.scores[kind] = score
            numbers: dict[str, Any] = {**score.values(), "statistics": config.statistics if remembers else "none"}
            self.journal.metrics(
                kind,
                **self._where(),
                seconds=self.at.seconds + time.perf_counter() - start,
                **numbers,
            )
        self._tell(evaluated=True)
        decisive = self.scores["test" if self.dataset.validation is None else "validation"]
        return config.target_accuracy is not None and decisive.accuracy >= config.target_accuracy

    def _batches(self) -> Iterator[Batch]:
        while True:
            epoch, start = divmod(self.at.step, len(self.loader))
            yield from self.loader.epoch(epoch, start)

    def _due(self, what: str, last: bool) -> bool:
        return last or self.at.step % getattr(self._config, f"{what}_every") == 0

    def _probing(self) -> bool:
        """Whether the probes look at the step that comes."""
        assert self._config.probe_every is not None
        return self.at.step == 0 or (self.at.step + 1) % self._config.probe_every == 0

    def _asked(self, *, together: bool) -> bool:
        """Whether to stop; several processes agree on it when they meet anyway, at a record."""
        fabric = self.stepper.fabric
        if fabric.world_size == 1:
            return self.asked_to_stop()
        return together and total(fabric, torch.tensor(float(self.asked_to_stop()), device=fabric.device)).item() > 0

    def _tell(
        self, *, loss: float | None = None, examples_per_second: float | None = None, evaluated: bool = False
    ) -> None:
        if self.stepper.fabric.is_global_zero:
            accuracy = {kind: score.accuracy for kind, score in self.scores.items()}
            self.tell(Progress(**self._where(), steps=self.steps, loss=loss, examples_per_second=examples_per_second,
                               accuracy=accuracy, evaluated=evaluated))  # fmt: skip

    def _where(self) -> dict[str, Any]:
        return {"step": self.at.step, "epoch": self.at.step / len(self.loader)}

    @property
    def _config(self) -> Any:
        return self.stepper.config

    @property
    def _batch_size(self) -> int:
        size: int = self._config.batch_size
        return size
