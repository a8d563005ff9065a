"""What a cause is, what its rule finds, and what rules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batchnorm.probes.diagnosis.evidence import Evidence
from batchnorm.probes.diagnosis.static import Facts

#: A cause is named from this strength on.
NAMED = 0.6
#: Values per channel that are few.
FEW = 32
#: Variance of batch means, over that of independent samples, that is too much for chance.
CORRELATED = 4.0
#: Purity of the classes in a batch that no shuffling gives.
SORTED = 0.5
#: Distance between running and measured statistics (deviations, or logarithm of variances) that is large.
FAR = 0.5


@dataclass(frozen=True)
class Found:
    """What a rule found.

    Attributes
    ----------
    strength : float
        How specific the evidence is, from 0 to 1.
    evidence : tuple of str
        The numbers, in sentences.
    layers : tuple of str
        The layers at fault, where they are not all.
    """

    strength: float
    evidence: tuple[str, ...]
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cause:
    """One reason why eval() is worse than train().

    Attributes
    ----------
    name, title : str
        Identifier, and a sentence.
    signature : str
        What tells it from others.
    fix : str
        A call of this package, or a line of code.
    confirm : str
        What would confirm it.
    rule : callable
        Reads the evidence; None: it is not this.
    general : bool
        Whether it is named only where no other is.
    """

    name: str
    title: str
    signature: str
    fix: str
    confirm: str
    rule: Callable[[Evidence], Found | None]
    general: bool = False


def names_of(facts: Sequence[Facts]) -> tuple[str, ...]:
    """Return the names of layers."""
    return tuple(f.name for f in facts)


def some_of(names: Sequence[str]) -> str:
    """Return the first names, and how many there are beyond, in words."""
    shown = ", ".join(name or "(the model)" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def losses_of(e: Evidence) -> tuple[str, ...]:
    """Return the losses as a sentence; nothing where none were measured."""
    if e.passes is None:
        return ()
    p = e.passes
    return (
        (
            f"loss {p.as_loaded.loss:.4g} as loaded, {p.recalibrated.loss:.4g} recalibrated, {p.batch.loss:.4g} "
            "with batch statistics"
        ),
    )


def at_start(e: Evidence) -> list[Facts]:
    """Return the layers whose running statistics are at the start values."""
    return [f for f in e.tracked if f.at_start]


def micro_batches(e: Evidence) -> tuple[int, int] | None:
    """Return calls per optimizer step and samples per call, where a batch is given in parts."""
    step = e.step
    if step is None or step.steps == 0 or len(step.samples) < 2:
        return None
    parts = sum(step.samples) <= step.given and max(step.samples) < step.given
    return (round(len(step.samples) / step.steps), max(step.samples)) if parts else None
