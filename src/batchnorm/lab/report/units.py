"""The inputs to the units of the last hidden layer over training, and the unit that is shown alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.experiments.study import Arm, Study, seed_of, settings_of
from batchnorm.lab.recording import TrainRun
from batchnorm.lab.rules import drift, settled_step

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """One run: (T,) steps, and (T, 3, U) percentiles (15th, 50th, 85th) of the inputs to U units."""

    steps: Floats
    percentiles: Floats


@dataclass(frozen=True)
class Units:
    """What is shown of the units.

    Attributes
    ----------
    unit, units : int
        The unit that is shown alone, and how many there are.
    first : int
        The step from which evaluations count.
    seen : dict of int to Seen
        One run of each group, by the index of the group.
    chosen_by, where : str
        The group that chose the unit; the seed and the tuned value, in words.
    """

    unit: int
    units: int
    first: int
    seen: dict[int, Seen]
    chosen_by: str
    where: str


def read_units(study: Study, shown: Sequence[Arm]) -> Units | None:
    """Read the units of one run of each group, and choose the one to show by rule, not by eye.

    The rule: the unit whose drift is the (lower) median of all units in the baseline's first run. All groups are shown
    at the tuned value at which the baseline is best, so that the normalization is the only difference; a group without
    a run there is shown at its own best.

    Parameters
    ----------
    study : Study
        The runs.
    shown : sequence of Arm
        The arm that stands for each group.

    Returns
    -------
    Units or None
        None when no run recorded any.
    """
    value = next((value for value, arm in study.groups[0].arms.items() if arm is shown[0]), 0.0)
    momentum = float(settings_of(shown[0].runs[0]).get("norm_momentum") or 0.0)
    first = settled_step(momentum)
    seen: dict[int, Seen] = {}
    seed = None
    for index, group in enumerate(study.groups):
        arm = group.arms.get(value, shown[index])
        for run in (*arm.basis, *arm.others):
            found = _read(run, first)
            if found is not None and (seed is None or seed_of(run) == seed):
                seed, seen[index] = seed_of(run), found
                break
    if not seen:
        return None
    chooser = min(seen)
    travelled = drift(seen[chooser].percentiles[:, 1])
    unit = int(np.argsort(travelled, kind="stable")[(len(travelled) - 1) // 2])
    tuned = f", {study.tuned} {value:g}" if study.tuned else ""
    same = {index: one for index, one in seen.items() if one.percentiles.shape[2] == len(travelled)}
    return Units(unit, len(travelled), first, same, study.groups[chooser].name, f" (seed {seed}{tuned})")


def _read(run: TrainRun, first: int) -> Seen | None:
    """Read the finite evaluations from step ``first`` on; from step 1 on where that leaves fewer than two."""
    rows = []
    for record in run.of_probe("units"):
        last = list(record["layers"].values())[-1]
        values = np.array([last.get(name) for name in ("p15", "p50", "p85")], dtype=np.float64)
        if values.ndim == 2 and np.isfinite(values).all():
            rows.append((record["step"], values))
    for least in (first, 1):
        kept = [row for row in rows if row[0] >= least]
        if len(kept) > 1:
            return Seen(np.array([step for step, _ in kept], dtype=np.float64), np.stack([one for _, one in kept]))
    return None
