"""What the numbers of a comparison say, as text: the terminal and the page print the same tables and sentences."""

from batchnorm.lab.compare.comparison import Comparison
from batchnorm.lab.compare.summary import ArmSummary, Summary
from batchnorm.lab.wording import Table, Verdict, count, duration, factor, percent, plural

ARMS = {"none": "without BN", "batch": "with BN"}
SAME = 0.05  # ratios this close to 1 are called "about the same"


def arm_name(norm: str) -> str:
    """Name an arm in words."""
    return ARMS.get(norm, f"with {norm}")


def saturation(activation: str) -> str:
    """Say when a value counts as saturated."""
    flat = "its activation is nearly flat there, so that hardly any gradient passes"
    return {
        "sigmoid": "the unit's output is within 5% of an end of its range (size of the input above ln 19 = 2.94)",
        "tanh": "the unit's output is within 5% of an end of its range (size of the input above ln 19 / 2 = 1.47)",
        "relu": "the input is at most 0, where the unit passes no gradient",
    }.get(activation, flat)


def from_step(summary: Summary) -> str:
    """Say from which step percentiles count, and why."""
    if summary.settled_step == 1:
        return "Counted from step 1 on; BN's running statistics are still settling then."
    return (
        f"Counted from step {summary.settled_step} on, in both arms: before that, BN's running statistics still hold "
        "more than 1% of the values they start with."
    )


def tables(summary: Summary) -> list[Table]:
    """Make the tables: steps to the same accuracy, and one row per arm and learning rate."""
    made = [_arm_table(summary)]
    if summary.matched or summary.best:
        made.insert(0, _comparison_table(summary))
    return made


def _comparison_table(summary: Summary) -> Table:
    rows = []
    for comparison in [*([summary.best] if summary.best else []), *summary.matched]:
        kind = "each at its best lr" if comparison.kind == "best" else "the same lr"
        reached = f"{comparison.reached} of {comparison.targets}" if comparison.targets else "-"
        rows.append([
            kind,
            f"{comparison.none_lr:g}, {comparison.batch_lr:g}",
            percent(comparison.target) if comparison.targets else f"none: {_why_no_target(comparison)}",
            count(comparison.none_steps) if comparison.targets else "-",
            count(comparison.batch_steps) if comparison.targets else "-",
            factor(comparison.ratio, "not reached") if comparison.targets else "-",
            _range(comparison),
            reached,
        ])  # fmt: skip
    return Table(
        title="Steps to the accuracy that the arm without BN ends with",
        columns=[
            "comparison",
            "lr without, with",
            "target",
            "steps without",
            "steps with",
            "ratio",
            "range",
            "reached",
        ],
        rows=rows,
        note="Target: test accuracy, mean over seeds; each seed has its own. Steps and ratio (without : with): median "
        f"over seeds. Range: over the seeds that reached it. {_grid(summary)}",
    )


def _arm_table(summary: Summary) -> Table:
    rows = []
    for arm in summary.arms:
        best = " (best)" if summary.best_lr.get(arm.norm) == arm.lr and _rates(summary, arm.norm) > 1 else ""
        accuracy = "-" if arm.accuracy_mean is None else percent(arm.accuracy_mean)
        if arm.accuracy_std is not None:
            accuracy += f" ± {100 * arm.accuracy_std:.1f}"
        rows.append([
            arm_name(arm.norm),
            f"{arm.lr:g}{best}",
            trials_text(arm),
            accuracy,
            "-" if arm.drift is None else f"{arm.drift:.2f}",
            "-" if arm.spread is None else f"{arm.spread:.2f}",
            percent(arm.saturated_end[-1]) if arm.saturated_end else "-",
            duration(arm.step_seconds),
        ])  # fmt: skip
    return Table(
        title="Every arm at every learning rate",
        columns=["arm", "lr", "trials", "final accuracy", "drift", "spread", "saturated", "time/step"],
        rows=rows,
        note="Final accuracy: test set, mean ± standard deviation over seeds. Drift, spread, saturated: last layer.",
    )


def trials_text(arm: ArmSummary) -> str:
    """Say how many trials ended how: "3", or "3: 1 diverged"."""
    other = [f"{n} {word}" for n, word in ((arm.diverged, "diverged"), (arm.interrupted, "interrupted")) if n]
    return f"{arm.trials}: {', '.join(other)}" if other else f"{arm.trials}"


