"""What every figure of the lab has in common: its look, the words that belong to it, its file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from batchnorm.lab.errors import OutputError
from batchnorm.lab.files import reason_of

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.markersize": 4.0,
    "lines.linewidth": 1.6,
}
DPI = 150


@dataclass(frozen=True)
class Picture:
    """A drawn figure with the words that belong to it."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure


def save(picture: Picture, folder: Path) -> Path:
    """Save a picture as PNG.

    Parameters
    ----------
    picture : Picture
        What to save; its name becomes the file's.
    folder : Path
        Made if missing.

    Returns
    -------
    Path

    Raises
    ------
    OutputError
        The disk refuses.
    """
    path = folder / f"{picture.name}.png"
    try:
        folder.mkdir(exist_ok=True)
        with mpl.rc_context(SETTINGS):
            picture.figure.savefig(path, dpi=DPI, format="png", facecolor="white")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason_of(error)}") from error
    return path
