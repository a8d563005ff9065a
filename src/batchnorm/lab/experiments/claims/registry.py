"""Which claims there are: every file of this folder that has a ``CLAIM``."""

import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path

from batchnorm.lab.errors import LabError, meant
from batchnorm.lab.experiments.claims.form import Claim

_FORM = {"form", "registry", "run"}


def names() -> list[str]:
    """Return the names of all claims, in alphabetical order; imports none."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name.replace("_", "-") for name in found if name not in _FORM)


def claim(name: str) -> Claim:
    """Return a claim by its name.

    Parameters
    ----------
    name : str
        As :func:`names` lists it.

    Returns
    -------
    Claim

    Raises
    ------
    LabError
        There is no such claim.
    """
    known = names()
    if name not in known:
        raise LabError(f"{name!r} is no claim{meant(name, known) or '; `batchnorm claims list` shows them'}")
    module = importlib.import_module(f"batchnorm.lab.experiments.claims.{name.replace('-', '_')}")
    made: Claim = module.CLAIM
    assert made.name == name, (made.name, name)
    return made


def chosen(asked: Iterable[str]) -> list[str]:
    """Return the names that are asked for, each once; "all" stands for all of them.

    Parameters
    ----------
    asked : iterable of str
        Names, or "all".

    Returns
    -------
    list of str

    Raises
    ------
    LabError
        None is asked for, or one is given twice.
    """
    asked = list(asked)
    if not asked:
        raise LabError(f"claims run needs at least one name, or all; the names are {', '.join(names())}")
    if len(set(asked)) < len(asked):
        raise LabError(f"names must hold each claim once; got {' '.join(asked)}")
    return names() if asked == ["all"] else asked
