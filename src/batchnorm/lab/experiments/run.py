"""Run a plan: train the cells that are missing, those of a group in turns, in one process or several."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from batchnorm.lab.data import Dataset
from batchnorm.lab.environment import cores
from batchnorm.lab.experiments.plan import CELLS, Cell, Plan, missing, read_plan
from batchnorm.lab.experiments.takes import Take, take
from batchnorm.lab.recording import is_done
from batchnorm.lab.training.building import load_data, make_subject
from batchnorm.lab.training.config import TrainConfig
from batchnorm.lab.training.machine import gathered, make_fabric
from batchnorm.lab.training.progress import Progress
from batchnorm.lab.training.randomness import random_state, restore_random_state
from batchnorm.lab.training.run import Outcome, Talk, Training, process_settings
from batchnorm.lab.training.signals import asking_to_stop


@dataclass(frozen=True)
class Watch:
    """Callbacks of a plan that runs in this process.

    Attributes
    ----------
    progress : callable
        Called with a cell and its :class:`Progress` at each record and evaluation.
    ended : callable
        Called with a cell and its :class:`Outcome`.
    """

    progress: Callable[[Cell, Progress], None] = field(default=lambda _cell, _progress: None)
    ended: Callable[[Cell, Outcome], None] = field(default=lambda _cell, _outcome: None)


def check_plan(plan: Plan) -> None:
    """Load the data and build the networks of the first cells that take turns, so that nothing is begun in vain.

    Parameters
    ----------
    plan : Plan
        The plan.

    Raises
    ------
    LabError
        They cannot be trained.
    """
    loaded: dict[str, Dataset] = {}
    for cell in plan.groups[0]:
        make_subject(cell.config, dataset=_data(cell.config, loaded), model=None, rank=0, world=1)


def run_plan(path: Path, *, workers: int = 1, watch: Watch | None = None) -> bool:
    """Train every cell of a stored plan that has not come to its end.

    Finished cells are never trained again; an interrupted one resumes from its checkpoint, bit for bit. Other processes
    and machines may do the same in the same directory at the same time: each cell is trained by one of them.

    Parameters
    ----------
    path : Path
        A directory in which a plan is stored.
    workers : int
        Processes on this machine. More than one give no progress.
    watch : Watch, optional
        Callbacks.

    Returns
    -------
    bool
        True when every cell that this call could take has come to its end; False when it was asked to stop.

    Raises
    ------
    LabError
        A cell cannot be trained: its data are missing, its network cannot be built, the memory does not suffice.
    OutputError
        The directory cannot be written. Records stay, and the plan can be run again.
    """
    if workers == 1:
        return _work(path, watch, None)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        done = [pool.submit(_work, path, None, max(1, cores() // workers)) for _ in range(workers)]
        try:
            ended = [future.result() for future in done]
        except KeyboardInterrupt:  # the workers have received the same signal, and end with a checkpoint
            return False
    return all(ended)


def take_turns(trainings: Sequence[Training]) -> None:
    """Take the steps of several trainings in turns, as if each ran alone.

    Every second turn goes backwards: the first to use a batch finds it in a colder cache. Networks that draw random
    numbers get their own generator state back before each step.

    Parameters
    ----------
    trainings : sequence of Training
        Each ends by itself.
    """
    drawing = len(trainings) > 1 and any(_draws(training.loop.run.config) for training in trainings)
    running = {training: iter(training) for training in trainings}
    states = {training: training.random_state for training in trainings}
    forward = True
    while running:
        for training in list(running) if forward else list(reversed(running)):
            if drawing:
                restore_random_state(states[training])
            if next(running[training], None) is None:
                del running[training]
            if drawing:
                states[training] = random_state()
        forward = not forward


def _draws(config: TrainConfig) -> bool:
    return config.dropout > 0 or config.stochastic_depth > 0 or ":" in config.model


def _work(path: Path, watch: Watch | None, threads: int | None) -> bool:
    plan, watch = read_plan(path), watch or Watch()
    fabric = make_fabric(plan.base)
    loaded: dict[str, Dataset] = {}
    with asking_to_stop(insist=fabric.world_size == 1) as asked:
        for group in plan.groups:
            waiting = [cell for cell in group if cell in missing(plan, path)]
            with _taken(waiting if fabric.is_global_zero else [], path) as takes:
                # All processes of a distributed training go through the same cells.
                begun = gathered(fabric, {name: _begun(path / CELLS / name) for name in takes})[0]
                cells = [(cell, begun[cell.name]) for cell in group if cell.name in begun]

                def stop() -> bool:
                    return asked() or any(one.lost for one in takes.values())  # used in this turn only

                if cells and not _train(cells, path, watch, loaded, threads, stop):
                    return False
    return True


@contextlib.contextmanager
def _taken(cells: Sequence[Cell], path: Path) -> Iterator[dict[str, Take]]:
    """Take cells by name, for the block; none when another process holds the first, so that a group stays together."""
    with contextlib.ExitStack() as held:
        takes: dict[str, Take] = {}
        for cell in cells:
            mine = take(cell.directory(path))
            if mine is None:
                if not takes:
                    break
                continue
            held.enter_context(mine)
            if not is_done(cell.directory(path)):  # another process may have finished it meanwhile
                takes[cell.name] = mine
        yield takes


def _begun(directory: Path) -> bool:
    """Tell a run that can be resumed from a new directory, and from what a killed process left, which is removed."""
    if (directory / "config.json").is_file():
        return True
    shutil.rmtree(directory)
    directory.mkdir()
    return False


def _train(
    cells: Sequence[tuple[Cell, bool]],
    path: Path,
    watch: Watch,
    loaded: dict[str, Dataset],
    threads: int | None,
    stop: Callable[[], bool],
) -> bool:
    """Train cells in turns; those that had begun are resumed."""
    first = cells[0][0].config
    with process_settings(replace(first, threads=first.threads or threads)):
        trainings = {}
        for cell, begun in cells:
            directory = cell.directory(path)
            config = replace(cell.config, out=directory, threads=cell.config.threads or threads)
            trainings[cell.name] = Training(
                config,
                resume=directory if begun else None,
                dataset=_data(config, loaded),
                talk=Talk(progress=partial(watch.progress, cell)),
                asked_to_stop=stop,
            )
        take_turns(list(trainings.values()))
    for cell, _ in cells:
        watch.ended(cell, trainings[cell.name].outcome)
    return all(training.outcome.status != "interrupted" for training in trainings.values())


def _data(config: TrainConfig, loaded: dict[str, Dataset]) -> Dataset:
    key = repr((config.data, config.data_dir, config.validation, config.split_seed, config.image_size))
    if key not in loaded:
        loaded[key] = load_data(config)
    return loaded[key]
