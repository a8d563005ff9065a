"""`Diagnosis`: what was found, as data, as a table for the terminal, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["cause", "not batch normalization", "undecided"]

#: Channels of a layer that are kept for pictures, at most.
CHANNELS = 256


@dataclass(frozen=True)
class Finding:
    """One cause that the evidence names.

    Attributes
    ----------
    cause, title : str
        Identifier and sentence.
    strength : float
        How specific the evidence is, from 0 to 1.
    layers : tuple of str
        The layers at fault; empty: all, or none in particular.
    evidence : tuple of str
        The numbers, in sentences.
    fix, confirm : str
        A call or line of code; what would confirm the cause.
    """

    cause: str
    title: str
    strength: float
    layers: tuple[str, ...]
    evidence: tuple[str, ...]
    fix: str
    confirm: str


@dataclass(frozen=True)
class LayerRow:
    """One layer, in the order of the forward pass.

    Attributes
    ----------
    name, kind, state : str
        Path, class, and in a few words what it does in evaluation.
    values : int
        Values per channel in a batch.
    shift, ratio : float or None
        Difference of means in deviations; median of measured over running variance.
    share, alone, last : float or None
        Share of the gap over two orders; if this layer alone gets the other statistics; if all others do.
    channels : dict of str to list of float
        Running and measured mean and variance of the first channels.
    """

    name: str
    kind: str
    state: str
    values: int
    shift: float | None
    ratio: float | None
    share: float | None
    alone: float | None
    last: float | None
    channels: dict[str, list[float]]


@dataclass(frozen=True)
class ProbeRow:
    """One probe: its letter, what it did, what it found."""

    probe: str
    what: str
    result: str


@dataclass(frozen=True)
class Diagnosis:
    """The answer to the question why eval() is worse than train().

    Attributes
    ----------
    verdict : str
        "cause", "not batch normalization" or "undecided".
    headline : str
        The answer in a sentence.
    causes : tuple of Finding
        The named causes, the strongest first.
    weaker : tuple of Finding
        Others that the evidence does not exclude.
    gap : float or None
        Loss as loaded minus the smaller of those with batch statistics and recalibrated.
    losses, metrics : dict of str to float
        Of the passes "as loaded", "batch statistics" and "recalibrated".
    measure : str
        What the losses are.
    closed_by : str
        The statistics that the shares refer to: "recalibrated" or "batch"; empty without shares.
    layers : tuple of LayerRow
        In the order of the forward pass.
    probes : tuple of ProbeRow
        What was done.
    unseen : tuple of str
        What could not be seen, and what to pass.
    model : str
        Class of the model.
    samples, batches : int
        What was read.
    cost : float
        Forwards of samples over the number of samples: passes over the data.
    """

    verdict: Verdict
    headline: str
    causes: tuple[Finding, ...]
    weaker: tuple[Finding, ...]
    gap: float | None
    losses: dict[str, float]
    metrics: dict[str, float]
    measure: str
    closed_by: str
    layers: tuple[LayerRow, ...]
    probes: tuple[ProbeRow, ...]
    unseen: tuple[str, ...]
    model: str
    samples: int
    batches: int
    cost: float

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as values that JSON can hold; numbers that are not finite are None."""
        found: dict[str, Any] = _jsonable(asdict(self))
        return found

    def save(self, path: Path | str) -> Path:
        """Write the diagnosis as JSON, from which ``batchnorm report`` makes the page.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        Path
            The file.
        """
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def __str__(self) -> str:
        lines = [self.headline, ""]
        if self.losses:
            rows = [["", self.measure, *(["metric"] if self.metrics else [])]]
            for name, loss in self.losses.items():
                rows.append([name, f"{loss:.5g}", *([f"{self.metrics[name]:.5g}"] if self.metrics else [])])
            lines += [*_table(rows), ""]
        for number, finding in enumerate(self.causes, 1):
            where = f"  [{', '.join(finding.layers[:4])}{', ...' if len(finding.layers) > 4 else ''}]"
            lines.append(f"{number}. {finding.title}{where if finding.layers else ''}")
            lines += [f"   - {sentence}" for sentence in finding.evidence]
            lines += [f"   fix: {finding.fix}", f"   confirm: {finding.confirm}", ""]
        if self.weaker:
            lines += [f"Not excluded: {'; '.join(f.title.rstrip('.') for f in self.weaker)}.", ""]
        shown = [row for row in self.layers if row.share is not None]
        if shown:
            shown = sorted(shown, key=lambda row: -abs(row.share or 0))[:8]
            rows = [["layer", "share of the gap", "alone", "if all others", "mean off by", "variance ratio"]]
            rows += [
                [row.name or "(the model)", *(_percent(v) for v in (row.share, row.alone, row.last)),
                 _number(row.shift), _number(row.ratio)]
                for row in shown
            ]  # fmt: skip
            lines += [*_table(rows), ""]
        lines += [f"Not seen: {sentence}" for sentence in self.unseen]
        return "\n".join(line.rstrip() for line in lines).rstrip()


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{round(100 * value):d} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
