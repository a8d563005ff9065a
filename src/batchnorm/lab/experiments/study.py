"""Which runs belong together: a study is one directory of any kind, or several runs, read into arms.

Runs that differ in nothing but the seed are one arm. Where a plan tunes an axis, such as the learning rate, the arms
that differ in it alone are one group, which counts at its best.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchnorm.lab.errors import OutputError
from batchnorm.lab.experiments.plan import Plan, read_plan
from batchnorm.lab.files import read_mapping
from batchnorm.lab.recording import TrainRun, kind_of, read_train_run
from batchnorm.lab.wording import text

#: Settings about what is written and looked at, not about what is trained: they do not make another arm.
NOT_COMPARED = frozenset({
    "seed", "out", "data_dir", "tensorboard", "log_every", "evaluate_every", "evaluate_early", "checkpoint_every",
    "probe_every", "probes", "units", "train_subset", "threads", "tune_allocator",
})  # fmt: skip
#: Settings that say most about an arm; the others follow in the order of the config.
FIRST = ("data", "model", "norm", "optimizer", "lr", "batch_size")
#: A name holds this many settings at most; the table of settings holds them all.
NAMED = 4
NORMS = {
    "none": "no normalization", "batch": "batch norm", "torch": "torch's batch norm", "group": "group norm",
    "layer": "layer norm", "instance": "instance norm", "own": "a normalization of its own",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """Runs of the same settings, one for each seed.

    Attributes
    ----------
    name : str
        The settings in which it differs from the other arms, in words; alone: what was trained.
    settings : dict of str to object
        The settings in which the arms differ.
    runs : tuple of TrainRun
        In the order of their seeds.
    """

    name: str
    settings: dict[str, Any]
    runs: tuple[TrainRun, ...]

    @property
    def basis(self) -> tuple[TrainRun, ...]:
        """The runs that means are over: the finished ones; none finished: the interrupted ones; else all."""
        for status in ("finished", "interrupted"):
            if runs := tuple(run for run in self.runs if run.status == status and run.metrics):
                return runs
        return self.runs

    @property
    def others(self) -> tuple[TrainRun, ...]:
        """The runs that no mean contains: shown one by one."""
        return tuple(run for run in self.runs if run not in self.basis)


@dataclass(frozen=True)
class Group:
    """One choice of what is compared: an arm for each value of the tuned axis, in the order of the axis.

    Attributes
    ----------
    name : str
        What is compared, in words, without the tuned axis.
    arms : dict of float to Arm
        By value of the tuned axis; one arm at 0.0 where nothing is tuned.
    """

    name: str
    arms: Mapping[float, Arm]


@dataclass(frozen=True)
class Study:
    """What a page is about.

    Attributes
    ----------
    groups : list of Group
        The first is the baseline.
    compared : list of str
        The settings in which groups differ.
    tuned : str
        The axis over which groups count at their best; empty: none.
    plan : Plan or None
        None: runs that were given one by one.
    config : dict
        config.json of the plan; empty for runs.
    absent : int
        Cells of the plan that were not begun.
    """

    groups: list[Group]
    compared: list[str]
    tuned: str = ""
    plan: Plan | None = None
    config: Mapping[str, Any] | None = None
    absent: int = 0

    @property
    def arms(self) -> list[Arm]:
        """Every arm, group by group."""
        return [arm for group in self.groups for arm in group.arms.values()]


def settings_of(run: TrainRun) -> dict[str, Any]:
    """Give the resolved settings of a run; model and norm are those of the network, which may be the user's own."""
    settings: dict[str, Any] = run.config["config"]
    network = run.config.get("model", {})
    return {
        **settings,
        **{setting: network[key] for setting, key in (("model", "name"), ("norm", "norm")) if key in network},
    }


def seed_of(run: TrainRun) -> Any:
    """Give the seed of a run; None when its config names none."""
    return settings_of(run).get("seed")


def read_study(paths: Sequence[Path]) -> Study:
    """Read one directory of any kind, or several runs of ``batchnorm train``.

    Parameters
    ----------
    paths : sequence of Path
        A plan, or run directories. Runs without normalization become the baseline; else the first.

    Returns
    -------
    Study

    Raises
    ------
    OutputError
        One of them is not such a directory, is damaged, or is given twice; or two arms recorded nothing in common.
    """
    if not paths:
        raise OutputError("report needs at least one run directory; give the directory that `batchnorm train` printed")
    resolved = [path.resolve() for path in paths]
    for path, real in zip(paths, resolved, strict=True):
        if resolved.count(real) > 1:
            raise OutputError(f"{path} is given twice; give each run directory once")
    if len(paths) == 1 and kind_of(paths[0]) == "plan":
        return read_plan_study(paths[0])
    return _of_runs([read_train_run(path) for path in paths])


