"""What the numbers of training runs say, as text: the terminal and the page print the same tables and sentences."""

from collections.abc import Sequence
from typing import Any

from batchnorm.lab.page import text
from batchnorm.lab.report.arms import Arm, seed_of, settings_of
from batchnorm.lab.report.numbers import ArmNumbers, Numbers, RunNumbers, Spread, evaluation_spacing
from batchnorm.lab.wording import Table, Verdict, count, factor, percent

PARTS = {"test": "test", "validation": "validation", "train_evaluation": "training"}
SAME = 0.05  # ratios this close to 1 are called "about the same"
ENDED_BADLY = ("diverged", "interrupted", "failed")
MOST_NAMED = 3  # arms with a sentence of their own; the table has them all


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
    """Write a mean with the standard deviation over runs, if there are several."""
    if value is None:
        return "-"
    if share:
        return percent(value.mean) + ("" if value.std is None else f" ± {100 * value.std:.1f}")
    return f"{value.mean:.3g}" + ("" if value.std is None else f" ± {value.std:.2g}")


def tables(numbers: Numbers) -> list[Table]:
    """Make the tables: one row per arm, and one row per run when an arm has several or a run did not finish."""
    made = [_arm_table(numbers)]
    runs = [run for arm in numbers.arms for run in arm.runs]
    if len(runs) > len(numbers.arms) or any(run.status != "finished" for run in runs):
        made.append(_run_table(numbers))
    return made


def ended(runs: Sequence[RunNumbers]) -> str:
    """Say how many runs there are and how they ended: "3", or "3: 1 diverged"."""
    bad = [f"{n} {word}" for word in ENDED_BADLY if (n := sum(run.status == word for run in runs))]
    return f"{len(runs)}: {', '.join(bad)}" if bad else f"{len(runs)}"


def _arm_table(numbers: Numbers) -> Table:
    part = PARTS.get(numbers.part or "", "")
    several = len(numbers.arms) > 1
    columns = ["arm", "runs", f"best {part} accuracy", "final accuracy", "final loss", "gap", "examples/s"]
    if several and numbers.target is not None:
        columns += [f"steps to {percent(numbers.target)}", "time to that"]
    rows = []
    for arm in numbers.arms:
        row = [
            arm.name, ended(arm.runs), spread(arm.best_accuracy), spread(arm.final_accuracy),
            spread(arm.final_loss, share=False), _points(arm.gap),
            "-" if arm.examples_per_second is None else f"{arm.examples_per_second.mean:,.0f}",
        ]  # fmt: skip
        if several and numbers.target is not None:
            missed = len([run for run in arm.runs if run.status == arm.basis]) - arm.reached
            part_reached = f" ({arm.reached} of {arm.reached + missed})" if missed and arm.reached else ""
            row += [count(arm.target_step) + part_reached, clock(arm.target_seconds)]
        rows.append(row)
    return Table(
        title="Arms" if several else "Result",
        columns=columns,
        rows=rows,
        note=_arm_note(numbers, several=several),
    )


