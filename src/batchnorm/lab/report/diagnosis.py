"""The page of a diagnosis, from its JSON: answer, causes, a strip of layers, statistics by channel, the probes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from batchnorm.lab.files import read_mapping, write_text
from batchnorm.lab.page import fill

#: The file of a diagnosis in its directory, and its page.
FILE, PAGE = "diagnosis.json", "diagnosis.html"
#: Layers whose channels are drawn, at most.
DRAWN = 6
WIDTH, HEIGHT, LEFT, BOTTOM = 300, 170, 44, 22


@dataclass(frozen=True)
class Bar:
    """One layer in the strip: its name, share in words, and width and side of its bar in percent."""

    name: str
    state: str
    words: str
    width: float
    negative: bool
    alone: str
    last: str
    shift: str
    ratio: str
    fault: bool


@dataclass(frozen=True)
class Picture:
    """Running against measured statistics of one layer, as drawings."""

    name: str
    means: Markup
    deviations: Markup


def make_diagnosis_page(folder: Path) -> Path:
    """Make diagnosis.html from diagnosis.json in the same directory.

    Parameters
    ----------
    folder : Path
        Directory with a diagnosis.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    OutputError
        The file cannot be read or is damaged, or the page cannot be written.
    """
    found = read_mapping(folder / FILE, ("verdict", "headline", "causes", "layers", "probes"))
    page = folder / PAGE
    write_text(page, page_of(found))
    return page


def page_of(found: dict[str, Any]) -> str:
    """Return the page of a diagnosis.

    Parameters
    ----------
    found : dict
        As `Diagnosis.to_dict` returns it.

    Returns
    -------
    str
        HTML without scripts, that needs no other file.
    """
    at_fault = found["causes"][0]["layers"] if found["causes"] else []
    shared = [layer for layer in found["layers"] if layer["share"] is not None]
    return fill(
        "diagnosis.html.j2",
        found=found,
        losses=[(name, short(loss), short(found["metrics"].get(name))) for name, loss in found["losses"].items()],
        gap=short(found["gap"]),
        bars=_bars(found["layers"], at_fault),
        attributed=bool(shared),
        pictures=[_picture(layer) for layer in _worst(found["layers"], at_fault)],
    )


def short(value: float | None) -> str:
    """Write a number with three or four digits; "not finite" for None."""
    return "not finite" if value is None else f"{value:.4g}"


def _bars(layers: list[dict[str, Any]], at_fault: list[str]) -> list[Bar]:
    shares = [layer["share"] for layer in layers]
    numbers = [abs(share) for share in shares if share is not None]
    largest = max(numbers, default=0.0) or 1.0
    return [
        Bar(
            layer["name"] or "(the model)",
            layer["state"],
            _percent(share),
            0.0 if share is None else 100 * abs(share) / largest,
            share is not None and share < 0,
            _percent(layer["alone"]),
            _percent(layer["last"]),
            _blank(layer["shift"]),
            _blank(layer["ratio"]),
            layer["name"] in at_fault,
        )
        for layer, share in zip(layers, shares, strict=True)
    ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{round(100 * value):d}%"


def _blank(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _worst(layers: list[dict[str, Any]], at_fault: list[str]) -> list[dict[str, Any]]:
    """Return the layers to draw: those at fault, of large share, far off; in the order of the forward pass."""
    drawable = [layer for layer in layers if layer["channels"]]

    def rank(layer: dict[str, Any]) -> tuple[bool, float]:
        ratio = layer["ratio"]
        off = (layer["shift"] or 0.0) + (abs(math.log(ratio)) if ratio and ratio > 0 else 0.0)
        return layer["name"] not in at_fault, -(layer["share"] or 0.0) - 0.1 * min(off, 10.0)

    chosen = sorted(drawable, key=rank)[:DRAWN]
    return [layer for layer in drawable if layer in chosen]


def _picture(layer: dict[str, Any]) -> Picture:
    channels = layer["channels"]

    def roots(values: list[float | None]) -> list[float | None]:
        return [None if v is None or v < 0 else math.sqrt(v) for v in values]

    name = layer["name"] or "(the model)"
    return Picture(
        name,
        _scatter(channels["running_mean"], channels["mean"], f"{name}: running mean against measured mean"),
        _scatter(
            roots(channels["running_var"]),
            roots(channels["var"]),
            f"{name}: running deviation against measured deviation",
        ),
    )


def _scatter(running: list[float | None], measured: list[float | None], title: str) -> Markup:
    """Draw one point per channel, and the line on which both are equal."""
    points = [(x, y) for x, y in zip(measured, running, strict=True) if x is not None and y is not None]
    lost = len(running) - len(points)
    x_low, x_high = _range([x for x, _ in points])
    y_low, y_high = _range([y for _, y in points])
    right, top = WIDTH - 8, 8
    base = HEIGHT - BOTTOM - 12

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (right - LEFT)

    def py(y: float) -> float:
        return base - (y - y_low) / (y_high - y_low) * (base - top)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{Markup.escape(title)}">',
        f'<path class="axis" d="M{LEFT},{top}V{base}H{right}"/>',
    ]
    low, high = max(x_low, y_low), min(x_high, y_high)
    if low < high:
        parts.append(f'<path class="same" d="M{px(low):.1f},{py(low):.1f}L{px(high):.1f},{py(high):.1f}"/>')
    parts += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.6"/>' for x, y in points]
    labels = (
        (LEFT, base + 13, "start", f"{x_low:.3g}"),
        (right, base + 13, "end", f"{x_high:.3g}"),
        (LEFT - 4, base, "end", f"{y_low:.3g}"),
        (LEFT - 4, top + 9, "end", f"{y_high:.3g}"),
        ((LEFT + right) / 2, HEIGHT - 4, "middle", "measured"),
        (LEFT + 6, top + 9, "start", f"running{f' ({lost} not finite)' if lost else ''}"),
    )
    parts += [f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{at}">{words}</text>' for x, y, at, words in labels]
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704  # numbers, and a name that is escaped


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        low, high = low - abs(low) * 0.1 - 1e-3, high + abs(high) * 0.1 + 1e-3
    rest = 0.05 * (high - low)
    return low - rest, high + rest
