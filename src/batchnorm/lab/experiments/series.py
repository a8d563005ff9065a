"""Curves: what the runs of an arm recorded, on one grid of steps, and no longer than a page can hold."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.experiments.study import Arm, seed_of
from batchnorm.lab.recording import Record, TrainRun
from batchnorm.lab.rules import drift

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Track:
    """One quantity of one run: (T,) steps that increase, epochs, seconds and values, of which some may be NaN."""

    steps: Floats
    epochs: Floats
    seconds: Floats
    values: Floats


@dataclass(frozen=True)
class Series:
    """One quantity of one arm at (T,) steps: the mean over its runs, and the lowest and the highest of them.

    Attributes
    ----------
    steps, epochs, seconds : ndarray of shape (T,), dtype=np.float64
        Where; epochs and seconds are means over the runs.
    mean, low, high : ndarray of shape (T,), dtype=np.float64
        NaN where no run has a value.
    runs : ndarray of shape (T,), dtype=np.int64
        How many runs have one.
    """

    steps: Floats
    epochs: Floats
    seconds: Floats
    mean: Floats
    low: Floats
    high: Floats
    runs: NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """One run: (T,) steps, and (T, 3, U) percentiles (15th, 50th, 85th) of the inputs to U units."""

    steps: Floats
    percentiles: Floats


@dataclass(frozen=True)
class Lost:
    """One run that no mean contains: its arm, what happened to it, and its own curve."""

    arm: int
    what: str
    track: Track


@dataclass(frozen=True)
class Quantity:
    """One quantity of all arms: by index of the arm, the curves of those that have it."""

    label: str
    series: dict[int, Series]
    lost: list[Lost]


def number(value: Any) -> float:
    """Read a recorded value; NaN for everything that is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan


def track(records: Iterable[Record], value: Callable[[Record], Any]) -> Track:
    """Take one quantity out of records; of several records of one step the last counts.

    Parameters
    ----------
    records : iterable of dict
        Lines of metrics.jsonl or probes.jsonl.
    value : callable
        Takes the quantity out of a record.

    Returns
    -------
    Track
        Without the records before the first and after the last that have it.
    """
    by_step = {
        number(record["step"]): (number(record.get("epoch")), number(record.get("seconds")), number(value(record)))
        for record in records
    }
    rows = np.array([(step, *by_step[step]) for step in sorted(by_step)], dtype=np.float64).reshape(-1, 4)
    known = np.flatnonzero(np.isfinite(rows[:, 3]))
    rows = rows[known[0] : known[-1] + 1] if known.size else rows[:0]
    return Track(*np.ascontiguousarray(rows.T))


def timed(own: Track, run: TrainRun) -> Track:
    """Give a track the seconds that it lacks, as probes record none: those of the run's metrics at its steps."""
    if np.isfinite(own.seconds).any():
        return own
    clock = track(run.metrics, lambda record: record.get("seconds"))
    if not (clock.steps.size and own.steps.size):
        return own
    return replace(own, seconds=np.interp(own.steps, clock.steps, clock.values))


def combine(tracks: Sequence[Track]) -> Series | None:
    """Put the tracks of an arm's runs on one grid of steps.

    Parameters
    ----------
    tracks : sequence of Track
        One for each run; those that are empty do not count.

    Returns
    -------
    Series or None
        On the steps of all runs together. A run is interpolated between two of its own steps, and has no value before
        its first, after its last, and beside a NaN. None when no track holds anything.
    """
    tracks = [one for one in tracks if one.steps.size]
    if not tracks:
        return None
    steps = np.unique(np.concatenate([one.steps for one in tracks]))
    values = np.stack([_at(steps, one.steps, one.values) for one in tracks])
    runs = np.isfinite(values).sum(0)
    filled = np.where(np.isfinite(values), values, 0.0)
    mean = np.divide(filled.sum(0), runs, out=np.full(steps.size, np.nan), where=runs > 0)
    low = np.where(runs > 0, np.where(np.isfinite(values), values, np.inf).min(0), np.nan)
    high = np.where(runs > 0, np.where(np.isfinite(values), values, -np.inf).max(0), np.nan)
    epochs = _mean([_at(steps, one.steps, one.epochs) for one in tracks])
    seconds = _mean([_at(steps, one.steps, one.seconds) for one in tracks])
    return Series(steps, epochs, seconds, mean, low, high, runs)


