"""The numbers of a run, computed once: the terminal, summary.json and the page only present them.

Words used here. An *arm* is the network with one choice of normalization: "none" or "batch". A *trial* is one arm at
one learning rate with one seed. A *pair* is the two arms' trials of one seed. Every rule that chooses something (which
learning rate is best, which unit is shown, which trials count) is written in the docstring of the function that applies
it, and is the same for both arms.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.compare.artefacts import Run, Trial
from batchnorm.lab.compare.comparison import Comparison, compare, final_accuracy, mean, median
from batchnorm.lab.files import write_json

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A quantity over training steps, over the seeds of one arm at one learning rate: mean, and the band min to max."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class ArmSummary:
    """One arm at one learning rate.

    ``basis`` says which trials the numbers are from: the finished ones; if there are none, the interrupted ones as far
    as they got; if there are none, the diverged ones (then there is no final accuracy). None stands for "no such
    number". Over seeds, accuracy and saturated shares are means, drift and spread are medians.
    """

    norm: str
    lr: float
    trials: int
    finished: int
    interrupted: int
    diverged: int
    reasons: list[str]
    basis: str
    seeds: list[int]
    last_step: int
    accuracy_mean: float | None
    accuracy_std: float | None
    loss_mean: float | None
    drift: float | None
    spread: float | None
    drift_per_spread: float | None
    saturated_end: list[float]
    step_seconds: float | None
    accuracy: Curve
    saturated: list[Curve]


@dataclass(frozen=True)
class Timing:
    """Seconds per training step: median per arm over all intervals between evaluations, and the paired ratio."""

    seconds: dict[str, float]
    intervals: dict[str, int]
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


@dataclass(frozen=True)
class Shown:
    """The unit of the last hidden layer that the figure shows alone, and the trials in which it is shown."""

    unit: int
    units: int
    seed: int
    lr: dict[str, float]
    rule: str


@dataclass(frozen=True)
class Summary:
    """All numbers of a run; ``time_ratio`` is the best comparison's ratio over the ratio of seconds per step."""

    status: str
    steps: int
    chance: float
    grid: list[int]
    arms: list[ArmSummary]
    best_lr: dict[str, float | None]
    matched: list[Comparison]
    best: Comparison | None
    timing: Timing
    time_ratio: float | None
    settled_step: int
    shown: Shown | None

    def arm(self, norm: str, lr: float | None) -> ArmSummary | None:
        """Find one arm at one learning rate, if it was run."""
        return next((arm for arm in self.arms if (arm.norm, arm.lr) == (norm, lr)), None)

    def write(self, path: Path) -> None:
        """Write summary.json; what is not a number is null."""
        write_json(path, asdict(self))


def summarize(run: Run) -> Summary:
    """Compute every number that is shown anywhere.

    Parameters
    ----------
    run : Run
        A run directory as read by :func:`batchnorm.lab.compare.artefacts.read_run`.

    Returns
    -------
    Summary
    """
    chance = 1 / int(run.config["data"]["classes"])
    first = settled_step(run)
    arms = [
        _summarize_arm(trials, first)
        for trials in _group(run.trials, key=lambda trial: (trial.norm, trial.lr))
        if any(trial.steps.size for trial in trials) or any(trial.status == "diverged" for trial in trials)
    ]
    best_lr = {norm: best_learning_rate(arms, norm) for norm in dict.fromkeys(arm.norm for arm in arms)}
    rates = sorted({arm.lr for arm in arms})
    matched = [c for lr in rates if (c := compare("matched", run.trials, lr, lr, chance)) is not None]
    none_lr, batch_lr = best_lr.get("none"), best_lr.get("batch")
    best = None
    if none_lr is not None and batch_lr is not None:
        best = compare("best", run.trials, none_lr, batch_lr, chance)
    gaps = [np.diff(trial.steps) for trial in run.trials if trial.steps.size > 1]
    grid = sorted({int(gap) for gap in np.concatenate(gaps)}) if gaps else []
    timing = _time(run.trials)
    return Summary(
        status=run.status,
        steps=int(run.config["config"].get("steps", max((trial.step for trial in run.trials), default=0))),
        chance=chance,
        grid=grid[:1] + grid[-1:] if len(grid) > 1 else grid,
        arms=arms,
        best_lr=best_lr,
        matched=matched,
        best=best,
        timing=timing,
        time_ratio=best.ratio / timing.ratio if best and best.ratio and timing.ratio else None,
        settled_step=first,
        shown=_choose_unit(run.trials, best_lr, first),
    )


