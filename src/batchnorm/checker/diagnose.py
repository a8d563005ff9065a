"""Compare what a candidate gave with the reference, and find the known mistakes that explain the difference."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from batchnorm.checker.model import Changes, Convention, Mistake, Outputs, Subject

#: Largest difference to the reference, relative to its largest value. The inputs are tens of values of moderate size:
#: a right float64 computation in another order stays below 1e-13, and no two entries of the catalogue are closer than
#: 1e-6. float32 keeps 7 digits, of which a backward loses one or two.
RTOL = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2}
#: Of values near 1e6 six digits after the point are left in float64 when they are centred; a one-pass variance there is
#: wrong by 1e-4 and more.
RTOL_FAR = 1e-7
#: Central differences of a float64 function.
RTOL_NUMERIC = 1e-6


@dataclass(frozen=True)
class Difference:
    """Where an output is wrong first.

    Attributes
    ----------
    output : str
        Its name.
    index : tuple of int, or None
        The first wrong index; None if the shape is wrong.
    got, expected : str
        The values there, or the shapes.
    wrong, total : int
        How many values differ, and how many there are.
    """

    output: str
    index: tuple[int, ...] | None
    got: str
    expected: str
    wrong: int
    total: int


@dataclass(frozen=True)
class Finding:
    """What is said about one function.

    Attributes
    ----------
    function : str
        Its name in the file.
    kind : {'right', 'mistake', 'unknown', 'error', 'follows', 'waits'}
        'follows': a backward that is the gradient of its own wrong forward; 'waits': one that cannot be judged yet.
    mistakes : tuple of Mistake
        The one that explains the difference, or the two that do so together.
    differences : tuple of Difference
        What is wrong, output by output.
    notes : tuple of str
        Conventions that were recognised, and other remarks.
    error : str or None
        What stopped the function.
    """

    function: str
    kind: Literal["right", "mistake", "unknown", "error", "follows", "waits"]
    mistakes: tuple[Mistake, ...] = ()
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None


def difference(subject: Subject, output: str, got: Any, expected: Any) -> Difference | None:
    """Return where an output is wrong first, or None if it is right."""
    if expected is None:
        return None
    expected = np.asarray(expected, dtype=np.float64)
    rtol = RTOL_FAR if output == "out_far" else RTOL.get(str(got.dtype), RTOL["float64"])
    got = got.astype(np.float64)
    if got.shape != expected.shape:
        if got.size != expected.size or _without_ones(got.shape) != _without_ones(expected.shape):
            return Difference(output, None, f"shape {got.shape}", f"shape {expected.shape}", got.size, expected.size)
        got = got.reshape(expected.shape)
    finite = np.abs(expected[np.isfinite(expected)])
    size = np.max(finite, initial=0.0)
    atol = subject.tolerances[output] * max(size, 1.0) if output in subject.tolerances else rtol * size
    wrong = ~np.isclose(got, expected, rtol=0, atol=atol, equal_nan=True)
    if not wrong.any():
        return None
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    return Difference(output, index, _number(got[index]), _number(expected[index]), int(wrong.sum()), expected.size)


def differences(subject: Subject, got: Outputs, expected: Outputs, names: Iterable[str]) -> tuple[Difference, ...]:
    """Return where each of the named outputs is wrong first, for those that are."""
    found = (difference(subject, name, got[name], expected[name]) for name in names if name in got)
    return tuple(one for one in found if one is not None)


def diagnose(
    subject: Subject,
    got: Outputs,
    facts: Mapping[str, Any],
    declared: Mapping[str, str],
    labels: Mapping[str, str],
) -> list[Finding]:
    """Explain the outputs of a candidate, one finding per function and more where there is more to say.

    Parameters
    ----------
    subject : Subject
        What it should be.
    got : dict of str to ndarray
        Its outputs; what it did not get to is left out and not judged.
    facts : mapping
        What the child noticed.
    declared : mapping of str to str
        Conventions by choice.
    labels : mapping of str to str
        Names of its functions by role.

    Returns
    -------
    list of Finding
    """
    got = _of_one_precision(got)
    main = labels.get("forward") or next(iter(labels.values()))
    backward = labels.get("backward", main)
    findings: list[Finding] = []
    choices = list(_accepted(subject, got, facts, declared))
    first_group_right = True
    explained: Changes = {}
    for number, (group, names) in enumerate(subject.groups.items()):
        present = [name for name in names if name in got]
        if not present or (group == "digits" and not first_group_right):
            continue
        outcomes = [
            (differences(subject, got, subject.compute(_merged(choice), facts), present), choice) for choice in choices
        ]
        wrong, _ = min(outcomes, key=lambda outcome: len(outcome[0]))
        function = backward if group == "backward" else main
        if group == "inputs" and wrong and wrong[0].output == "dout_after":
            function = backward
        if not wrong:
            if number == 0:
                choices = [option for outcome, option in outcomes if not outcome]
            if group not in ("digits", "inputs"):
                findings.append(Finding(function, "right", notes=_notes(subject, choices, got) if number == 0 else ()))
            continue
        if number == 0:
            first_group_right = False
        if group == "backward" and not first_group_right:
            findings.append(_backward_of_wrong_forward(subject, got, facts, choices, explained, function, wrong))
            continue
        likely = [option for outcome, option in outcomes if len(outcome) == len(wrong)]
        mistakes = explain(subject, group, got, facts, choices, likely, present)
        if number == 0 and mistakes:
            explained = {key: step for mistake in mistakes for key, step in mistake.changes.items()}
        kind: Literal["mistake", "unknown"] = "mistake" if mistakes else "unknown"
        if group in ("digits", "inputs"):  # the function itself is right, and was said to be
            findings = [finding for finding in findings if (finding.function, finding.kind) != (function, "right")]
        findings.append(Finding(function, kind, mistakes, wrong))
    return findings


def explain(
    subject: Subject,
    group: str,
    got: Outputs,
    facts: Mapping[str, Any],
    choices: list[tuple[Convention, ...]],
    likely: list[tuple[Convention, ...]],
    present: list[str],
) -> tuple[Mistake, ...]:
    """Return the known mistake that gives the same outputs, or the two that do so together, or nothing.

    Pairs are many, so they are tried under the likely conventions only: those that leave the fewest outputs wrong.
    """
    known = [mistake for mistake in subject.mistakes if mistake.group == group]
    exact = [mistake for mistake in known if mistake.changes]
    vague: set[str] = set()
    for mistake, choice in itertools.product(exact, choices):
        outputs = subject.compute(_merged(choice) | dict(mistake.changes), facts)
        if not differences(subject, got, outputs, present):
            return (mistake,)
        if any(outputs[name] is None for name in present):
            vague.add(mistake.id)
    for mistake in known:
        if not mistake.changes:
            return (mistake,)
    certain = [mistake for mistake in exact if mistake.id not in vague]
    for one, other in itertools.combinations(certain, 2):
        if one.changes.keys() & other.changes.keys():
            continue
        for choice in likely:
            outputs = subject.compute(_merged(choice) | dict(one.changes) | dict(other.changes), facts)
            if not differences(subject, got, outputs, present):
                return (one, other)
    return ()


def _backward_of_wrong_forward(
    subject: Subject,
    got: Outputs,
    facts: Mapping[str, Any],
    choices: list[tuple[Convention, ...]],
    explained: Changes,
    function: str,
    wrong: tuple[Difference, ...],
) -> Finding:
    """Judge a backward whose forward is wrong: by the candidate's own forward, then by the catalogue."""
    own = {name: got[f"own_{name}"] for name in ("dx", "dgamma", "dbeta") if f"own_{name}" in got}
    if own and all(
        got[name].shape == slope.shape
        and np.allclose(got[name], slope, rtol=0, atol=RTOL_NUMERIC * np.max(np.abs(slope)))
        for name, slope in own.items()
        if name in got
    ):
        return Finding(function, "follows")
    names = [name for name in subject.groups["backward"] if name in got]
    follows = (subject.compute(_merged(choice) | dict(explained), facts) for choice in choices if explained)
    if any(not differences(subject, got, outputs, names) for outputs in follows):
        return Finding(function, "follows")
    for mistake in subject.mistakes:
        if mistake.group == "backward" and explained:
            for choice in choices:
                outputs = subject.compute(_merged(choice) | dict(explained) | dict(mistake.changes), facts)
                if not differences(subject, got, outputs, names):
                    return Finding(function, "mistake", (mistake,), wrong)
    return Finding(function, "waits")


