"""From a config to a finished run directory, whatever happens on the way."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

import batchnorm
from batchnorm.lab.data import Dataset
from batchnorm.lab.environment import environment
from batchnorm.lab.errors import LabError, OutputError
from batchnorm.lab.recording import Recorder, read_config
from batchnorm.lab.training import checkpoints
from batchnorm.lab.training.building import Subject, few_examples, make_subject
from batchnorm.lab.training.config import TrainConfig
from batchnorm.lab.training.evaluation import Score
from batchnorm.lab.training.journal import Journal
from batchnorm.lab.training.loop import Diverged, Loop
from batchnorm.lab.training.machine import choose_device, make_fabric
from batchnorm.lab.training.progress import Progress
from batchnorm.lab.training.randomness import random_state, restore_random_state, seed_all
from batchnorm.lab.training.recipes import resolve
from batchnorm.lab.training.settings import asked_command, check_resumption, command_line, from_mapping
from batchnorm.lab.training.signals import asking_to_stop
from batchnorm.lab.training.step import Run

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes
    ----------
    path : Path
        The run directory.
    status : {'finished', 'diverged', 'interrupted'}
        How it ended.
    step : int
        Optimizer steps done.
    reason : str
        Why, when there is something to say.
    scores : dict of str to Score
        The last evaluation of each part: test, validation, train_evaluation.
    first : bool
        Whether this is the first process, the one that writes.
    """

    path: Path
    status: str
    step: int
    reason: str
    scores: dict[str, Score]
    first: bool