def best_learning_rate(arms: Sequence[ArmSummary], norm: str) -> float | None:
    """Choose an arm's best learning rate: highest mean final accuracy, then lower mean final loss, then lower rate.

    A rate at which any trial diverged is not eligible. Rates with finished trials come before interrupted ones.

    Parameters
    ----------
    arms : sequence of ArmSummary
        All arms at all learning rates.
    norm : str
        The arm to choose for.

    Returns
    -------
    float or None
        None when no rate is eligible.
    """
    eligible = [a for a in arms if a.norm == norm and not a.diverged and a.accuracy_mean is not None]
    finished = [a for a in eligible if a.basis == "finished"]
    best = min(finished or eligible, key=_rank, default=None)
    return None if best is None else best.lr


def _rank(arm: ArmSummary) -> tuple[float, float, float]:
    accuracy, loss = arm.accuracy_mean, arm.loss_mean
    return (-(accuracy if accuracy is not None else -1.0), loss if loss is not None else np.inf, arm.lr)


def _summarize_arm(trials: Sequence[Trial], first: int) -> ArmSummary:
    count = {status: sum(t.status == status for t in trials) for status in ("finished", "interrupted", "diverged")}
    recorded = [t for t in trials if t.steps.size]
    basis = next((s for s in count if any(t.status == s for t in recorded)), "diverged")
    counted = [t for t in recorded if t.status == basis]
    finals = [final for t in counted if (final := final_accuracy(t)) is not None]
    drifts = [drift_and_spread(t, first) for t in counted]
    layers = min((t.saturated.shape[1] for t in counted), default=0)
    return ArmSummary(
        norm=trials[0].norm,
        lr=trials[0].lr,
        trials=len(trials),
        **count,
        reasons=[f"seed {t.seed}: {t.reason}" for t in trials if t.reason],
        basis=basis,
        seeds=[t.seed for t in counted],
        last_step=max((t.step for t in trials), default=0),
        accuracy_mean=mean(finals),
        accuracy_std=float(np.std(finals, ddof=1)) if len(finals) > 1 else None,
        loss_mean=mean([float(t.test_loss[-1]) for t in counted if final_accuracy(t) is not None]),
        drift=median([median(drift) for drift, _ in drifts]),
        spread=median([median(spread) for _, spread in drifts]),
        drift_per_spread=median([median(drift[spread > 0] / spread[spread > 0]) for drift, spread in drifts]),
        saturated_end=[
            m for k in range(layers) if (m := mean([float(t.saturated[-1, k]) for t in counted])) is not None
        ],
        step_seconds=median(np.concatenate([t.step_seconds for t in counted]) if counted else []),
        accuracy=_curve([(t.steps, t.test_accuracy) for t in counted]),
        saturated=[_curve([(t.steps, t.saturated[:, k]) for t in counted]) for k in range(layers)],
    )


def settled_step(run: Run) -> int:
    """Find the step from which percentiles count, in both arms alike.

    In evaluation mode BN uses running statistics. They start at mean 0 and variance 1, of which a share of
    (1 - momentum)**step is left: percentiles count once that is below 1% (step 44 for momentum 0.1). A run too short to
    have two evaluations after that counts them from step 1.

    Parameters
    ----------
    run : Run
        A run directory.

    Returns
    -------
    int
    """
    momentum = run.config["config"].get("momentum")
    if momentum is None or not 0 < momentum < 1:
        return 1
    step = int(np.ceil(np.log(0.01) / np.log1p(-momentum)))
    return step if any((trial.steps >= step).sum() > 1 for trial in run.trials) else 1


def settled(trial: Trial, first: int) -> NDArray[np.bool_]:
    """Mark the evaluations whose percentiles count: from step ``first`` on, and finite.

    Parameters
    ----------
    trial : Trial
        A trial.
    first : int
        As found by :func:`settled_step`.

    Returns
    -------
    ndarray of shape (T,), dtype=bool
    """
    kept: NDArray[np.bool_] = (trial.steps >= first) & np.isfinite(trial.percentiles).all(axis=(1, 2))
    return kept


