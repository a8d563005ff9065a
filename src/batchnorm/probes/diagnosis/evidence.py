"""All that the probes found, in the numbers by which causes are told apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from batchnorm.probes.diagnosis.passes import Passes
from batchnorm.probes.diagnosis.static import Facts, Static
from batchnorm.probes.diagnosis.stepping import Ranks, Watched


@dataclass
class Sides:
    """What the probes on held batches found; None where they could not be run.

    Attributes
    ----------
    mixes : str or None
        The first module whose output for one sample depends on its companions; empty if there is none.
    mixes_normalization : bool
        Whether that module is a batch normalization.
    purity : float or None
        1 minus the entropy of the classes within a batch over that of all.
    ordered, shuffled : float or None
        Loss with batch statistics, in the loader's order and shuffled.
    joined : float or None
        Loss with batch statistics of all held samples as one batch.
    apart : float or None
        The same samples in the loader's batches.
    dropped : dict of str to float
        Variance of a layer's input with dropout on, over off.
    eps : dict of float to float
        Loss on held batches with another eps.
    at_own_eps : float or None
        Loss on held batches as loaded.
    valid : float
        Share of positions that are not padding.
    silent : dict of str to Tensor
        What the first layer is given for silence, channel by channel.
    """

    mixes: str | None = None
    mixes_normalization: bool = False
    purity: float | None = None
    ordered: float | None = None
    shuffled: float | None = None
    joined: float | None = None
    apart: float | None = None
    dropped: dict[str, float] = field(default_factory=dict)
    eps: dict[float, float] = field(default_factory=dict)
    at_own_eps: float | None = None
    valid: float = 1.0
    silent: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Running statistics of one layer against those of its inputs.

    Attributes
    ----------
    shift : float
        Root mean square over channels of the difference of means, in running or measured deviations, the larger.
    ratio : float
        Median over channels of measured over running variance.
    mean, var, running_mean, running_var : Tensor of shape (C,)
        In float64; ``var`` is unbiased.
    """

    shift: float
    ratio: float
    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor

    @property
    def distance(self) -> float:
        """Both differences in one number."""
        moved = abs(math.log(self.ratio)) if self.ratio > 0 and math.isfinite(self.ratio) else 0.0
        return self.shift + moved


@dataclass
class Evidence:
    """What rules read.

    Attributes
    ----------
    static : Static
        Probe S.
    passes : Passes or None
        Probes A, B and C; None without a loader.
    sides : Sides
        Probes on held batches.
    step, validation : Watched or None
        Probe W, of a training step and of a validation pass.
    ranks : Ranks or None
        Comparison of processes.
    differs : str or None
        The first module whose output differs from that of a reference; empty if none does.
    running : dict of str to tuple of Tensor
        Running mean and variance of each layer as loaded.
    remainder : int or None
        Samples that the last batch of a loader holds, if it says so.
    """

    static: Static
    passes: Passes | None = None
    sides: Sides = field(default_factory=Sides)
    step: Watched | None = None
    validation: Watched | None = None
    ranks: Ranks | None = None
    differs: str | None = None
    running: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    remainder: int | None = None

    @cached_property
    def facts(self) -> list[Facts]:
        """Facts in the order of the forward pass, as far as it is known."""
        places = {name: i for i, name in enumerate(self.passes.seen)} if self.passes else {}
        return sorted(self.static.facts, key=lambda f: places.get(f.name, len(places)))

    @cached_property
    def tracked(self) -> list[Facts]:
        """Facts of layers with running statistics."""
        return [f for f in self.facts if f.tracks]

    @cached_property
    def moving(self) -> list[Facts]:
        """Facts of layers whose running statistics training updates."""
        return [f for f in self.tracked if not f.frozen]

    @property
    def buffers_bad(self) -> bool:
        """Whether evaluation with recalibrated statistics is better than as loaded."""
        return self.passes is not None and self.passes.as_loaded.worse_than(self.passes.recalibrated)

    @property
    def batch_bad(self) -> bool:
        """Whether batch statistics are better than recalibrated ones, and as loaded: a dependence on the batch."""
        p = self.passes
        return p is not None and p.as_loaded.worse_than(p.batch) and p.recalibrated.worse_than(p.batch)

    @property
    def gap(self) -> bool:
        """Whether any other statistics are better than those that are loaded."""
        return self.buffers_bad or (self.passes is not None and self.passes.as_loaded.worse_than(self.passes.batch))

    @cached_property
    def compared(self) -> dict[str, Comparison]:
        """Running against measured statistics with batch statistics before, in the order of the forward pass."""
        return self._compared("seen")

    @cached_property
    def compared_as_loaded(self) -> dict[str, Comparison]:
        """The same, each layer after others as loaded."""
        return self._compared("seen_as_loaded")

    def _compared(self, which: str) -> dict[str, Comparison]:
        if self.passes is None:
            return {}
        found = {}
        for name, seen in getattr(self.passes, which).items():
            if name not in self.running or seen.population.count < 2:
                continue
            whole = seen.population.whole
            eps = next(f.eps for f in self.static.facts if f.name == name)
            mean, var = whole.mean.cpu().double().view(-1), whole.unbiased_var.cpu().double().view(-1)
            old_mean, old_var = (t.cpu().double() for t in self.running[name])
            scale = torch.minimum(var.clamp_min(0), old_var.clamp_min(0)) + eps
            ratio = (var + eps) / (old_var + eps)
            finite = ratio[ratio.isfinite() & (ratio > 0)]
            found[name] = Comparison(
                float((mean - old_mean).square().div(scale).mean().sqrt()),
                float(finite.median()) if len(finite) else math.nan,
                mean,
                var,
                old_mean,
                old_var,
            )
        return found

    def values(self, name: str) -> int:
        """Return values per channel in a call of a layer, the median."""
        counts = self.passes.seen[name].counts if self.passes and name in self.passes.seen else []
        return sorted(counts)[len(counts) // 2] if counts else 0


def spearman(values: Iterable[float]) -> float:
    """Return the rank correlation of values with their places; 0 for fewer than three."""
    ranks: Any = torch.tensor(list(values), dtype=torch.float64).argsort().argsort().double()
    if len(ranks) < 3:
        return 0.0
    places = torch.arange(len(ranks), dtype=torch.float64)
    return float(torch.corrcoef(torch.stack([ranks, places]))[0, 1])
