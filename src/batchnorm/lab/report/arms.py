"""Which runs belong together: those that differ in nothing but the seed are one arm."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchnorm.lab.errors import OutputError
from batchnorm.lab.page import text
from batchnorm.lab.recording import TrainRun, read_train_run

#: Settings about what is written and looked at, not about what is trained: they do not make another arm.
NOT_COMPARED = frozenset({
    "seed", "out", "data_dir", "tensorboard", "log_every", "evaluate_every", "checkpoint_every", "probe_every",
    "probes", "train_subset",
})  # fmt: skip
#: Settings that say most about an arm; the others follow in the order of the config.
FIRST = ("data", "model", "norm", "optimizer", "lr", "batch_size")
#: A name holds this many settings at most; the table of settings holds them all.
NAMED = 4


@dataclass(frozen=True)
class Arm:
    """Runs of the same settings, one for each seed.

    Attributes
    ----------
    name : str
        The settings in which it differs from the other arms, as ``norm=batch, lr=0.1``; alone: what was trained.
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
        for statuses in ({"finished"}, {"interrupted"}):
            if runs := tuple(run for run in self.runs if run.status in statuses and run.metrics):
                return runs
        return self.runs

    @property
    def others(self) -> tuple[TrainRun, ...]:
        """The runs that no mean contains: shown one by one."""
        return tuple(run for run in self.runs if run not in self.basis)


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


def read_arms(paths: Sequence[Path]) -> list[Arm]:
    """Read run directories and group them.

    Parameters
    ----------
    paths : sequence of Path
        Run directories of ``batchnorm train``.

    Returns
    -------
    list of Arm
        Those without normalization first, as what the others are measured against; else in the order given.

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
    runs = [read_train_run(path) for path in paths]
    differing = _differing(runs)
    groups: dict[str, list[TrainRun]] = {}
    for run in runs:
        groups.setdefault(_key(run), []).append(run)
    members = sorted(groups.values(), key=lambda group: settings_of(group[0]).get("norm") != "none")
    names = _names(members, differing)
    arms = [
        Arm(
            name,
            {key: settings_of(group[0]).get(key) for key in differing},
            tuple(sorted(group, key=lambda run: str(seed_of(run)).zfill(12))),
        )
        for name, group in zip(names, members, strict=True)
    ]
    _check_common(arms)
    return arms


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


def _key(run: TrainRun) -> str:
    kept = {key: value for key, value in settings_of(run).items() if key not in NOT_COMPARED}
    return json.dumps(kept, sort_keys=True)


def _differing(runs: Sequence[TrainRun]) -> list[str]:
    keys = dict.fromkeys([*FIRST, *(key for run in runs for key in settings_of(run))])
    return [
        key
        for key in keys
        if key not in NOT_COMPARED and len({json.dumps(settings_of(run).get(key)) for run in runs}) > 1
    ]


def _names(groups: Sequence[Sequence[TrainRun]], differing: Sequence[str]) -> list[str]:
    if not differing:
        settings = settings_of(groups[0][0])
        parts = [text(settings.get("model", "network")), *([f"norm={settings['norm']}"] if "norm" in settings else [])]
        return [", ".join(parts)]

    def name(group: Sequence[TrainRun], keys: Sequence[str]) -> str:
        return ", ".join(f"{key}={text(settings_of(group[0]).get(key))}" for key in keys)

    shown = list(differing[:NAMED])
    for key in differing[NAMED:]:
        now = {name(group, shown) for group in groups}
        if len(now) < len({name(group, [*shown, key]) for group in groups}):
            shown.append(key)
    left = len(differing) - len(shown)
    more = f" and {left} more" if left else ""
    return [name(group, shown) + more for group in groups]