def drift_and_spread(trial: Trial, first: int) -> tuple[Floats, Floats]:
    """Per unit of the last hidden layer: how far the median of its input travelled, and how wide its input was.

    Parameters
    ----------
    trial : Trial
        A trial.
    first : int
        The step from which percentiles count.

    Returns
    -------
    drift : ndarray of shape (U,), dtype=np.float64
        Sum over evaluations of the absolute change of the 50th percentile. Empty with fewer than two evaluations.
    spread : ndarray of shape (U,), dtype=np.float64
        Mean over evaluations of the 85th minus the 15th percentile. Empty likewise.
    """
    q15, q50, q85 = np.moveaxis(trial.percentiles[settled(trial, first)], 1, 0)  # each (T, U)
    if len(q50) < 2:
        return np.empty(0), np.empty(0)
    return np.abs(np.diff(q50, axis=0)).sum(axis=0), (q85 - q15).mean(axis=0)


def _choose_unit(trials: Sequence[Trial], best_lr: dict[str, float | None], first: int) -> Shown | None:
    """Choose by rule, not by eye: the unit whose drift is the (lower) median of all units in the none arm's first seed.

    Both arms are shown at the none arm's best learning rate, so that BN is the only difference; where an arm has no
    trial there, at its own best, else at its first. Without a none arm, the batch arm chooses.
    """
    rule_norm, chosen = None, {}
    for norm in sorted(best_lr, key=lambda norm: norm != "none"):
        usable = [t for t in trials if t.norm == norm and drift_and_spread(t, first)[0].size]
        if not usable:
            continue
        wanted = [chosen[rule_norm].lr if rule_norm else None, best_lr[norm]]
        usable.sort(
            key=lambda t: (*(t.lr != lr for lr in wanted if lr is not None), t.status == "diverged", t.lr, t.seed)
        )
        rule_norm, chosen[norm] = rule_norm or norm, usable[0]
    if rule_norm is None:
        return None
    drift, _ = drift_and_spread(chosen[rule_norm], first)
    return Shown(
        unit=int(np.argsort(drift, kind="stable")[(len(drift) - 1) // 2]),
        units=len(drift),
        seed=chosen[rule_norm].seed,
        lr={norm: trial.lr for norm, trial in chosen.items()},
        rule=f"the one with the median drift among all units of the arm '{rule_norm}'",
    )


def _time(trials: Sequence[Trial]) -> Timing:
    """Median over intervals, rates and seeds; the ratio pairs intervals of the same rate, seed and step."""
    seconds: dict[tuple[str, float, int, int], float] = {}
    for t in trials:
        for step, value in zip(t.steps.tolist(), t.step_seconds.tolist(), strict=True):
            if np.isfinite(value) and value > 0:
                seconds[t.norm, t.lr, t.seed, step] = value
    per_arm: dict[str, list[float]] = {}
    for (norm, *_), value in seconds.items():
        per_arm.setdefault(norm, []).append(value)
    ratios = [
        value / seconds["none", lr, seed, step]
        for (norm, lr, seed, step), value in seconds.items()
        if norm == "batch" and ("none", lr, seed, step) in seconds
    ]
    low, high = (float(q) for q in np.quantile(ratios, [0.25, 0.75])) if ratios else (None, None)
    return Timing(
        seconds={norm: float(np.median(values)) for norm, values in per_arm.items()},
        intervals={norm: len(values) for norm, values in per_arm.items()},
        ratio=median(ratios),
        ratio_low=low,
        ratio_high=high,
    )


def _curve(series: Sequence[tuple[NDArray[np.int64], Floats]]) -> Curve:
    values: dict[int, list[float]] = {}
    for steps, quantity in series:
        for step, value in zip(steps.tolist(), quantity.tolist(), strict=True):
            if np.isfinite(value):
                values.setdefault(step, []).append(value)
    steps_seen = sorted(values)
    return Curve(
        steps=steps_seen,
        mean=[float(np.mean(values[step])) for step in steps_seen],
        low=[min(values[step]) for step in steps_seen],
        high=[max(values[step]) for step in steps_seen],
    )


def _group(trials: Iterable[Trial], key: Any) -> list[list[Trial]]:
    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(key(trial), []).append(trial)
    return list(groups.values())
