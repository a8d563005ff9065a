"""The inputs to the units of the last hidden layer over training, and the unit that is shown alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from batchnorm.lab.experiments.series import Seen, chosen_unit, read_unit_inputs
from batchnorm.lab.experiments.study import Arm, Study, seed_of, settings_of
from batchnorm.lab.rules import settled_step


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
            found = read_unit_inputs(run, first)
            if found is not None and (seed is None or seed_of(run) == seed):
                seed, seen[index] = seed_of(run), found
                break
    if not seen:
        return None
    chooser = min(seen)
    unit, units = chosen_unit(seen[chooser]), seen[chooser].percentiles.shape[2]
    tuned = f", {study.tuned} {value:g}" if study.tuned else ""
    same = {index: one for index, one in seen.items() if one.percentiles.shape[2] == units}
    return Units(unit, units, first, same, study.groups[chooser].name, f" (seed {seed}{tuned})")
