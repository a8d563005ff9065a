"""What ``batchnorm claims`` is asked for: frozen dataclasses, which are also its command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from batchnorm.lab.errors import LabError

ClaimName = Literal["activation-statistics", "optimizers", "whitening", "regularizers"]
LEAST_UNITS = 16


@dataclass(frozen=True)
class ListClaims:
    """List the claims: name, sentence, where it comes from, and whether a rule decides if it holds."""


@dataclass(frozen=True)
class RunClaims:
    """Run the experiment of each claim that is named, into a run directory with records, figures and a page.

    Exit codes: 0 every claim with a pass rule holds; 1 one of them holds in part or not at all; 2 bad input; 130
    interrupted, and the records so far are kept.
    """

    names: tyro.conf.Positional[tuple[ClaimName, ...]]
    """Claims to run, one after the other."""

    quick: bool = False
    """Small sizes and few steps: seconds, to see the page. The verdict is then that of the small experiment."""

    seeds: int | None = None
    """Number of seeds, 0 to seeds - 1; for optimizers, of starting points. None: 3 for activation-statistics, 20 for
    optimizers, 5 for whitening and regularizers; fewer with --quick."""

    units: int | None = None
    """Units of each layer in activation-statistics. None: 4096 as in the source, 256 with --quick. With fewer units the
    Gaussian deviations grow, so that a layer multiplies its signal by the same factor."""

    data: Path | None = None
    """Two-class points for regularizers, a .npz or .mat file with X, y, Xval, yval or Xtrain, ytrain, Xtest, ytest.
    None: generated points."""

    out: Path | None = None
    """Run directory, new or empty; with several claims, where their directories go. None: runs/claim-NAME-TIME."""

    def __post_init__(self) -> None:
        """Check every field; nothing behind this border checks again."""
        if not self.names:
            raise LabError(f"claims run needs at least one name, of {', '.join(get_args(ClaimName))}")
        for name in self.names:
            if name not in get_args(ClaimName):
                raise LabError(f"names must be among {', '.join(get_args(ClaimName))}; got {name!r}")
        if len(set(self.names)) < len(self.names):
            raise LabError(f"names must hold each claim once; got {' '.join(self.names)}")
        for field, least in {"seeds": 1, "units": LEAST_UNITS}.items():
            value = getattr(self, field)
            if value is not None and value < least:
                raise LabError(f"{field} must be at least {least}; got {value}")
        for field, owner in {"units": "activation-statistics", "data": "regularizers"}.items():
            if getattr(self, field) is not None and owner not in self.names:
                raise LabError(f"{field} belongs to the claim {owner}, which is not among the names; leave it out")


@dataclass(frozen=True)
class ClaimsConfig:
    """Claims of papers and course notes, each with an experiment: list them, or run some."""

    action: Annotated[ListClaims, tyro.conf.subcommand("list")] | Annotated[RunClaims, tyro.conf.subcommand("run")]
    """What to do."""
