"""The training loop: steps, and around them what is due: records, evaluations, checkpoints."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from batchnorm.lab.data import Batch
from batchnorm.lab.rules import diverged
from batchnorm.lab.training import checkpoints
from batchnorm.lab.training.building import Subject
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
from batchnorm.lab.training.schedules import make_schedule
from batchnorm.lab.training.step import Run
from batchnorm.lab.training.units import UnitInputs
from batchnorm.probes import make_probes

#: Evenly spaced evaluations see nothing of a start in which everything changes.
EARLY_STEPS = (1, 2, 5, 10, 20, 50)


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


class Loop:
    """A training from its present position to its end: iterate to take the steps, one at a time.

    What is due after a step (records, evaluations, checkpoints) is done before the step is yielded. Reaching the end,
    or a request to stop, ends the iteration; ``status`` and ``reason`` then say why.

    Parameters
    ----------
    run : Run
        The network in training.
    subject : Subject
        Its data, and the number of steps.
    journal : Journal
        Records.
    directory : Path
        Where checkpoints go.
    tell : callable
        Called with :class:`Progress` in the first process.
    asked_to_stop : callable
        Return True to end after the present step.

    Yields
    ------
    int
        Steps done.

    Raises
    ------
    Diverged
        The loss is not finite, or at the end far above guessing and above its beginning. Earlier records and
        checkpoints stay.
    """

    def __init__(
        self,
        run: Run,
        subject: Subject,
        journal: Journal,
        directory: Path,
        *,
        tell: Callable[[Progress], None],
        asked_to_stop: Callable[[], bool],
    ) -> None:
        self.run = run
        self.dataset = subject.dataset
        self.loader = subject.loader
        self.steps = subject.steps
        self.journal = journal
        self.directory = directory
        self.tell = tell
        self.asked_to_stop = asked_to_stop
        self.schedule = make_schedule(run.config, steps=subject.steps, steps_per_epoch=len(subject.loader))
        self.probes = make_probes(run.config.probes, run.model) if run.fabric.is_global_zero else []
        self.at = Position()
        self.scores: dict[str, Score] = {}
        self.status, self.reason = "interrupted", ""

    def __iter__(self) -> Iterator[int]:
        """Take the remaining steps."""
        if self.at.step == 0:
            self._evaluate()
            self._save()
        if self.at.step == self.steps:
            self.status = "finished"
            return
        clock = time.perf_counter()
        for batch in self._batches():
            probes = self.probes if self._probing() else ()
            loss, readings = self.run.step(batch, self.schedule(self.at.step), probes)
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
            early = self.run.config.evaluate_early and self.at.step in EARLY_STEPS
            reached = (early or self._due("evaluate", last)) and self._evaluate()
            if self._due("checkpoint", last) or stop or reached:
                self._save()
            self.at.seconds += time.perf_counter() - clock
            if last or reached:
                self.status = "finished"
                self.reason = "" if last else f"target accuracy {self.run.config.target_accuracy} reached"
            elif stop:
                self.reason = "asked to stop"
            yield self.at.step
            if last or reached or stop:
                return
            clock = time.perf_counter()

    def restore(self, state: checkpoints.State) -> None:
        """Go back to where a checkpoint was written."""
        run = self.run
        run.model.load_state_dict(state["model"])
        run.plain_optimizer.load_state_dict(state["optimizer"])
        run.fabric.strategy.precision.load_state_dict(state["precision"])
        own = state["processes"][run.fabric.global_rank]
        self.at = Position(
            state["step"], state["seconds"], list(own["losses"]), list(state["durations"]), state["first_loss"]
        )
        restore_random_state(own["random"])

    def _save(self) -> None:
        """Write a checkpoint: the first process writes, every process adds what it alone knows."""
        run, fabric = self.run, self.run.fabric
        average_statistics(fabric, run.model)
        processes = gathered(fabric, {"random": random_state(), "losses": [float(loss) for loss in self.at.losses]})
        if not all(math.isfinite(loss) for process in processes for loss in process["losses"]):
            self._record_losses(last=False)  # which ends the run: what is saved is always good to go on from
        if fabric.is_global_zero:
            state = {
                "model": run.model.state_dict(),
                "optimizer": run.plain_optimizer.state_dict(),
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
        fabric, at = self.run.fabric, self.at
        shares = torch.stack([torch.as_tensor(loss, dtype=torch.float32, device=fabric.device) for loss in at.losses])
        losses = (total(fabric, shares) / fabric.world_size).tolist()
        at.first_loss = losses[0] if at.first_loss is None else at.first_loss
        assert self.run.config.batch_size is not None
        mean, rate = statistics.fmean(losses), self.run.config.batch_size * len(losses) / sum(at.durations)
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
        # A run of a few steps may end high because it began there, or be all beginning.
        if (
            last
            and at.step > self.run.config.log_every
            and (why := diverged(mean, at.first_loss, self.dataset.classes))
        ):
            raise Diverged(why)

    def _evaluate(self) -> bool:
        """Evaluate on every part, and say whether the target accuracy is reached."""
        start, config, fabric, network = time.perf_counter(), self.run.config, self.run.fabric, self.run.model
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
            units = UnitInputs(network) if config.units and kind == "test" else contextlib.nullcontext()
            with units:
                score = evaluate(
                    fabric,
                    network,
                    examples,
                    classes=self.dataset.classes,
                    batch_size=batch_of_evaluation(config, fabric.world_size),
                    channels_last=config.channels_last,
                )
            if isinstance(units, UnitInputs):
                self.journal.probe("units", **self._where(), scalars={}, layers=units.layers())
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
        return last or self.at.step % getattr(self.run.config, f"{what}_every") == 0

    def _probing(self) -> bool:
        """Whether the probes look at the step that comes."""
        assert self.run.config.probe_every is not None
        return self.at.step == 0 or (self.at.step + 1) % self.run.config.probe_every == 0

    def _asked(self, *, together: bool) -> bool:
        """Whether to stop; several processes agree on it when they meet anyway, at a record."""
        fabric = self.run.fabric
        if fabric.world_size == 1:
            return self.asked_to_stop()
        return together and total(fabric, torch.tensor(float(self.asked_to_stop()), device=fabric.device)).item() > 0

    def _tell(
        self, *, loss: float | None = None, examples_per_second: float | None = None, evaluated: bool = False
    ) -> None:
        if self.run.fabric.is_global_zero:
            accuracy = {kind: score.accuracy for kind, score in self.scores.items()}
            self.tell(Progress(**self._where(), steps=self.steps, loss=loss, examples_per_second=examples_per_second,
                               accuracy=accuracy, evaluated=evaluated))  # fmt: skip

    def _where(self) -> dict[str, Any]:
        return {"step": self.at.step, "epoch": self.at.step / len(self.loader)}
