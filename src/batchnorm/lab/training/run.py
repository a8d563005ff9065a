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
from batchnorm.lab.training.building import Subject, make_subject
from batchnorm.lab.training.config import TrainConfig
from batchnorm.lab.training.evaluation import Score
from batchnorm.lab.training.journal import Journal
from batchnorm.lab.training.loop import Diverged, Loop
from batchnorm.lab.training.machine import make_fabric
from batchnorm.lab.training.optimizers import make_optimizer
from batchnorm.lab.training.progress import Progress
from batchnorm.lab.training.randomness import random_state, restore_random_state, seed_all
from batchnorm.lab.training.schedules import make_schedule
from batchnorm.lab.training.settings import check_resumption, command_line, from_mapping
from batchnorm.lab.training.signals import asking_to_stop
from batchnorm.lab.training.step import Stepper
from batchnorm.probes import make_probes

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
        A run directory to go on with, from its last whole checkpoint. Settings may then differ as far as
        ``config.MAY_CHANGE`` says.
    dataset : Dataset, optional
        One's own data, instead of those that ``config.data`` names.
    model : Module, optional
        One's own network, instead of the one that ``config.model`` names; it is trained in place. To resume, build the
        same again.
    talk : Talk, optional
        Who is told how it goes. None: nobody.

    Returns
    -------
    Outcome
        Diverged runs are among them: their records are kept.

    Raises
    ------
    LabError
        A setting that cannot work, or not enough memory.
    OutputError
        The run directory cannot be written or gone on with. What was recorded before stays readable.
    Interrupted
        By Ctrl-C or SIGTERM, after the step that was being taken; a checkpoint was written.

    Examples
    --------
    >>> import tempfile
    >>> from batchnorm.lab.training import TrainConfig, train
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     outcome = train(TrainConfig(model="mlp", steps=3, out=Path(directory) / "run"))
    >>> outcome.status, outcome.step
    ('finished', 3)
    """
    talk = talk or Talk()
    before: TrainConfig | None = None
    if resume is not None:
        before = from_mapping(read_config(Path(resume))["config"], f"{Path(resume) / 'config.json'}")
    config = config or before or TrainConfig()
    fabric = make_fabric(config)
    with _process(config, fabric):
        subject = make_subject(config, dataset=dataset, model=model, rank=fabric.global_rank, world=fabric.world_size)
        if resume is None:
            path = config.out or _new_directory(subject)
            recorder = _create(path, subject, fabric)
            state = None
        else:
            assert before is not None
            path = Path(resume)
            recorder, state = _reopen(path, before, subject, fabric, talk)
        if fabric.is_global_zero:
            talk.say(_plan(subject, fabric, path))
        return _train(subject, fabric, path, recorder, state, talk)


def dry_run(config: TrainConfig, talk: Talk) -> Outcome:
    """Go through everything once: a step with its probes, the evaluations on a batch's worth of examples, a checkpoint.

    Parameters
    ----------
    config : TrainConfig
        What would be trained.
    talk : Talk
        Who is told how it goes.

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
    fabric = make_fabric(config)
    with tempfile.TemporaryDirectory() as directory, _process(config, fabric):
        path = Path(directory) / "run"
        subject = make_subject(
            config, dataset=None, model=None, rank=fabric.global_rank, world=fabric.world_size, dry=True
        )
        outcome = _train(subject, fabric, path, _create(path, subject, fabric), None, talk)
        if fabric.is_global_zero:
            checkpoints.load_last(path / CHECKPOINTS, warn=talk.say)
        return outcome


def _train(
    subject: Subject,
    fabric: Fabric,
    path: Path,
    recorder: Recorder | None,
    state: checkpoints.State | None,
    talk: Talk,
) -> Outcome:
    """Train, and write down how it ended, whatever ends it."""
    loop = _make_loop(subject, fabric, path, recorder, state, talk)
    status, reason = "failed", ""
    try:
        with asking_to_stop(insist=fabric.world_size == 1) as asked:
            loop.asked_to_stop = asked
            status, reason = loop.train()
        loop.journal.weights(loop.stepper.model)
    except Diverged as ending:
        status, reason = "diverged", str(ending)
    except KeyboardInterrupt:
        status, reason = "interrupted", "before the step was done"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if _out_of_memory(error):
            raise LabError(
                f"not enough memory for step {loop.at.step + 1}; take a smaller batch_size, or accumulate it in more "
                f"pieces; what was recorded in {path} is kept"
            ) from error
        raise
    finally:
        # Of two failures the first is the one to tell: where the disk is full, this one cannot be written either.
        with contextlib.suppress(OutputError) if status == "failed" else contextlib.nullcontext():
            loop.journal.end(status=status, step=loop.at.step, reason=reason)
    outcome = Outcome(path, status, loop.at.step, reason, loop.scores, fabric.is_global_zero)
    if status == "interrupted":
        raise Interrupted(outcome)
    return outcome


def _make_loop(
    subject: Subject,
    fabric: Fabric,
    path: Path,
    recorder: Recorder | None,
    state: checkpoints.State | None,
    talk: Talk,
) -> Loop:
    config = subject.config
    plain = make_optimizer(subject.model, config)
    network: Any = torch.compile(subject.model) if config.compile else subject.model
    wrapped, optimizer = fabric.setup(network, plain)
    probes = make_probes(config.probes, subject.model) if fabric.is_global_zero else []
    step = 0 if state is None else state["step"]
    loop = Loop(
        Stepper(fabric, config, subject.model, wrapped, optimizer, plain, probes),
        subject.dataset,
        subject.loader,
        make_schedule(config, steps=subject.steps, steps_per_epoch=len(subject.loader)),
        subject.steps,
        Journal(recorder, tensorboard=config.tensorboard, step=step),
        path / CHECKPOINTS,
        talk.progress,
        lambda: False,
    )
    # Masks of dropout differ between processes, as their examples do.
    seed_all(config.seed + PRIME * fabric.global_rank)
    if state is not None:
        loop.restore(state)
    return loop


#: Keeps the seeds of processes apart for any seeds that a user counts up.
PRIME = 1_000_003


def _create(path: Path, subject: Subject, fabric: Fabric) -> Recorder | None:
    if not fabric.is_global_zero:
        return None
    config = {"command": command_line(subject.config), "config": asdict(subject.config), **subject.described}
    return Recorder.create(path, config=config, environment=_environment(subject.config, fabric))


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
        config={"command": command_line(subject.config), "config": asdict(subject.config)},
        note={"step": step, "changed": changed, **_environment(subject.config, fabric)},
    ), state


def _environment(config: TrainConfig, fabric: Fabric) -> dict[str, Any]:
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    return {**environment(config.threads), "device": device, "processes": fabric.world_size}


@contextlib.contextmanager
def _process(config: TrainConfig, fabric: Fabric) -> Iterator[None]:
    """Set what belongs to the whole process, and put it back."""
    threads, generators = torch.get_num_threads(), random_state()
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.tune_allocator and fabric.device.type == "cpu":
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