def _arm_note(numbers: Numbers, *, several: bool) -> str:
    words = ["Mean ± standard deviation over the runs that finished."]
    if any(arm.basis == "interrupted" for arm in numbers.arms):
        words.append("Of an arm in which none did: over those that were interrupted.")
    if numbers.chosen_on is not None and numbers.part is not None:
        words.append(
            f"Best: at the evaluation with the highest {PARTS[numbers.chosen_on]} accuracy"
            + (
                ", which is what is reported too, so it is slightly optimistic."
                if numbers.chosen_on == numbers.part
                else "."
            )
        )
    if any(arm.gap is not None for arm in numbers.arms):
        words.append(
            "Gap: accuracy on a fixed subset of the training data minus accuracy on new data, at the end, in points."
        )
    if several and numbers.target is not None:
        words.append(
            f"Steps and time to {percent(numbers.target)}, the best accuracy that {numbers.arms[0].name} reached in "
            "every run: at the first evaluation there, median over runs."
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
    return f"{100 * gap.mean:+.1f}" + ("" if gap.std is None else f" ± {100 * gap.std:.1f}")


def verdict(arms: Sequence[Arm], numbers: Numbers) -> Verdict:
    """Say what came out, from the numbers alone.

    Parameters
    ----------
    arms : sequence of Arm
        The arms.
    numbers : Numbers
        Their numbers.

    Returns
    -------
    Verdict
    """
    if len(numbers.arms) == 1:
        return Verdict(_alone(numbers), _alone_numbers(numbers.arms[0]), _limits(arms, numbers))
    first, *others = numbers.arms
    sentences = [_against(numbers, first, other) for other in others[:MOST_NAMED]]
    if len(others) > MOST_NAMED:
        sentences.append(f"The table has all {len(numbers.arms)} arms.")
    sentences += [s for s in (_gap_sentence(numbers.arms), _speed_sentence(numbers.arms)) if s]
    return Verdict(_headline(numbers), sentences, _limits(arms, numbers))


def _alone(numbers: Numbers) -> str:
    (arm,) = numbers.arms
    part, final = PARTS.get(numbers.part or "", ""), arm.final_accuracy
    steps = max(run.step for run in arm.runs)
    if arm.basis in {"diverged", "failed"}:
        every = "The run" if len(arm.runs) == 1 else f"Every one of {len(arm.runs)} runs"
        return f"{every} {arm.basis} after {plural_steps(steps)}."
    if steps == 0:
        return "Nothing was trained before the run ended."
    if final is None:
        return f"{arm.name} was trained for {plural_steps(steps)}; its accuracy was never evaluated."
    over = f", mean of {final.n} runs" if final.n > 1 else ""
    word = "ended at" if arm.basis == "finished" else "was interrupted at"
    return f"{arm.name} {word} {spread(final)} {part} accuracy after {plural_steps(steps)}{over}."


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
    first, *others = numbers.arms
    ranked = sorted(
        (arm for arm in numbers.arms if arm.final_accuracy is not None),
        key=lambda arm: -(arm.final_accuracy.mean if arm.final_accuracy else 0),
    )
    if not ranked:
        lost = all(arm.basis in {"diverged", "failed"} for arm in numbers.arms)
        return "Every run of every arm diverged or failed." if lost else "No accuracy was recorded in any arm."
    if len(numbers.arms) > 2 or numbers.target is None or not others:
        best = ranked[0]
        return f"{best.name} ended highest, at {spread(best.final_accuracy)} {PARTS[numbers.part or 'test']} accuracy."
    other = others[0]
    if other.basis in {"diverged", "failed"}:
        return f"{other.name} {other.basis}; {first.name} ended at {spread(first.final_accuracy)}."
    ends = f"and ended at {spread(other.final_accuracy)} against {spread(first.final_accuracy)}"
    goal = f"the best accuracy of {first.name} ({percent(numbers.target)})"
    if other.target_step is None:
        return f"{other.name} did not reach {goal}, {ends}."
    return f"{other.name} reached {goal} {_fewer(first, other)}, {ends}."


def _fewer(first: ArmNumbers, other: ArmNumbers) -> str:
    if not first.target_step or not other.target_step:
        return f"after {count(other.target_step)} steps"
    ratio = first.target_step / other.target_step
    if ratio > 1 + SAME:
        return f"in {factor(ratio)[:-1]} times fewer steps"
    if ratio < 1 / (1 + SAME):
        return f"in {factor(1 / ratio)[:-1]} times more steps"
    return "in about as many steps"


def _against(numbers: Numbers, first: ArmNumbers, other: ArmNumbers) -> str:
    if other.final_accuracy is None:
        what = other.basis if other.basis in ENDED_BADLY else "was not evaluated"
        return f"{other.name}: {what}, so there is no accuracy to compare."
    sentence = f"{other.name}: {spread(other.final_accuracy)} at the end"
    if first.final_accuracy is not None:
        points = 100 * (other.final_accuracy.mean - first.final_accuracy.mean)
        higher = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"
        sentence += f", {higher if abs(points) >= 0.05 else 'the same as'} {first.name}"
    if numbers.target is not None:
        if other.target_step is None:
            sentence += f"; {percent(numbers.target)} not reached"
        else:
            mine = "" if first.target_step is None else f" ({first.target_step:,.0f} of {first.name})"
            sentence += f"; {percent(numbers.target)} after {other.target_step:,.0f} steps{mine}"
            if other.target_seconds is not None:
                theirs = "" if first.target_seconds is None else f" ({clock(first.target_seconds)})"
                sentence += f", {clock(other.target_seconds)}{theirs}"
    return sentence + "."


def _gap_sentence(arms: Sequence[ArmNumbers]) -> str:
    known = [arm for arm in arms if arm.gap is not None]
    if not known or len(known) > MOST_NAMED + 1:
        return ""
    each = ", ".join(f"{_points(arm.gap)} points" + (f" with {arm.name}" if len(arms) > 1 else "") for arm in known)
    return f"Accuracy on the training subset against new data, at the end: {each}."


def _speed_sentence(arms: Sequence[ArmNumbers]) -> str:
    known = [arm for arm in arms if arm.examples_per_second is not None]
    if len(known) < 2 or len(known) > MOST_NAMED + 1:
        return ""
    each = ", ".join(f"{arm.examples_per_second.mean:,.0f} with {arm.name}" for arm in known if arm.examples_per_second)
    return f"Examples per second: {each}."


def _limits(arms: Sequence[Arm], numbers: Numbers) -> list[str]:
    limits = []
    for arm in numbers.arms:
        for run in arm.runs:
            if run.status != "finished":
                why = f": {run.reason}" if run.reason else ""
                limits.append(f"{arm.name}, seed {text(run.seed)} {_how(run.status)} at step {run.step:,}{why}.")
    if all(len(arm.runs) == 1 for arm in numbers.arms):
        limits.append("One seed per arm: there is no spread to judge differences by." if len(arms) > 1 else
                      "One seed: another would end elsewhere, by an amount that this page cannot say.")  # fmt: skip
    for group in arms:
        seeds = [str(seed_of(run)) for run in group.runs]
        if len(set(seeds)) < len(seeds):
            limits.append(f"{group.name} holds runs with the same seed, which are not independent.")
    if numbers.part is not None and numbers.part == numbers.chosen_on == "test":
        limits.append("Best accuracies were chosen on the test data themselves, so they are slightly optimistic.")
    if numbers.target is None and len(arms) > 1 and numbers.arms[0].best_accuracy is not None:
        limits.append(
            f"{numbers.arms[0].name} did no better than guessing, so there is no accuracy that it reached to count the "
            "steps to."
        )
    elif len(arms) > 1 and (between := [steps for arm in arms for steps in evaluation_spacing(arm, numbers.part)]):
        limits.append(
            f"Accuracy is known where it was evaluated, every {count(max(between))} steps: how many steps an arm took "
            "is known to that, and so are their ratios."
        )
    if len(arms) == 2 and len(arms[0].settings) > 1:
        limits.append(
            f"The arms differ in {_and(list(arms[0].settings))}: this page cannot say which made the difference."
        )
    limits += [
        f"The arms were not {what}: {consequence}."
        for what, consequence, values in (
            ("trained on the same data", "accuracies are of different tasks", [_of_data(arm) for arm in arms]),
            ("run on the same machine", "times do not compare", [_machine(arm) for arm in arms]),
            ("run by the same version", "a difference may be the version's", [_version(arm) for arm in arms]),
        )
        if len(set(values)) > 1
    ]
    return limits


def _and(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _how(status: str) -> str:
    return {"diverged": "diverged", "interrupted": "was interrupted", "failed": "failed"}.get(status, status)


def _of_data(arm: Arm) -> str:
    settings = settings_of(arm.runs[0])
    return str(settings.get("data", arm.runs[0].config["data"].get("name")))


def _machine(arm: Arm) -> str:
    return str([_environment(arm, key) for key in ("processor", "cores", "threads", "device")])


def _version(arm: Arm) -> str:
    return str([_environment(arm, key) for key in ("batchnorm", "commit", "torch")])


def _environment(arm: Arm, key: str) -> Any:
    return arm.runs[0].environment.get(key)