class Interrupted(KeyboardInterrupt):
    """A training was interrupted; what it recorded is whole, and a checkpoint is there to go on from.

    Parameters
    ----------
    outcome : Outcome
        Where it stands.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"interrupted after step {outcome.step}; {outcome.path} holds what was recorded")
        self.outcome = outcome


@dataclass
class Talk:
    """Who is told what: the command line, or nobody.

    Attributes
    ----------
    say : callable
        Called with a sentence, in the first process.
    progress : callable
        Called with each :class:`Progress`, in the first process.
    """

    say: Callable[[str], None] = field(default=lambda _sentence: None)
    progress: Callable[[Progress], None] = field(default=lambda _progress: None)


class Training:
    """One training in its run directory: iterate to take the steps; how it ended is then in ``outcome``.

    :func:`train` exhausts one. Iterate yourself to take turns with other trainings, or to time the steps. Settings of
    the whole process (threads, allocator, random state) are the caller's: see :func:`process_settings`.

    Parameters
    ----------
    config, resume, dataset, model, talk : object
        As for :func:`train`.
    asked_to_stop : callable
        Return True to end after the present step, with a checkpoint.
    fabric : Fabric, optional
        None: made from the config.

    Attributes
    ----------
    path : Path
        The run directory; it exists.
    loop : Loop
        The steps.
    random_state : dict
        State of the generators with which the first step begins.
    outcome : Outcome
        How it stands; its status is 'interrupted' until the end.

    Raises
    ------
    LabError, OutputError
        As :func:`train`.
    """

    def __init__(
        self,
        config: TrainConfig | None = None,
        *,
        resume: str | Path | None = None,
        dataset: Dataset | None = None,
        model: nn.Module | None = None,
        talk: Talk | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
        fabric: Fabric | None = None,
    ) -> None:
        talk = talk or Talk()
        before = None if resume is None else read_settings(Path(resume))
        config = config or before or TrainConfig()
        fabric = fabric or make_fabric(config)
        subject = make_subject(config, dataset=dataset, model=model, rank=fabric.global_rank, world=fabric.world_size)
        if resume is None:
            self.path = config.out or _new_directory(subject)
            recorder, state = _create(self.path, config, subject, fabric), None
        else:
            assert before is not None
            self.path = Path(resume)
            recorder, state = _reopen(self.path, before, subject, fabric, talk)
        if fabric.is_global_zero:
            talk.say(_plan(subject, fabric, self.path))
        self.loop = Loop(
            Run(subject.config, subject.model, fabric),
            subject,
            Journal(recorder, tensorboard=subject.config.tensorboard, step=0 if state is None else state["step"]),
            self.path / CHECKPOINTS,
            tell=talk.progress,
            asked_to_stop=asked_to_stop,
        )
        # Masks of dropout differ between processes, as their examples do.
        seed_all(subject.config.seed + PRIME * fabric.global_rank)
        if state is not None:
            self.loop.restore(state)
        self.random_state = random_state()
        self.outcome = self._outcome("interrupted", "")

    def __iter__(self) -> Iterator[int]:
        """Take the remaining steps, and record how they ended, whatever ends them.

        Yields
        ------
        int
            Steps done.

        Raises
        ------
        LabError
            Not enough memory.
        OutputError
            The run directory cannot be written any more.
        """
        loop = self.loop
        status, reason = "failed", ""
        try:
            yield from loop
            status, reason = loop.status, loop.reason
            loop.journal.weights(loop.run.model)
        except Diverged as ending:
            status, reason = "diverged", str(ending)
        except GeneratorExit:
            status, reason = "interrupted", "no more steps were asked for"
        except KeyboardInterrupt:
            status, reason = "interrupted", "before the step was done"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if _out_of_memory(error):
                raise LabError(
                    f"not enough memory for step {loop.at.step + 1}; take a smaller batch_size, or accumulate it in "
                    f"more pieces; what was recorded in {self.path} is kept"
                ) from error
            raise
        finally:
            # The first of two failures is the one to report: a full disk cannot take this record either.
            with contextlib.suppress(OutputError) if status == "failed" else contextlib.nullcontext():
                loop.journal.end(status=status, step=loop.at.step, reason=reason)
            self.outcome = self._outcome(status, reason)

    def _outcome(self, status: str, reason: str) -> Outcome:
        loop = self.loop
        return Outcome(self.path, status, loop.at.step, reason, loop.scores, loop.run.fabric.is_global_zero)


def train(
    config: TrainConfig | None = None,
    *,
    resume: str | Path | None = None,
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
    talk: Talk | None = None,
) -> Outcome:
    """Train one network into a run directory.

    Parameters
    ----------
    config : TrainConfig, optional
        What to train. None: the defaults, or the config of the run that is resumed.
    resume : str or Path, optional
        Resume this run directory from its last whole checkpoint. Settings may then differ as far as
        ``config.MAY_CHANGE`` says.
    dataset : Dataset, optional
        Your own data, instead of those that ``config.data`` names.
    model : Module, optional
        Your own network, instead of the one that ``config.model`` names; it is trained in place. To resume, build the
        same again.
    talk : Talk, optional
        Callbacks for progress. None: silent.

    Returns
    -------
    Outcome
        Diverged runs are among them: their records are kept.

    Raises
    ------
    LabError
        A setting that cannot work, or not enough memory.
    OutputError
        The run directory cannot be written or resumed. Earlier records stay readable.
    Interrupted
        By Ctrl-C or SIGTERM, after the step in progress; a checkpoint was written.

    Examples
    --------
    >>> import tempfile
    >>> from batchnorm.lab.training import TrainConfig, train
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     outcome = train(TrainConfig(model="mlp", steps=3, out=Path(directory) / "run"))
    >>> outcome.status, outcome.step
    ('finished', 3)
    """
    settings = config or (TrainConfig() if resume is None else read_settings(Path(resume)))
    fabric = make_fabric(settings)
    with process_settings(settings), asking_to_stop(insist=fabric.world_size == 1) as asked:
        training = Training(
            config, resume=resume, dataset=dataset, model=model, talk=talk, asked_to_stop=asked, fabric=fabric
        )
        for _ in training:
            pass
    if training.outcome.status == "interrupted":
        raise Interrupted(training.outcome)
    return training.outcome


def read_settings(path: Path) -> TrainConfig:
    """Read the settings of a run directory.

    Parameters
    ----------
    path : Path
        The directory.

    Returns
    -------
    TrainConfig

    Raises
    ------
    LabError, OutputError
        ``path`` is not a run directory, or holds a setting of another version.
    """
    return from_mapping(read_config(path)["config"], f"{path / 'config.json'}")


def dry_run(config: TrainConfig, talk: Talk) -> Outcome:
    """Go through everything once: a step with its probes, the evaluations on a batch's worth of examples, a checkpoint.

    Parameters
    ----------
    config : TrainConfig
        What would be trained.
    talk : Talk
        Callbacks for progress.

    Returns
    -------
    Outcome
        Its directory is gone.

    Raises
    ------
    LabError
        What training would raise.
    """
    once: dict[str, Any] = {f"{what}_every": 1 for what in ("log", "evaluate", "checkpoint", "probe")}
    batch = config.batch_size or 64
    config = replace(config, epochs=None, steps=1, warmup_steps=0, train_subset=min(batch, config.train_subset), **once)
    with tempfile.TemporaryDirectory() as directory:
        outcome = train(replace(config, out=Path(directory) / "run"), dataset=few_examples(config, batch), talk=talk)
        if outcome.first:
            checkpoints.load_last(outcome.path / CHECKPOINTS, warn=talk.say)
        return outcome


#: Keeps the seeds of processes apart for any seeds that a user counts up.
PRIME = 1_000_003


def _create(path: Path, asked: TrainConfig, subject: Subject, fabric: Fabric) -> Recorder | None:
    if not fabric.is_global_zero:
        return None
    head = {
        "command": asked_command("train", asked),
        "full_command": command_line(subject.config),
        "config": asdict(subject.config),
        **subject.described,
    }
    return Recorder.create(path, config=head, environment=_environment(subject.config, fabric))


def _reopen(
    path: Path, before: TrainConfig, subject: Subject, fabric: Fabric, talk: Talk
) -> tuple[Recorder | None, checkpoints.State | None]:
    """Check that a run can go on, and go back to its last checkpoint; None if it had not come to its first."""
    changed = check_resumption(before, replace(subject.config, out=before.out))
    state: checkpoints.State | None = None
    if fabric.is_global_zero and checkpoints.exist(path / CHECKPOINTS):
        state = checkpoints.load_last(path / CHECKPOINTS, warn=talk.say)
    if fabric.world_size > 1:
        state = fabric.broadcast(state)  # the other machines need not see the directory
    step = 0 if state is None else state["step"]
    if state is not None and len(state["processes"]) != fabric.world_size:
        raise LabError(
            f"a run goes on with as many processes as it began with, {len(state['processes'])}; got {fabric.world_size}"
        )
    # Killed between its last checkpoint and its end, it has the end to write.
    unended = step == subject.steps and not (path / "status.json").exists()
    if step >= subject.steps and not unended:
        raise LabError(f"{path} is at step {step} of {subject.steps}; to go on, give more --epochs or --steps")
    if not fabric.is_global_zero:
        return None, state
    return Recorder.resume(
        path,
        # Before the first step all is done anew: the first evaluation too.
        step or -1,
        config={"full_command": command_line(subject.config), "config": asdict(subject.config)},
        note={"step": step, "changed": changed, **_environment(subject.config, fabric)},
    ), state


def _environment(config: TrainConfig, fabric: Fabric) -> dict[str, Any]:
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    return {**environment(config.threads), "device": device, "processes": fabric.world_size}


@contextlib.contextmanager
def process_settings(config: TrainConfig) -> Iterator[None]:
    """Set what belongs to the whole process (threads, allocator), and restore it with the caller's random state.

    Parameters
    ----------
    config : TrainConfig
        ``threads``, ``tune_allocator`` and ``device`` count.

    Yields
    ------
    None
    """
    threads, generators, wanted = torch.get_num_threads(), random_state(), resolve(config).threads
    if wanted:
        torch.set_num_threads(wanted)
    if config.tune_allocator and choose_device(config.device) == "cpu":
        batchnorm.tune_allocator()  # this one stays
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        restore_random_state(generators)


def _plan(subject: Subject, fabric: Fabric, path: Path) -> str:
    config = subject.config
    model = subject.described["model"]
    converted = model.get("converted")
    parts = [
        f"{model['name']} ({model['norm']}) on {subject.dataset.name}: {subject.steps:,} steps of {config.batch_size}",
        f"{config.optimizer} at {config.lr:g}, {config.schedule}",
        f"{fabric.device.type}, {config.precision}",
        *([f"{fabric.world_size} processes"] if fabric.world_size > 1 else []),
        *(["converted: " + ", ".join(f"{n} {what}" for what, n in converted.items())] if converted else []),
        f"into {path}",
    ]
    return "; ".join(parts)


def _out_of_memory(error: Exception) -> bool:
    words = ("not enough memory", "can't allocate memory", "out of memory")
    plain = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    return plain or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _new_directory(subject: Subject) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    model = subject.described["model"]
    names = [Path(subject.config.data).stem, model["name"].replace(":", ".").replace("/", "."), model["norm"]]
    return Path("runs") / "-".join(["train", *names, stamp])
