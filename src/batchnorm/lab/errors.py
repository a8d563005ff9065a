"""What can go wrong for a user of the lab: one message each, which the command line prints as it is.

A message says what must hold, what came, and what to try. Anything else that is raised is a bug of ours.
"""

import difflib
import itertools
from collections.abc import Iterable


class LabError(ValueError):
    """An input of the lab that cannot work: the base of all errors a user can cause."""


class DataError(LabError):
    """A data file that is missing, damaged, or cannot be downloaded."""


class OutputError(LabError):
    """A run directory that cannot be written, or holds what cannot be read."""


def meant(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a hint to the nearest known word, as "; did you mean 'lr'?"; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=5)

    def likeness(one: str) -> tuple[float, int]:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(word, one, strict=False))
        return difflib.SequenceMatcher(None, word, one).ratio(), sum(1 for _ in same)

    return f"; did you mean {prefix + max(near, key=likeness)!r}?" if near else ""