def thin(series: Series, points: int) -> Series:
    """Take points out of a long series, but none of its extremes, and no gap.

    Parameters
    ----------
    series : Series
        Of any length.
    points : int
        About how many are kept.

    Returns
    -------
    Series
        The first point, the last, and of each stretch between them the lowest ``low``, the highest ``high`` and the
        first NaN.
    """
    size = series.steps.size
    if size <= points:
        return series
    kept = {0, size - 1}
    for stretch in np.array_split(np.arange(size), max(1, points // 2)):
        low, high = series.low[stretch], series.high[stretch]
        gaps = np.flatnonzero(np.isnan(low))
        if gaps.size < stretch.size:
            kept |= {int(stretch[np.nanargmin(low)]), int(stretch[np.nanargmax(high)])}
        if gaps.size:
            kept.add(int(stretch[gaps[0]]))
    index = np.array(sorted(kept))
    return Series(*(getattr(series, name)[index] for name in Series.__dataclass_fields__))


def mean_over_layers(record: Record, key: str) -> float:
    """Return the mean of a quantity of a probe over the layers that have it; NaN where none has."""
    found = [number(layer.get(key)) for layer in record["layers"].values()]
    found = [one for one in found if np.isfinite(one)]
    return float(np.mean(found)) if found else np.nan


def behind_first(record: Record) -> Record:
    """Return a record of a probe without its first layer, in front of which nothing moves."""
    return {**record, "layers": dict(list(record["layers"].items())[1:])}


def quantity(
    arms: Sequence[Arm | None],
    label: str,
    records: Callable[[TrainRun], Iterable[Record]],
    value: Callable[[Record], Any],
) -> Quantity | None:
    """Make the curves of one quantity, for all arms.

    Parameters
    ----------
    arms : sequence of (Arm or None)
        The arms; None leaves its place empty.
    label : str
        What the quantity is called beside its siblings.
    records : callable
        Gives the records of a run that may hold it.
    value : callable
        Takes it out of a record.

    Returns
    -------
    Quantity or None
        None when no run has it.
    """
    series = {
        index: made
        for index, arm in enumerate(arms)
        if arm is not None
        and (made := combine([timed(track(records(run), value), run) for run in arm.basis])) is not None
    }
    lost = [
        Lost(index, f"seed {seed_of(run)}, {run.status}", timed(own, run))
        for index, arm in enumerate(arms)
        for run in (arm.others if arm is not None else ())
        if (own := track(records(run), value)).steps.size
    ]
    return Quantity(label, series, lost) if series or lost else None


def read_unit_inputs(run: TrainRun, first: int) -> Seen | None:
    """Read what a run with ``units`` recorded of its last hidden layer.

    Parameters
    ----------
    run : TrainRun
        The run.
    first : int
        The step from which evaluations count; 1 where that leaves fewer than two.

    Returns
    -------
    Seen or None
        The finite evaluations; None when there are fewer than two.
    """
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


def chosen_unit(seen: Seen) -> int:
    """Return the unit that is shown alone: the one whose drift is the (lower) median of all."""
    travelled = drift(seen.percentiles[:, 1])
    return int(np.argsort(travelled, kind="stable")[(len(travelled) - 1) // 2])


def _at(grid: Floats, steps: Floats, values: Floats) -> Floats:
    found: Floats = np.interp(grid, steps, values, left=np.nan, right=np.nan)
    # Exactly at a step stands what was recorded, also next to a NaN, where the line between has no value.
    found[np.searchsorted(grid, steps)] = values
    return found


def _mean(rows: Sequence[Floats]) -> Floats:
    stacked = np.stack(rows)
    known = np.isfinite(stacked).sum(0)
    mean: Floats = np.full(stacked.shape[1], np.nan)
    np.divide(np.where(np.isfinite(stacked), stacked, 0.0).sum(0), known, out=mean, where=known > 0)
    return mean