def read_plan_study(path: Path) -> Study:
    """Read the cells of a plan that were begun.

    Parameters
    ----------
    path : Path
        A directory with plan.json.

    Returns
    -------
    Study

    Raises
    ------
    OutputError
        It holds no plan or no run yet, or is damaged.
    """
    plan = read_plan(path)
    begun = [cell for cell in plan.cells if (cell.directory(path) / "config.json").is_file()]
    if not begun:
        raise OutputError(f"{path} holds no run yet; run its command again: it goes on with the cells that are missing")
    own = [axis for axis in plan.axes if axis not in {"seed", plan.tuned}]
    found: dict[str, dict[float, list[TrainRun]]] = {}
    for cell in begun:
        run = read_train_run(cell.directory(path))
        name = ", ".join(_words(axis, settings_of(run).get(axis, cell.labels[axis])) for axis in own)
        value = float(settings_of(run)[plan.tuned]) if plan.tuned else 0.0
        found.setdefault(name or _what(run), {}).setdefault(value, []).append(run)
    groups = []
    for name, by_value in found.items():
        arms = {}
        for value in sorted(by_value):
            settings = settings_of(by_value[value][0])
            tuned = [_words(plan.tuned, value)] if plan.tuned else []
            kept = {key: settings.get(key) for key in [*own, *filter(None, [plan.tuned])]}
            arms[value] = Arm(", ".join([name, *tuned]), kept, _by_seed(by_value[value]))
        groups.append(Group(name, arms))
    head = read_mapping(path / "config.json")
    return Study(groups, own, plan.tuned, plan, head, len(plan.cells) - len(begun))


def _of_runs(runs: Sequence[TrainRun]) -> Study:
    differing = _differing(runs)
    found: dict[str, list[TrainRun]] = {}
    for run in runs:
        kept = {key: value for key, value in settings_of(run).items() if key not in NOT_COMPARED}
        found.setdefault(json.dumps(kept, sort_keys=True), []).append(run)
    members = sorted(found.values(), key=lambda group: settings_of(group[0]).get("norm") != "none")
    arms = [
        Arm(name, {key: settings_of(group[0]).get(key) for key in differing}, _by_seed(group))
        for name, group in zip(_names(members, differing), members, strict=True)
    ]
    _check_common(arms)
    return Study([Group(arm.name, {0.0: arm}) for arm in arms], differing)


def _by_seed(runs: Sequence[TrainRun]) -> tuple[TrainRun, ...]:
    return tuple(sorted(runs, key=lambda run: str(seed_of(run)).zfill(12)))


def quantities(run: TrainRun) -> set[tuple[str, str]]:
    """Say what a run recorded: pairs of kind and quantity, as ("test", "accuracy")."""
    return {
        (record["kind"], key)
        for record in run.metrics
        for key, value in record.items()
        if isinstance(value, int | float) and key not in {"step", "epoch", "seconds"}
    }


def _check_common(arms: Sequence[Arm]) -> None:
    recorded = [(arm, found) for arm in arms if (found := set().union(*map(quantities, arm.runs)))]
    for arm, found in recorded[1:]:
        if not found & recorded[0][1]:
            raise OutputError(
                f"{recorded[0][0].runs[0].path} and {arm.runs[0].path} recorded no quantity in common, so there is "
                "nothing to compare; report each alone"
            )


def _differing(runs: Sequence[TrainRun]) -> list[str]:
    keys = dict.fromkeys([*FIRST, *(key for run in runs for key in settings_of(run))])
    return [
        key
        for key in keys
        if key not in NOT_COMPARED and len({json.dumps(settings_of(run).get(key)) for run in runs}) > 1
    ]


def _what(run: TrainRun) -> str:
    settings = settings_of(run)
    parts = [text(settings.get("model", "network"))]
    return ", ".join([*parts, *([_words("norm", settings["norm"])] if "norm" in settings else [])])


def _words(key: str, value: Any) -> str:
    """Write a setting in words: "batch norm", "lr 0.1", "no flip"."""
    if key == "norm":
        return NORMS.get(str(value), text(value))
    if isinstance(value, bool):
        return key.replace("_", " ") if value else f"no {key.replace('_', ' ')}"
    return f"{key.replace('_', ' ')} {text(value)}" if key in {"lr"} or not isinstance(value, str) else text(value)


def _names(groups: Sequence[Sequence[TrainRun]], differing: Sequence[str]) -> list[str]:
    if not differing:
        return [_what(groups[0][0])]

    def name(group: Sequence[TrainRun], keys: Sequence[str]) -> str:
        return ", ".join(_words(key, settings_of(group[0]).get(key)) for key in keys)

    shown = list(differing[:NAMED])
    for key in differing[NAMED:]:
        now = {name(group, shown) for group in groups}
        if len(now) < len({name(group, [*shown, key]) for group in groups}):
            shown.append(key)
    left = len(differing) - len(shown)
    more = f" and {left} more" if left else ""
    return [name(group, shown) + more for group in groups]
