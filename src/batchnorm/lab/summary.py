"""The numbers of a run, computed once: the terminal, summary.json and the page only present them.

Words used here. An *arm* is the network with one choice of normalization: "none" or "batch". A *trial* is one arm at one
learning rate with one seed. A *pair* is the two arms' trials of one seed. Every rule that chooses something (which learning
rate is best, which unit is shown, which trials count) is written in the docstring of the function that applies it, and is
the same for both arms.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.artefacts import Run, Trial
from batchnorm.lab.files import write_json

Floats = NDArray[np.float64]

LEARNED = 0.1  # an arm has learned something when it is a tenth of the way from chance to perfect


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

    ``basis`` says which trials the numbers are from: the finished ones; if there are none, the interrupted ones as far as
    they got; if there are none, the diverged ones (then there is no final accuracy). None stands for "no such number".
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
class Pair:
    """The two arms with one seed: the steps each needed to reach ``target``, the accuracy that the none arm ended with.

    ``outcome`` is "reached", "not reached", or why there is no target: "diverged" or "learned nothing". ``resolution`` is the
    number of steps between the evaluation at which the batch arm was there and the one before.
    """

    seed: int
    outcome: str
    target: float | None
    none_steps: int | None
    batch_steps: int | None
    ratio: float | None
    resolution: int | None
    none_accuracy: float | None
    batch_accuracy: float | None
    batch_status: str


@dataclass(frozen=True)
class Comparison:
    """Both arms, over seeds. ``kind`` is "matched" (the same learning rate) or "best" (each arm at its own best).

    ``ratio`` is steps without BN over steps with BN: above 1, BN needed fewer. It is the median over the ``targets`` pairs that
    have a target, where a pair that did not reach it ranks below all that did; None when the median is such a pair.
    ``ratio_low`` and ``ratio_high`` are over the ``reached`` pairs. ``gain`` is the mean of (final accuracy with BN minus without)
    over the pairs in which both have one.
    """

    kind: str
    none_lr: float
    batch_lr: float
    pairs: list[Pair]
    targets: int
    reached: int
    target: float | None
    none_steps: float | None
    batch_steps: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    gain: float | None


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
    """All numbers of a run."""

    status: str
    steps: int
    chance: float
    grid: list[int]
    arms: list[ArmSummary]
    best_lr: dict[str, float | None]
    matched: list[Comparison]
    best: Comparison | None
    timing: Timing
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
        A run directory as read by :func:`batchnorm.lab.artefacts.read_run`.

    Returns
    -------
    Summary
    """
    chance = 1 / int(run.config["data"]["classes"])
    arms = [
        _summarize_arm(trials)
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
    return Summary(
        status=run.status,
        steps=int(run.config["config"].get("steps", max((trial.step for trial in run.trials), default=0))),
        chance=chance,
        grid=grid[:1] + grid[-1:] if len(grid) > 1 else grid,
        arms=arms,
        best_lr=best_lr,
        matched=matched,
        best=best,
        timing=_time(run.trials),
        shown=_choose_unit(run.trials, best_lr),
    )


def best_learning_rate(arms: Sequence[ArmSummary], norm: str) -> float | None:
    """Choose an arm's best learning rate: highest mean final accuracy, then lower mean final loss, then lower rate.

    A rate at which any trial diverged is not eligible. Rates with finished trials come before interrupted ones. None when no
    rate is eligible.
    """
    eligible = [a for a in arms if a.norm == norm and not a.diverged and a.accuracy_mean is not None]
    finished = [a for a in eligible if a.basis == "finished"]
    return min(finished or eligible, key=_rank, default=None) and min(finished or eligible, key=_rank).lr


def _rank(arm: ArmSummary) -> tuple[float, float, float]:
    accuracy, loss = arm.accuracy_mean, arm.loss_mean
    return (-(accuracy if accuracy is not None else -1.0), loss if loss is not None else np.inf, arm.lr)


def compare(kind: str, trials: Iterable[Trial], none_lr: float, batch_lr: float, chance: float) -> Comparison | None:
    """Compare the arms seed by seed; None unless both arms were run at these rates with a common seed.

    The target of a seed is the accuracy that its none trial ended with (its last record). There is none when that trial
    diverged, or learned nothing: ended less than ``LEARNED`` of the way from chance to perfect, where any network is from the
    start.
    """
    by_key = {
        (trial.norm, trial.lr, trial.seed): trial for trial in trials if trial.steps.size or trial.status == "diverged"
    }
    seeds = [s for n, lr, s in by_key if n == "none" and lr == none_lr and ("batch", batch_lr, s) in by_key]
    pairs = [_pair(by_key["none", none_lr, s], by_key["batch", batch_lr, s], chance) for s in seeds]
    if not pairs:
        return None
    with_target = [pair for pair in pairs if pair.target is not None]
    ratios = [-np.inf if pair.ratio is None else pair.ratio for pair in with_target]
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    batch_steps = [np.inf if pair.batch_steps is None else pair.batch_steps for pair in with_target]
    gains = [
        pair.batch_accuracy - pair.none_accuracy
        for pair in pairs
        if pair.batch_accuracy is not None and pair.none_accuracy is not None
    ]
    return Comparison(
        kind=kind,
        none_lr=none_lr,
        batch_lr=batch_lr,
        pairs=pairs,
        targets=len(with_target),
        reached=len(finite),
        target=_mean([pair.target for pair in with_target if pair.target is not None]),
        none_steps=_median([pair.none_steps for pair in with_target if pair.none_steps is not None]),
        batch_steps=_median(batch_steps),
        ratio=_median(ratios),
        ratio_low=min(finite, default=None),
        ratio_high=max(finite, default=None),
        gain=_mean(gains),
    )


def _pair(none: Trial, batch: Trial, chance: float) -> Pair:
    none_accuracy, batch_accuracy = _final(none), _final(batch)
    target, outcome = none_accuracy, "not reached"
    none_steps = batch_steps = resolution = ratio = None
    if none_accuracy is None:
        target, outcome = None, "diverged"
    elif none_accuracy < chance + LEARNED * (1 - chance):
        target, outcome = None, "learned nothing"
    else:
        none_steps, _ = _first(none, none_accuracy)
        batch_steps, resolution = _first(batch, none_accuracy)
        if none_steps is not None and batch_steps:
            ratio, outcome = none_steps / batch_steps, "reached"
    return Pair(
        seed=none.seed,
        outcome=outcome,
        target=target,
        none_steps=none_steps,
        batch_steps=batch_steps,
        ratio=ratio,
        resolution=resolution,
        none_accuracy=none_accuracy,
        batch_accuracy=batch_accuracy,
        batch_status=batch.status,
    )


def _first(trial: Trial, target: float) -> tuple[int | None, int | None]:
    """Find the first evaluation at or above ``target``: its step, and the steps since the evaluation before."""
    hits = np.flatnonzero(trial.test_accuracy >= target)
    if not hits.size:
        return None, None
    before = trial.steps[hits[0] - 1] if hits[0] else 0
    return int(trial.steps[hits[0]]), int(trial.steps[hits[0]] - before)


def _final(trial: Trial) -> float | None:
    if trial.status == "diverged" or not trial.steps.size or not np.isfinite(trial.test_accuracy[-1]):
        return None
    return float(trial.test_accuracy[-1])


def _summarize_arm(trials: Sequence[Trial]) -> ArmSummary:
    count = {status: sum(t.status == status for t in trials) for status in ("finished", "interrupted", "diverged")}
    recorded = [t for t in trials if t.steps.size]
    basis = next((s for s in count if any(t.status == s for t in recorded)), "diverged")
    counted = [t for t in recorded if t.status == basis]
    finals = [final for t in counted if (final := _final(t)) is not None]
    drifts = [drift_and_spread(t) for t in counted]
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
        accuracy_mean=_mean(finals),
        accuracy_std=float(np.std(finals, ddof=1)) if len(finals) > 1 else None,
        loss_mean=_mean([float(t.test_loss[-1]) for t in counted if _final(t) is not None]),
        drift=_median([_median(drift) for drift, _ in drifts]),
        spread=_median([_median(spread) for _, spread in drifts]),
        drift_per_spread=_median([_median(drift[spread > 0] / spread[spread > 0]) for drift, spread in drifts]),
        saturated_end=[
            m for k in range(layers) if (m := _mean([float(t.saturated[-1, k]) for t in counted])) is not None
        ],
        step_seconds=_median(np.concatenate([t.step_seconds for t in counted]) if counted else []),
        accuracy=_curve([(t.steps, t.test_accuracy) for t in counted]),
        saturated=[_curve([(t.steps, t.saturated[:, k]) for t in counted]) for k in range(layers)],
    )


