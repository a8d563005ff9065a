"""What the catalogue is made of: a right computation cut into named steps, and mistakes that replace a step.

A computation is a table of steps, name to function, run in order on one namespace ``v``: the step ``std`` sets
``v.std`` and may read whatever was set before it. A mistake is a second table with the steps that are wrong. So a
catalogue entry is as long as the mistake itself, and two mistakes together are the union of their tables.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: One line of the computation: reads the namespace, returns the value of its name.
Step = Callable[[Any], Any]
Changes = Mapping[str, Step]

#: What a computation gives: an array per output; None where any value is accepted, because a wrong step before it
#: leaves no single way to go on.
Outputs = dict[str, Any]


@dataclass(frozen=True)
class Mistake:
    """A known mistake: the wrong steps, and what to tell the person who wrote them.

    Attributes
    ----------
    id : str
        Unique in the catalogue, made of the subject and the mistake.
    group : str
        Which of the subject's groups of outputs it spoils.
    title : str
        What the code does wrong, in one line.
    changes : mapping of str to callable
        The steps that are wrong. Empty for a mistake that is known by the group it spoils, not by a value.
    equation : str
        What it should compute; the numbers are those of the derivation.
    why : str
        One sentence: what follows from it.
    fix : tuple of two str
        Two lines of code in the style of the courses.
    """

    id: str
    group: str
    title: str
    changes: Changes
    equation: str
    why: str
    fix: tuple[str, str]


@dataclass(frozen=True)
class Convention:
    """One of several right ways, which the report names.

    Attributes
    ----------
    choice : str
        What is chosen. One convention per choice is in force, and the first listed is the default.
    name : str
        The word by which a file may declare it (``CHECK = {choice: name}``).
    changes : mapping of str to callable
        The steps in which it differs from the default.
    note : str
        What the report says when it is found.
    """

    choice: str
    name: str
    changes: Changes
    note: str


@dataclass(frozen=True)
class Subject:
    """Something that can be checked.

    Attributes
    ----------
    name : str
        Of the subject.
    compute : callable
        Runs the computation with some steps changed, on the inputs, and returns its outputs.
    groups : mapping of str to tuple of str
        Outputs that are judged together, in this order.
    mistakes : tuple of Mistake
        The known ones.
    conventions : tuple of Convention
        The accepted variations.
    tolerances : mapping of str to float
        For outputs that are estimated from random draws: the largest accepted difference.
    """

    name: str
    compute: Callable[[Changes, Mapping[str, Any]], Outputs]
    groups: Mapping[str, tuple[str, ...]]
    mistakes: tuple[Mistake, ...]
    conventions: tuple[Convention, ...] = ()
    tolerances: Mapping[str, float] = field(default_factory=dict)


def run(steps: Mapping[str, Step], changes: Changes, v: SimpleNamespace) -> None:
    """Run the steps in order on the namespace, with the changed ones in place of their own."""
    for name, step in steps.items():
        setattr(v, name, changes.get(name, step)(v))


def anything(_: Any) -> None:
    """Take the place of a step after which any value is accepted."""


def always(value: Any) -> Step:
    """Return a step that gives one value."""
    return lambda _: value