def verdict(summary: Summary) -> Verdict:
    """Answer the question of the comparison in words, from the numbers alone.

    Parameters
    ----------
    summary : Summary
        The numbers of a run.

    Returns
    -------
    Verdict
    """
    numbers = [_steps_sentence(summary.best)] if summary.best else []
    numbers += [_steps_sentence(c) for c in summary.matched] if len(summary.matched) < 3 else [_matched(summary)]
    numbers += [s for s in (_accuracy_sentence(summary), _drift_sentence(summary), _time_sentence(summary)) if s]
    return Verdict(_headline(summary), numbers, _limits(summary))


def _headline(summary: Summary) -> str:
    norms = list(summary.best_lr)
    if not summary.arms or all(not arm.accuracy.steps and not arm.diverged for arm in summary.arms):
        return "Nothing was recorded before the run ended."
    if not {"none", "batch"} <= set(norms):
        ended = f"; it {ended}" if (ended := _ended(summary, norms[0])) else ""
        return f"Only one arm was run, {arm_name(norms[0])}{ended}. There is nothing to compare it with."
    best = summary.best
    if best is None:
        lost = [norm for norm in ("none", "batch") if summary.best_lr[norm] is None]
        if not lost:
            return "The arms have no seed in common at their best learning rates: there is nothing to compare."
        who = " and ".join(arm_name(norm) for norm in lost)
        text = f"At every learning rate tried, training {who} diverged for at least one seed"
        kept = [norm for norm in ("none", "batch") if norm not in lost]
        return f"{text}; {arm_name(kept[0])} the network {_ended(summary, kept[0])}." if kept else f"{text}."
    if not best.targets:
        return (
            f"Without BN the network learned nothing in {summary.steps:,} steps: it {_ended(summary, 'none')}, and "
            f"chance is {percent(summary.chance)}. With BN it {_ended(summary, 'batch')}."
        )
    goal = f"the accuracy that the network without it ended with ({percent(best.target)})"
    each = "each at its best learning rate"
    if best.ratio is None:
        missed = f"{best.targets - best.reached} of {plural(best.targets, 'seed')}"
        return f"With BN the network did not reach {goal}, in {missed}, {each}."
    if best.ratio > 1 + SAME:
        return f"With BN the network reached {goal} in {factor(best.ratio)[:-1]} times fewer steps, {each}."
    if best.ratio < 1 / (1 + SAME):
        return f"With BN the network needed {factor(1 / best.ratio)[:-1]} times more steps to reach {goal}, {each}."
    return f"With BN the network reached {goal} in about as many steps, {each}."


def _ended(summary: Summary, norm: str) -> str:
    arm = summary.arm(norm, summary.best_lr.get(norm))
    if arm is None or arm.accuracy_mean is None:
        return ""
    word = "ended at" if arm.basis == "finished" else "was interrupted at"
    return f"{word} {percent(arm.accuracy_mean)}"


def _steps_sentence(comparison: Comparison) -> str:
    if comparison.kind == "best":
        where = f"Each at its best learning rate ({comparison.none_lr:g} without BN, {comparison.batch_lr:g} with BN)"
    else:
        where = f"At the same learning rate {comparison.none_lr:g}"
    if not comparison.targets:
        return f"{where}: no target to reach, because the arm without BN {_why_no_target(comparison)}."
    over = f"median of {plural(comparison.targets, 'seed')}" if comparison.targets > 1 else "one seed"
    text = f"{where}: {count(comparison.none_steps)} steps without BN, "
    if comparison.ratio is None:
        return f"{text}not reached with BN (reached in {comparison.reached} of {plural(comparison.targets, 'seed')})."
    text += f"{count(comparison.batch_steps)} with BN; ratio {factor(comparison.ratio)} ({over}"
    if comparison.reached > 1:
        text += f", {_range(comparison)}"
    missed = comparison.targets - comparison.reached
    return text + (f"; not reached in {plural(missed, 'seed')})." if missed else ").")


def _matched(summary: Summary) -> str:
    each = [
        f"{factor(c.ratio, 'not reached') if c.targets else 'no target'} at {c.none_lr:g}"
        + ("" if c.targets else f" ({_why_no_target(c)})")
        for c in summary.matched
    ]
    return f"Both at the same learning rate, the ratio of steps was {', '.join(each)}."


def _accuracy_sentence(summary: Summary) -> str:
    best = summary.best
    if best is None or best.gain is None:
        return ""
    none, batch = summary.arm("none", best.none_lr), summary.arm("batch", best.batch_lr)
    if none is None or batch is None:
        return ""
    points = 100 * best.gain
    how = f"{abs(points):.1f} points {'higher' if points > 0 else 'lower'}" if abs(points) >= 0.05 else "equally high"
    return (
        f"Final test accuracy, each at its best learning rate: {percent(batch.accuracy_mean)} with BN, "
        f"{percent(none.accuracy_mean)} without: {how} with BN (mean over the seeds of both)."
    )


