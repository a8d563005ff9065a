"""What the numbers of a study say, as text: the terminal and the page print the same tables and sentences."""

from collections.abc import Sequence
from typing import Any

from batchnorm.lab.experiments.numbers import ArmNumbers, GroupNumbers, Numbers, RunNumbers, evaluation_spacing
from batchnorm.lab.experiments.study import Arm, Study, seed_of, settings_of
from batchnorm.lab.rules import SAME, Ratio, Spread
from batchnorm.lab.wording import Table, Verdict, count, factor, percent, plural, text

SPLITS = {"test": "test", "validation": "validation", "train_evaluation": "training"}
ENDED_BADLY = ("diverged", "interrupted", "failed")
MOST_NAMED = 3  # groups with a sentence of their own; the table has them all
#: Accuracies with a larger standard deviation have no middle: some runs succeeded, others failed.
APART = 0.1
FEW_SEEDS = 3  # below this many an interval says little


def clock(seconds: float | None) -> str:
    """Write a time of training: "48 s", "12 min", "3 h 20 min"."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def spread(value: Spread | None, *, share: bool = True) -> str:
    """Write a mean with the standard deviation over runs; the range where some runs succeed and others fail."""
    if value is None:
        return "-"
    if share and value.std is not None and value.std > APART:
        return f"{percent(value.low)} to {percent(value.high)}"
    if share:
        return percent(value.mean) + ("" if value.std is None else f" ± {100 * value.std:.1f}")
    return f"{value.mean:.3g}" + ("" if value.std is None else f" ± {value.std:.2g}")


def tables(study: Study, numbers: Numbers) -> list[Table]:
    """Make the tables: steps to each accuracy, one row per arm, and one row per run where that says more."""
    made = [_arm_table(study, numbers)]
    if numbers.marks:
        made.insert(0, _steps_table(study, numbers))
        made += [_matched_table(study, numbers, group) for group in numbers.groups[1:] if study.tuned]
    runs = [run for arm in numbers.arms for run in arm.runs]
    if study.plan is None and (len(runs) > len(numbers.arms) or any(run.status != "finished" for run in runs)):
        made.append(_run_table(numbers))
    return made


def mark_name(numbers: Numbers, mark: float) -> str:
    """Name an accuracy: "80%", and the target with its origin."""
    return f"{percent(mark)} (final)" if mark == numbers.target else percent(mark).replace(".0%", "%")


def ended(runs: Sequence[RunNumbers]) -> str:
    """Say how many runs there are and how they ended: "3", or "3: 1 diverged"."""
    bad = [f"{n} {word}" for word in ENDED_BADLY if (n := sum(run.status == word for run in runs))]
    return f"{len(runs)}: {', '.join(bad)}" if bad else f"{len(runs)}"


def range_of(ratio: Ratio) -> str:
    """Write a ratio with its interval: "6.5x (6.0x to 13x)"."""
    if ratio.value is None:
        return "baseline did not reach it" if ratio.why == "baseline" else "not reached"
    if ratio.low is None or ratio.high is None or factor(ratio.low) == factor(ratio.high):
        return factor(ratio.value)
    return f"{factor(ratio.value)} ({factor(ratio.low)} to {factor(ratio.high)})"


def _steps_table(study: Study, numbers: Numbers) -> Table:
    rows = []
    for group in numbers.groups:
        row = [group.name]
        for index in range(len(numbers.marks)):
            reach = group.reaches[index]
            at = "" if reach.value is None else f" at {_tuned(study, reach.value)}" + ("*" if reach.edge else "")
            row.append(count(reach.steps) + at)
        rows.append(row)
        if group.ratios:
            rows.append([f"ratio to {numbers.groups[0].name}", *map(range_of, group.ratios)])
    edge = any(reach.edge for group in numbers.groups for reach in group.reaches)
    tuned = "at the value that needs the fewest" if study.tuned else "median over seeds"
    return Table(
        title="Steps to an accuracy",
        columns=["arm", *(mark_name(numbers, mark) for mark in numbers.marks)],
        rows=rows,
        note=(
            f"Steps: {tuned}. Ratio: steps of {numbers.groups[0].name} over steps of the arm; the interval is over "
            f"seeds and over accuracies within one example. Final: the accuracy that {numbers.groups[0].name} ended "
            "with in every seed." + (" *: at the edge of the grid; a wider grid may need fewer." if edge else "")
        ),
    )


def _matched_table(study: Study, numbers: Numbers, group: GroupNumbers) -> Table:
    values = list(group.arms)
    rows = [
        [
            f"to {mark_name(numbers, mark)}",
            *("-" if (found := group.matched[index].get(value)) is None else factor(found) for value in values),
        ]
        for index, mark in enumerate(numbers.marks)
    ]
    name = study.tuned.replace("_", " ")
    return Table(
        title=f"Ratio of steps at the same {name}: {group.name}",
        columns=["accuracy", *(_tuned(study, value) for value in values)],
        rows=rows,
        note=f"Steps of {numbers.groups[0].name} over steps of {group.name}, medians over seeds; -: one of them did "
        "not reach it.",
    )


def _arm_table(study: Study, numbers: Numbers) -> Table:
    split = SPLITS.get(numbers.split or "", "")
    several = len(numbers.arms) > 1
    columns = ["arm", "runs", f"best {split} accuracy", "final accuracy", "final loss", "gap", "examples/s"]
    gaps = any(arm.gap is not None for arm in numbers.arms)
    rows = []
    for group in numbers.groups:
        for value, arm in group.arms.items():
            best = study.tuned and len(group.arms) > 1 and group.best is not None and group.best.value == value
            row = [
                arm.name + (" (best)" if best else ""), ended(arm.runs), spread(arm.best_accuracy),
                spread(arm.final_accuracy), spread(arm.final_loss, share=False), _points(arm.gap),
                "-" if arm.examples_per_second is None else f"{arm.examples_per_second.mean:,.0f}",
            ]  # fmt: skip
            rows.append(row if gaps else [*row[:5], row[6]])
    return Table(
        title="Arms" if several else "Result",
        columns=columns if gaps else [*columns[:5], columns[6]],
        rows=rows,
        note=_arm_note(numbers),
    )


def _arm_note(numbers: Numbers) -> str:
    words = ["Mean ± standard deviation over the runs that finished."]
    if any(arm.basis == "interrupted" for arm in numbers.arms):
        words.append("Of an arm in which none did: over those that were interrupted.")
    if numbers.chosen_on is not None and numbers.split is not None:
        words.append(
            f"Best accuracy: at the evaluation with the highest {SPLITS[numbers.chosen_on]} accuracy"
            + (
                ", which is what is reported too, so it is slightly optimistic."
                if numbers.chosen_on == numbers.split
                else "."
            )
        )
    if any(arm.gap is not None for arm in numbers.arms):
        words.append(
            "Gap: accuracy on a fixed subset of the training data minus accuracy on new data, at the end, in points."
        )
    return " ".join(words)


def _run_table(numbers: Numbers) -> Table:
    rows = [
        [
            arm.name, text(run.seed), run.status + (f": {run.reason}" if run.reason else ""), f"{run.step:,}",
            clock(run.seconds), percent(run.best_accuracy), percent(run.final_accuracy), run.directory,
        ]
        for arm in numbers.arms
        for run in arm.runs
    ]  # fmt: skip
    return Table(
        title="Runs",
        columns=["arm", "seed", "ended", "steps", "time", "best accuracy", "final accuracy", "directory"],
        rows=rows,
        note="Final accuracy: at the last evaluation before the run ended, however it ended.",
    )


def _points(gap: Spread | None) -> str:
    if gap is None:
        return "-"
    mean = round(100 * gap.mean, 1) + 0.0  # no -0.0
    return f"{mean:+.1f}" + ("" if gap.std is None else f" ± {100 * gap.std:.1f}")


def verdict(study: Study, numbers: Numbers) -> Verdict:
    """Say what came out, from the numbers alone.

    Parameters
    ----------
    study : Study
        The runs.
    numbers : Numbers
        Their numbers.

    Returns
    -------
    Verdict
    """
    if len(numbers.arms) == 1:
        return Verdict(_alone(numbers), _alone_numbers(numbers.arms[0]), _limits(study, numbers))
    first, *others = numbers.groups
    sentences = [_against(numbers, first, other) for other in others[:MOST_NAMED]]
    if len(others) > MOST_NAMED:
        sentences.append(f"The table has all {len(numbers.groups)} arms.")
    shown = [group.shown for group in numbers.groups]
    sentences += [s for s in (*map(_time_sentence, others), _gap_sentence(shown), _speed_sentence(study, shown)) if s]
    headline = _headline(numbers)
    return Verdict(headline[:1].upper() + headline[1:], sentences, _limits(study, numbers))


def _alone(numbers: Numbers) -> str:
    (arm,) = numbers.arms
    split, final = SPLITS.get(numbers.split or "", ""), arm.final_accuracy
    steps = max(run.step for run in arm.runs)
    if arm.basis in {"diverged", "failed"}:
        every = "The run" if len(arm.runs) == 1 else f"Every one of {len(arm.runs)} runs"
        if len(arm.runs) == 1 and arm.runs[0].reason:
            return f"The run {arm.basis}: {arm.runs[0].reason}."
        return f"{every} {arm.basis} after {plural_steps(steps)}."
    if steps == 0:
        return "Nothing was trained before the run ended."
    if final is None:
        return f"{arm.name} was trained for {plural_steps(steps)}; its accuracy was never evaluated."
    over = f", mean of {final.n} runs" if final.n > 1 else ""
    word = "ended at" if arm.basis == "finished" else "was interrupted at"
    return f"{arm.name} {word} {spread(final)} {split} accuracy after {plural_steps(steps)}{over}."


def plural_steps(steps: int) -> str:
    """Write "1 step", "3,000 steps"."""
    return f"{steps:,} step{'' if steps == 1 else 's'}"


def _alone_numbers(arm: ArmNumbers) -> list[str]:
    sentences = []
    runs = [run for run in arm.runs if run.status == arm.basis]
    if arm.best_accuracy is not None:
        steps = sorted(f"{run.best_step:,.0f}" for run in runs if run.best_step is not None)
        where = f"at step{'' if len(steps) == 1 else 's'} {_and(steps)}"
        sentences.append(f"Best evaluation: {spread(arm.best_accuracy)}, {where if len(steps) < 6 else 'on the way'}.")
    if arm.final_loss is not None:
        sentences.append(f"Loss at the last evaluation: {spread(arm.final_loss, share=False)}.")
    sentences += [s for s in (_gap_sentence([arm]),) if s]
    seconds = [run.seconds for run in runs if run.seconds is not None]
    if seconds and arm.examples_per_second is not None:
        each = "" if len(seconds) == 1 else ", the slowest run"
        sentences.append(
            f"Training and measuring took {clock(max(seconds))}{each}; training went at "
            f"{arm.examples_per_second.mean:,.0f} examples per second."
        )
    return sentences


def _headline(numbers: Numbers) -> str:
    first, *others = numbers.groups
    known = [group for group in numbers.groups if group.shown.final_accuracy is not None]
    if not known:
        lost = all(arm.basis in {"diverged", "failed"} for arm in numbers.arms)
        return "Every run of every arm diverged or failed." if lost else "No accuracy was recorded in any arm."
    if len(others) == 1:
        return _of_two(numbers, first, others[0])
    best = max(known, key=lambda group: group.shown.final_accuracy.mean if group.shown.final_accuracy else 0.0)
    return (
        f"{best.shown.name} ended highest, at {spread(best.shown.final_accuracy)} "
        f"{SPLITS[numbers.split or 'test']} accuracy."
    )


def _of_two(numbers: Numbers, first: GroupNumbers, other: GroupNumbers) -> str:
    for group, rest in ((other, first), (first, other)):
        if group.shown.final_accuracy is None:
            what = group.shown.basis if group.shown.basis in ENDED_BADLY else "was not evaluated"
            return f"{group.name} {what}; {rest.name} ended at {spread(rest.shown.final_accuracy)}."
    ends = f"{spread(other.shown.final_accuracy)} against {spread(first.shown.final_accuracy)} at the end"
    if first.shown.final_accuracy is not None and first.shown.final_accuracy.mean <= numbers.guessing:
        return (
            f"{other.name} ended at {spread(other.shown.final_accuracy)}; {first.name} did no better than guessing, at "
            f"{spread(first.shown.final_accuracy)}."
        )
    if numbers.target is None:
        return f"{other.name} and {first.name}: {ends}."
    final = numbers.marks.index(numbers.target)
    goal = f"the accuracy that {first.name} ended with ({percent(numbers.target)})"
    ratio = other.ratios[final]
    said = [f"{goal} {_fewer(ratio)}"] if ratio.value is not None else []
    early = [
        f"{mark_name(numbers, mark)} {_fewer(other.ratios[k])}"
        for k, mark in enumerate(numbers.marks)
        if mark != numbers.target and other.ratios[k].value is not None and mark < numbers.target
    ]
    if not said:
        return f"{other.name} did not reach {goal}: {ends}" + (f"; it reached {_and(early)}." if early else ".")
    # The final accuracy first; but where it shows no difference and an earlier one does, both.
    return f"{other.name} reached {_and([*said, *early[:1]])}."


def _fewer(ratio: Ratio) -> str:
    """Write a ratio with its interval as "in 6.5 to 13 times fewer steps"; one that straddles 1 says so."""
    value, low, high = ratio.value, ratio.low, ratio.high
    assert value is not None
    assert low is not None
    assert high is not None
    if low < 1 < high and low < 1 / (1 + SAME) and high > 1 + SAME:
        return f"in between {factor(1 / low)[:-1]} times more and {factor(high)[:-1]} times fewer steps"
    if 1 / (1 + SAME) <= value <= 1 + SAME:
        return "in about as many steps"
    ends = (low, high) if value > 1 else (1 / high, 1 / low)
    shown = list(dict.fromkeys(factor(max(end, 1.0))[:-1].removesuffix(".0") for end in ends))
    return f"in {' to '.join(shown)} times {'fewer' if value > 1 else 'more'} steps"


def _against(numbers: Numbers, first: GroupNumbers, other: GroupNumbers) -> str:
    mine, theirs = other.shown, first.shown
    if mine.final_accuracy is None:
        what = mine.basis if mine.basis in ENDED_BADLY else "was not evaluated"
        return f"{mine.name}: {what}, so there is no accuracy to compare."
    sentence = f"{mine.name}: {spread(mine.final_accuracy)} at the end"
    if theirs.final_accuracy is not None and numbers.example:
        # The difference of the numbers as they are printed.
        points = round(100 * mine.final_accuracy.mean, 1) - round(100 * theirs.final_accuracy.mean, 1)
        higher = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"
        sentence += f", {higher if abs(points) >= 0.05 else 'the same as'} {theirs.name}"
    for index, mark in enumerate(numbers.marks):
        reach, base = other.reaches[index], first.reaches[index]
        if reach.steps is None:
            sentence += f"; {mark_name(numbers, mark)} not reached"
        else:
            against = "" if base.steps is None else f" ({base.steps:,.0f})"
            sentence += f"; {mark_name(numbers, mark)} after {reach.steps:,.0f} steps{against}"
    return sentence + "."


def _time_sentence(group: GroupNumbers) -> str:
    if group.time_ratio is None:
        return ""
    middle, low, high = group.time_ratio
    words = (
        f"A step of {group.name} took {middle:.2f} times as long as one of the baseline (median of paired intervals; "
        f"quartiles {low:.2f} and {high:.2f})"
    )
    known = [ratio.value for ratio in group.ratios if ratio.value is not None]
    return words + (
        f"; in time instead of steps, a ratio of {factor(known[-1])} is {factor(known[-1] / middle)}." if known else "."
    )


def _gap_sentence(arms: Sequence[ArmNumbers]) -> str:
    known = [arm for arm in arms if arm.gap is not None]
    if not known or len(known) > MOST_NAMED + 1:
        return ""
    each = ", ".join(f"{_points(arm.gap)} points" + (f" with {arm.name}" if len(arms) > 1 else "") for arm in known)
    return f"Accuracy on the training subset against new data, at the end: {each}."


def _speed_sentence(study: Study, arms: Sequence[ArmNumbers]) -> str:
    known = [arm for arm in arms if arm.examples_per_second is not None]
    if study.plan is not None or len(known) < 2 or len(known) > MOST_NAMED + 1:
        return ""
    each = ", ".join(f"{arm.examples_per_second.mean:,.0f} with {arm.name}" for arm in known if arm.examples_per_second)
    return f"Examples per second: {each}."


def _limits(study: Study, numbers: Numbers) -> list[str]:
    arms = study.arms
    limits = []
    if study.absent:
        limits.append(
            f"{plural(study.absent, 'cell')} of the plan did not run yet: the same command goes on with them."
        )
    limits += _endings(numbers)
    seeds = max(len(arm.runs) for arm in arms)
    if seeds == 1:
        limits.append("One seed per arm: there is no spread to judge differences by." if len(arms) > 1 else
                      "One seed: another would end elsewhere, by an amount that this page cannot say.")  # fmt: skip
    elif len(arms) > 1 and seeds < FEW_SEEDS:
        limits.append(f"{seeds} seeds: an interval over so few says little.")
    for group in arms:
        own = [str(seed_of(run)) for run in group.runs]
        if len(set(own)) < len(own):
            limits.append(f"{group.name} holds runs with the same seed, which are not independent.")
    limits += _doubts(study, numbers)
    if numbers.split is not None and numbers.split == numbers.chosen_on == "test":
        limits.append("Best accuracies were chosen on the test data themselves, so they are slightly optimistic.")
    if numbers.marks and numbers.example > 1 / 2000:
        limits.append(
            f"The {SPLITS[numbers.split or 'test']} data have {1 / numbers.example:,.0f} examples: accuracies that "
            f"differ by less than {percent(numbers.example)} cannot be told apart."
        )
    same_data = len({_of_data(arm) for arm in arms}) == 1
    if len(study.groups) > 1 and same_data and numbers.target is None and numbers.groups[0].shown.final_accuracy:
        limits.append(
            f"{numbers.groups[0].name} did no better than guessing, so there is no accuracy that it reached to count "
            "the steps to."
        )
    elif numbers.marks and (between := [steps for arm in arms for steps in evaluation_spacing(arm, numbers.split)]):
        limits.append(
            f"Accuracy is known where it was evaluated, every {count(max(between))} steps: how many steps an arm took "
            "is known to that, and so are their ratios."
        )
    if len(study.groups) > 1 and len(study.compared) > 1 and study.plan is None:
        limits.append(
            f"The arms differ in {_and([key.replace('_', ' ') for key in study.compared])}: this page cannot say which "
            "made the difference."
        )
    limits += [
        f"The arms were not {what}: {consequence}."
        for what, consequence, values in (
            ("trained on the same data", "accuracies are of different tasks", [_of_data(arm) for arm in arms]),
            ("run on the same machine", "times do not compare", [_machine(arm) for arm in arms]),
            ("run with the same threads", "times do not compare", [_threads(arm) for arm in arms]),
            ("run by the same version", "a difference may be the version's", [_version(arm) for arm in arms]),
        )
        if len(set(values)) > 1
    ]
    return limits


def _endings(numbers: Numbers) -> list[str]:
    said = []
    for arm in numbers.arms:
        for status in ENDED_BADLY:
            runs = [run for run in arm.runs if run.status == status]
            if not runs:
                continue
            first = runs[0]
            why = f": {first.reason}" if first.reason else ""
            seeds = f"seed{'' if len(runs) == 1 else 's'} {_and([text(run.seed) for run in runs])}"
            said.append(f"{arm.name}, {seeds} {_how(status)} at step {first.step:,}{why}.")
    return said


def _doubts(study: Study, numbers: Numbers) -> list[str]:
    """Name ties and edges of the tuned axis."""
    name, said = study.tuned.replace("_", " "), []
    for group in numbers.groups:
        edges = [mark for mark, reach in zip(numbers.marks, group.reaches, strict=False) if reach.edge]
        if edges:
            where = _and([mark_name(numbers, mark) for mark in edges])
            said.append(f"{group.name} needs the fewest steps to {where} at the edge of the {name} grid: widen it.")
        if study.tuned and group.best is not None and group.best.ties:
            others = _and([f"{value:g}" for value in group.best.ties])
            said.append(
                f"{group.name} ends as high, to within one example, at {name} {others}; no ratio depends on it."
            )
    return said


def _tuned(study: Study, value: float) -> str:
    return f"{study.tuned.replace('_', ' ')} {value:g}"


def _and(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _how(status: str) -> str:
    return {"diverged": "diverged", "interrupted": "was interrupted", "failed": "failed"}.get(status, status)


def _of_data(arm: Arm) -> str:
    settings = settings_of(arm.runs[0])
    return str(settings.get("data", arm.runs[0].config["data"].get("name")))


def _machine(arm: Arm) -> str:
    return str([_environment(arm, key) for key in ("processor", "cores", "device")])


def _threads(arm: Arm) -> str:
    return str(_environment(arm, "threads"))


def _version(arm: Arm) -> str:
    return str([_environment(arm, key) for key in ("batchnorm", "commit", "torch")])


def _environment(arm: Arm, key: str) -> Any:
    return arm.runs[0].environment.get(key)
