"""What every page of the lab has in common: its template, its pictures, its way to write a value."""

import base64
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from batchnorm.lab.files import jsonable
from batchnorm.lab.plots import DPI, Picture, save

COLORS = 128  # of an embedded picture
SCRIPTS = (
    "charts.js",
    "layers.js",
    "surface.js",
    "training.js",
)  # one drawing, what uses it, and what starts everything


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture as a page embeds it: its file in base64, and its size in pixels."""

    picture: Picture
    data: str
    width: int
    height: int


def embed(pictures: Iterable[Picture], folder: Path) -> list[EmbeddedPicture]:
    """Save pictures, and embed those that have a caption.

    Parameters
    ----------
    pictures : iterable of Picture
        What was drawn.
    folder : Path
        Where the files go.

    Returns
    -------
    list of EmbeddedPicture

    Raises
    ------
    OutputError
        The disk refuses.
    """
    embedded = []
    for picture in pictures:
        file = save(picture, folder)
        if picture.caption:
            width, height = (round(DPI * inches) for inches in picture.figure.get_size_inches())
            embedded.append(EmbeddedPicture(picture, base64.b64encode(_small(file)).decode(), width, height))
    return embedded


def _small(file: Path) -> bytes:
    """Give a PNG with a palette of its own: a chart has few colours, and the page carries a third of the bytes."""
    made = io.BytesIO()
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(COLORS).save(made, format="PNG", optimize=True)
    return made.getvalue()


def fill(template: str, **values: Any) -> str:
    """Fill a template of the lab.

    Parameters
    ----------
    template : str
        Name of its file.
    **values : object
        What it asks for.

    Returns
    -------
    str
        HTML.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("batchnorm.lab"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(template).render(**values)


@dataclass(frozen=True)
class Script:
    """A script as a page carries it: its text, the hash that allows it and no other to run, and the data it draws."""

    text: Markup
    allowed: str
    data: Markup


def script(data: Any) -> Script:
    """Put the charts' script and the data that it draws into the form that a page carries.

    Parameters
    ----------
    data : object
        Values that JSON can hold, and arrays.

    Returns
    -------
    Script
    """
    parts = [files("batchnorm.lab").joinpath("templates", name).read_text(encoding="utf-8") for name in SCRIPTS]
    code = '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    # Inside a script element only "<" could end it early; JSON may write it as an escape.
    carried = json.dumps(jsonable(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Script(Markup(code), f"; script-src 'sha256-{digest}'", Markup(carried))  # noqa: S704  # ours, and escaped