def trained(trial: Trial) -> NDArray[np.bool_]:
    """Mark the evaluations whose percentiles count: after step 0, and recorded.

    Step 0 is left out in both arms: BN in eval mode uses running statistics, and before the first step it has none.
    """
    kept: NDArray[np.bool_] = (trial.steps > 0) & np.isfinite(trial.percentiles).all(axis=(1, 2))
    return kept


def drift_and_spread(trial: Trial) -> tuple[Floats, Floats]:
    """Per unit of the last hidden layer: how far the median of its input travelled, and how wide its input was.

    Returns
    -------
    drift : ndarray of shape (U,), dtype=np.float64
        Sum over evaluations of \\|change of the 50th percentile\\|. Empty with fewer than two evaluations.
    spread : ndarray of shape (U,), dtype=np.float64
        Mean over evaluations of the 85th minus the 15th percentile. Empty likewise.
    """
    q15, q50, q85 = np.moveaxis(trial.percentiles[trained(trial)], 1, 0)  # each (T, U)
    if len(q50) < 2:
        return np.empty(0), np.empty(0)
    return np.abs(np.diff(q50, axis=0)).sum(axis=0), (q85 - q15).mean(axis=0)


def _choose_unit(trials: Sequence[Trial], best_lr: dict[str, float | None]) -> Shown | None:
    """Choose by rule, not by eye: the unit whose drift is the (lower) median of all units in the none arm's first seed.

    Both arms are shown at the none arm's best learning rate, so that BN is the only difference; where an arm has no trial
    there, at its own best, else at its first. Without a none arm, the batch arm chooses.
    """
    rule_norm, chosen = None, {}
    for norm in sorted(best_lr, key=lambda norm: norm != "none"):
        usable = [t for t in trials if t.norm == norm and drift_and_spread(t)[0].size]
        if not usable:
            continue
        wanted = [chosen[rule_norm].lr if rule_norm else None, best_lr[norm]]
        usable.sort(
            key=lambda t: (*(t.lr != lr for lr in wanted if lr is not None), t.status == "diverged", t.lr, t.seed)
        )
        rule_norm, chosen[norm] = rule_norm or norm, usable[0]
    if rule_norm is None:
        return None
    drift, _ = drift_and_spread(chosen[rule_norm])
    return Shown(
        unit=int(np.argsort(drift, kind="stable")[(len(drift) - 1) // 2]),
        units=len(drift),
        seed=chosen[rule_norm].seed,
        lr={norm: trial.lr for norm, trial in chosen.items()},
        rule=f"the unit with the median drift among all units of the {rule_norm} arm",
    )


def _time(trials: Sequence[Trial]) -> Timing:
    """Median over intervals, learning rates and seeds; the ratio pairs intervals that end at the same step of a pair."""
    seconds: dict[tuple[str, float, int, int], float] = {}
    for t in trials:
        for step, value in zip(t.steps.tolist(), t.step_seconds.tolist(), strict=True):
            if np.isfinite(value) and value > 0:
                seconds[t.norm, t.lr, t.seed, step] = value
    per_arm: dict[str, list[float]] = {}
    for (norm, *_), value in seconds.items():
        per_arm.setdefault(norm, []).append(value)
    ratios = [
        v / seconds["none", *key]
        for (norm, *key), v in seconds.items()
        if norm == "batch" and ("none", *key) in seconds
    ]
    low, high = (float(q) for q in np.quantile(ratios, [0.25, 0.75])) if ratios else (None, None)
    return Timing(
        seconds={norm: float(np.median(values)) for norm, values in per_arm.items()},
        intervals={norm: len(values) for norm, values in per_arm.items()},
        ratio=_median(ratios),
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


def _mean(values: Sequence[float]) -> float | None:
    kept = [value for value in values if np.isfinite(value)]
    return float(np.mean(kept)) if kept else None


def _median(values: Any) -> float | None:
    """Median of what is not missing; None when there is nothing, or when the median is not a finite number."""
    kept = [value for value in values if value is not None and not np.isnan(value)]
    if not kept:
        return None
    ordered = sorted(kept)
    middle = (ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2])
    return float(sum(middle) / 2) if np.isfinite(middle).all() else None
