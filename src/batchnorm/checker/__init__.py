"""The checker: find the known mistake that explains the wrong numbers of an implementation.

`check` runs a file in a process of its own, compares what its functions give with the textbook, and searches the
catalogue for the mistake, or the two mistakes, that give exactly the same numbers. ``docs/guides/checker.md`` shows it.

- `model`, `catalogue`: right computations in named steps, and mistakes that replace a step.
- `inputs`: the values that a candidate is compared on.
- `child`, `drivers`, `styles`: in the process of the candidate.
- `runner`: starts it and ends it.
- `diagnose`, `report`: the comparison, and how it reads.
"""

from pathlib import Path

from batchnorm.checker.catalogue import SUBJECTS, mistakes
from batchnorm.checker.diagnose import Difference, Finding, diagnose
from batchnorm.checker.model import Mistake
from batchnorm.checker.report import Report
from batchnorm.checker.runner import Observed, observe

__all__ = ["Difference", "Finding", "Mistake", "Report", "check", "mistakes"]

TIMEOUT = 20.0


def check(path: str | Path, *, timeout: float = TIMEOUT) -> Report:
    """Check the implementations in a Python file, and name the known mistakes in them.

    Parameters
    ----------
    path : str or Path
        The file. It is run, in a process of its own, with the rights of the caller: do not check what you would not
        run. Which functions are recognised, and how to name others, is said in ``docs/guides/checker.md``.
    timeout : float, default=20
        Seconds that loading the file, and each of its functions, may take.

    Returns
    -------
    Report
        Prints as text; ``ok`` and ``mistakes`` are for programs.

    Raises
    ------
    ValueError
        There is no such file, it is not a ``.py`` file, or the time limit is not positive.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"FILE must be a Python file, but {path} is not there. Try the path of your own .py file.")
    if path.suffix != ".py":
        raise ValueError(f"FILE must be a Python file, but is {path.name}. Try to export a notebook as .py.")
    if not timeout > 0:
        raise ValueError(f"the time limit must be positive, but is {timeout}. Try {TIMEOUT:g}.")
    observed = observe(path, timeout)
    if observed.failure is None and not observed.labels:
        remarks = f" ({'; '.join(observed.remarks)})" if observed.remarks else ""
        observed.failure = (
            f"it has no function that is known by name{remarks}. Try names like batchnorm_forward, dropout_forward, "
            "adam, kaiming_initializer or l2_penalty, or name yours in CHECK = {'batchnorm_forward': my_function}."
        )
    if observed.failure is not None:
        return Report(path, failure=observed.failure)
    return Report(path, tuple(_findings(observed)), (*observed.remarks, *_undeclarable(observed.declared)))


def _undeclarable(declared: dict[str, str]) -> list[str]:
    """Say which declarations of a file are not understood."""
    known = {"tensors": {"numpy", "torch"}}
    for subject in SUBJECTS.values():
        for convention in subject.conventions:
            known.setdefault(convention.choice, set()).add(convention.name)
    unknown = {choice: name for choice, name in declared.items() if name not in known.get(choice, ())}
    return [
        f"CHECK declares {choice!r}: {name!r}, which is not understood and ignored; "
        + (
            f"try one of {', '.join(sorted(known[choice]))}"
            if choice in known
            else f"known are {', '.join(sorted(known))}"
        )
        for choice, name in unknown.items()
    ]


def _findings(observed: Observed) -> list[Finding]:
    findings: list[Finding] = []
    for name, result in observed.results.items():
        labels, again = observed.labels[name], name == "batchnorm_alt"
        subject = SUBJECTS["batchnorm" if again else name]
        found = diagnose(subject, dict(result.outputs), result.facts, observed.declared, labels)
        if again:  # its forward has been judged with the other backward
            found = [finding for finding in found if finding.function == labels["backward"]]
        if result.error is not None:
            found = [finding for finding in found if finding.kind != "right"]
            found.insert(0, Finding(labels.get("forward") or next(iter(labels.values())), "error", error=result.error))
        findings += found
    return findings
