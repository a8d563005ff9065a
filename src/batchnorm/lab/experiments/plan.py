"""A plan: a base configuration, axes, an interleaving, and the rule that decides; fixed before anything runs.

A plan lives in a directory::

    config.json         {"format", "kind": "plan" or "claim", "command"}
    plan.json           the plan
    environment.json    versions, machine, threads
    cells/<name>/       one run directory of ``batchnorm train`` for each cell
    takes/<name>.json   who is training a cell now

Nothing here imports torch.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from batchnorm.lab.errors import LabError, OutputError
from batchnorm.lab.files import jsonable, make_run_directory, read_mapping, write_json
from batchnorm.lab.recording import FORMAT, is_done
from batchnorm.lab.rules import MARKS
from batchnorm.lab.training.config import TrainConfig
from batchnorm.lab.training.settings import from_mapping, nearest

PLAN = "plan.json"
CELLS = "cells"

#: The settings of one value of an axis, by the label that names it.
Axis = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One training run of a plan.

    Attributes
    ----------
    name : str
        Of its directory: the labels of all axes. It stays the same when the plan is run again.
    labels : dict of str to str
        Label by axis.
    config : TrainConfig
        What is trained.
    """

    name: str
    labels: dict[str, str]
    config: TrainConfig

    def directory(self, path: Path) -> Path:
        """Return the run directory of the cell in the plan directory ``path``."""
        return path / CELLS / self.name


@dataclass(frozen=True)
class Plan:
    """An experiment.

    Parameters
    ----------
    question : str
        What is asked, in one sentence.
    base : TrainConfig
        Settings of every cell.
    axes : mapping
        What varies: by name of the axis, the settings of each of its values by label. See :func:`vary`.
    rule : str
        What decides, in one sentence; stored before the first cell runs.
    interleave : tuple of str
        Cells that differ in these axes alone take turns, step by step.
    tuned : str
        The axis over which every arm counts at its best, such as "lr". Empty: none.
    marks : tuple of float
        Accuracies to which steps are counted.

    Raises
    ------
    LabError
        An axis is empty, names an unknown setting, or is not there to be interleaved or tuned; or a cell has a setting
        that cannot work.
    """

    question: str
    base: TrainConfig
    axes: Mapping[str, Axis]
    rule: str
    interleave: tuple[str, ...] = ()
    tuned: str = ""
    marks: tuple[float, ...] = MARKS
    cells: tuple[Cell, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        known = {one.name for one in fields(TrainConfig)}
        for axis, values in self.axes.items():
            if not values:
                raise LabError(f"the axis {axis} must hold at least one value; got none")
            for unknown in (key for settings in values.values() for key in settings if key not in known):
                raise LabError(f"the axis {axis} varies {unknown!r}, which is no setting; {nearest(unknown, known)}")
        for axis in (*self.interleave, *filter(None, [self.tuned])):
            if axis not in self.axes:
                raise LabError(f"{axis!r} is no axis of the plan; its axes are {', '.join(self.axes)}")
        cells = tuple(self._cell(labels) for labels in self._labels())
        if len({cell.name for cell in cells}) < len(cells):
            raise LabError("each value of an axis must be given once, as each is a cell of its own")
        object.__setattr__(self, "cells", cells)

    @property
    def groups(self) -> list[list[Cell]]:
        """Cells that take turns, in the order in which they run: the first axis is the outer loop."""
        groups: dict[tuple[str, ...], list[Cell]] = {}
        for cell in self.cells:
            key = tuple(label for axis, label in cell.labels.items() if axis not in self.interleave)
            groups.setdefault(key, []).append(cell)
        return list(groups.values())

    def _labels(self) -> list[dict[str, str]]:
        return [dict(zip(self.axes, labels, strict=True)) for labels in itertools.product(*self.axes.values())]

    def _cell(self, labels: dict[str, str]) -> Cell:
        settings: dict[str, Any] = {}
        for axis, label in labels.items():
            settings |= self.axes[axis][label]
        name = ",".join(f"{axis}={_safe(label)}" for axis, label in labels.items()) or "cell"
        return Cell(name, labels, replace(self.base, **settings))

    def described(self) -> dict[str, Any]:
        """Return the plan as plan.json holds it."""
        kept = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in {"cells", "base"}}
        made: dict[str, Any] = jsonable({**kept, "base": asdict(self.base)})
        return made