def _accepted(
    subject: Subject, got: Outputs, facts: Mapping[str, Any], declared: Mapping[str, str]
) -> Iterator[tuple[Convention, ...]]:
    """Yield every accepted combination of conventions, one per choice."""
    options: dict[str, list[Convention]] = {}
    for convention in subject.conventions:
        options.setdefault(convention.choice, []).append(convention)
    for choice, conventions in options.items():
        wanted = declared.get(choice)
        if choice == "momentum" and wanted is None and not np.any(got.get("default_keeps_old", 0.0)):
            wanted = "old"  # torch's word is accepted if the function's own default shows that it is meant
        if choice == "eps" and not facts.get("own_eps"):
            wanted = "given"
        if choice == "dropout":
            named = "keep_prob" if facts.get("reads_keep_prob") else None
            wanted = named or wanted
            if wanted is None:
                conventions = [convention for convention in conventions if convention.name != "keep_prob"]
        if choice == "penalty" and facts.get("m") == 1.0:  # it has no m to divide by
            conventions = [convention for convention in conventions if not convention.name.endswith("m")]
        options[choice] = [convention for convention in conventions if wanted in (None, convention.name)] or conventions
    return itertools.product(*options.values())


def _notes(subject: Subject, choices: list[tuple[Convention, ...]], got: Outputs) -> tuple[str, ...]:
    """Name the conventions in use; none where several fit, and the odd shapes."""
    notes = [choice.note for choice in choices[0] if choice.note and len(choices) == 1]
    expected = subject.compute(_merged(choices[0]), {})
    notes += [
        f"{name} has shape {value.shape}; {np.shape(expected[name])} is expected, and broadcasting hides it"
        for name, value in got.items()
        if expected.get(name) is not None and value.shape != np.shape(expected[name])
    ]
    single = sorted({str(value.dtype) for value in got.values()} & {"float32", "float16"})
    if not subject.tolerances:
        notes += [f"computes in {dtype}; judged to its digits" for dtype in single]
    return tuple(notes)


def _of_one_precision(got: Outputs) -> Outputs:
    """Return the outputs in the coarsest type that one of them has: the others went through it."""
    coarsest = min((value.dtype for value in got.values()), key=lambda dtype: dtype.itemsize, default=np.dtype("f8"))
    return {name: value.astype(coarsest) for name, value in got.items()}


def _merged(choice: tuple[Convention, ...]) -> dict[str, Any]:
    return {key: step for convention in choice for key, step in convention.changes.items()}


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _number(value: Any) -> str:
    return f"{float(value):.6g}"