def _drift_sentence(summary: Summary) -> str:
    shown = summary.shown
    if shown is None or not {"none", "batch"} <= set(shown.lr):
        return ""
    none, batch = (summary.arm(norm, shown.lr[norm]) for norm in ("none", "batch"))
    if none is None or batch is None or not none.drift or batch.drift is None or not none.drift_per_spread:
        return ""
    absolute, relative = batch.drift / none.drift, (batch.drift_per_spread or 0) / none.drift_per_spread
    word = {(True, True): "less", (False, False): "more"}.get((absolute < 1, relative < 1), "")
    moved = f"moved {word} with BN" if word else "moved less with BN by one measure and more by the other"
    rates = _both_rates(shown.lr["none"], shown.lr["batch"])
    return (
        f"The inputs to the last hidden layer's units {moved} (learning rate {rates}): the median input of the median "
        f"unit travelled {batch.drift:.2f} with BN and {none.drift:.2f} without; in units of its own spread, "
        f"{batch.drift_per_spread or 0:.2f} and {none.drift_per_spread:.2f}."
    )


def _both_rates(none: float, batch: float) -> str:
    return f"{none:g}" if none == batch else f"{none:g} without, {batch:g} with"


def _time_sentence(summary: Summary) -> str:
    timing = summary.timing
    if timing.ratio is None or timing.ratio_low is None or timing.ratio_high is None:
        return ""
    batch, none = duration(timing.seconds["batch"]), duration(timing.seconds["none"])
    text = (
        f"A training step took {batch} with BN and {none} without: "
        f"{timing.ratio:.2f} times as long (median of paired intervals; quartiles {timing.ratio_low:.2f} "
        f"and {timing.ratio_high:.2f})."
    )
    if summary.best is not None and summary.time_ratio is not None:
        time = factor(summary.time_ratio)
        text += f" Counted in time instead of steps, the ratio of {factor(summary.best.ratio)} becomes {time}."
    return text


def _limits(summary: Summary) -> list[str]:
    limits = []
    if summary.status == "interrupted":
        limits.append("The run was interrupted: these are the numbers of what was recorded until then.")
    limits += [f"Diverged: {text}." for text in diverged(summary)]
    pairs = summary.best.pairs if summary.best else []
    if any(pair.batch_steps is not None and pair.batch_steps == pair.resolution for pair in pairs):
        limits.append(
            "With BN the target was reached by the first evaluation already: the evaluation interval limits the ratio."
        )
    none = summary.arm("none", summary.best_lr.get("none"))
    ends = [pair.none_steps == none.last_step for pair in pairs if pair.target is not None] if none else []
    if ends and sum(ends) * 2 > len(ends):
        limits.append(
            "Without BN the network was still improving when training ended: more steps would raise the target."
        )
    if summary.arms and max(len(arm.seeds) for arm in summary.arms) == 1:
        limits.append("One seed per arm: there is no spread to judge the differences by.")
    if summary.arms and _grid(summary):
        limits.append(_grid(summary))
    return limits


def diverged(summary: Summary) -> list[str]:
    """Name every arm of which a trial diverged, with learning rate, count and reasons."""
    return [
        f"{arm_name(arm.norm)} at learning rate {arm.lr:g}, {arm.diverged} of {plural(arm.trials, 'trial')}"
        + (f" ({'; '.join(arm.reasons)})" if arm.reasons else "")
        for arm in summary.arms
        if arm.diverged
    ]


def _grid(summary: Summary) -> str:
    if not summary.grid:
        return ""
    apart = " to ".join(f"{steps:,}" for steps in summary.grid) + (" step" if summary.grid == [1] else " steps")
    return f"Evaluations are {apart} apart; a number of steps is that of the first evaluation at or above the target."


def _why_no_target(comparison: Comparison) -> str:
    return " or ".join(sorted({pair.outcome for pair in comparison.pairs}))


def _range(comparison: Comparison) -> str:
    if comparison.ratio_low is None or comparison.ratio_high is None:
        return "-"
    return f"{factor(comparison.ratio_low)} to {factor(comparison.ratio_high)}"


def _rates(summary: Summary, norm: str) -> int:
    return sum(arm.norm == norm for arm in summary.arms)