def vary(setting: str, values: Sequence[Any]) -> Axis:
    """Return the axis of one setting: a value each, labelled by itself.

    Parameters
    ----------
    setting : str
        Its name.
    values : sequence
        Its values.

    Returns
    -------
    mapping

    Raises
    ------
    LabError
        A value is given twice.
    """
    axis = {label_of(value): {setting: value} for value in values}
    if len(axis) < len(values):
        raise LabError(f"{setting} must hold each value once, as each is a cell; got {' '.join(map(label_of, values))}")
    return axis


def label_of(value: Any) -> str:
    """Write a value as a label: numbers short, but without loss."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list | tuple):
        return "-".join(map(label_of, value)) or "none"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def store(plan: Plan, path: Path, *, head: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Create the directory of a plan, or find the same plan in it.

    Parameters
    ----------
    plan : Plan
        The plan.
    path : Path
        New, empty, or the directory of this plan.
    head : mapping
        Of config.json: the command that repeats it, and for another kind than "plan" what that needs.
    environment : mapping
        Versions and machine.

    Raises
    ------
    OutputError
        The directory holds another plan or something else, or cannot be written.
    """
    if (path / PLAN).is_file():
        before, now = read_mapping(path / PLAN), plan.described()
        if changed := [key for key in now if before.get(key) != now[key]]:
            raise OutputError(
                f"{path} holds another plan: {'; '.join(_change(key, before.get(key), now[key]) for key in changed)}; "
                "give --out another directory, or the settings with which it began"
            )
        return
    make_run_directory(path)
    (path / CELLS).mkdir()
    write_json(path / "environment.json", environment)
    write_json(path / "config.json", {"format": FORMAT, "kind": "plan", **head})
    # Last, because it makes the directory a plan.
    write_json(path / PLAN, plan.described())


def read_plan(path: Path) -> Plan:
    """Read the plan of a directory.

    Parameters
    ----------
    path : Path
        The directory.

    Returns
    -------
    Plan

    Raises
    ------
    OutputError
        There is none, or it is damaged.
    LabError
        It was written by a version with other settings.
    """
    file = path / PLAN
    if not file.is_file():
        raise OutputError(f"{path} holds no {PLAN}; give the directory of a plan, as `batchnorm compare` printed it")
    made = read_mapping(file, require=("question", "base", "axes", "rule", "interleave", "tuned", "marks"))
    return Plan(
        question=made["question"],
        base=from_mapping(made["base"], str(file)),
        axes={
            axis: {label: {key: _tuple(value) for key, value in settings.items()} for label, settings in values.items()}
            for axis, values in made["axes"].items()
        },
        rule=made["rule"],
        interleave=tuple(made["interleave"]),
        tuned=made["tuned"],
        marks=tuple(made["marks"]),
    )


def missing(plan: Plan, path: Path) -> list[Cell]:
    """Return the cells that have not come to an end: finished and diverged ones have."""
    return [cell for cell in plan.cells if not is_done(cell.directory(path))]


def _change(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return ", ".join(f"{name} (was {_short(before.get(name))}, now {_short(now.get(name))})" for name in differing)
    return f"{key} (was {_short(before)}, now {_short(now)})"


def _short(value: Any) -> str:
    return " ".join(value) if isinstance(value, dict) else str(value)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _safe(label: str) -> str:
    """Write a label as a part of a file name; one that loses something gets a digest, to stay distinct."""
    safe = re.sub(r"[^A-Za-z0-9.+_-]+", ".", label).strip(".")[:60]
    return safe if safe == label else f"{safe}~{hashlib.sha256(label.encode()).hexdigest()[:6]}"
