"""Probes on held batches: companions, padding, order, batch size, dropout, eps; and the shares of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.probes.calls import Call
from batchnorm.probes.diagnosis import batches as of
from batchnorm.probes.diagnosis.evidence import Evidence, Sides
from batchnorm.probes.diagnosis.passes import Passes, Runner, recalibrate, use_batch_statistics
from batchnorm.probes.diagnosis.static import untouched
from batchnorm.statistics.population import Population
from batchnorm.tools import preserve

#: Outputs of one sample with and without companions agree to this share of their size, or something mixes samples.
ALIKE = 1e-3
#: Values of eps that frameworks use.
EPS = (1e-3, 1e-4, 2e-5, 1e-5, 1e-6)
#: Samples of the batch on which shares are measured, at least and at most.
FEWEST, MOST = 32, 256
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def look_aside(runner: Runner, e: Evidence) -> Sides:
    """Run those of the probes on held batches that what is known leaves open: together less than one pass."""
    passes = e.passes
    assert passes is not None
    model, held = runner.model, _some(passes)
    sides = Sides()
    depends = any(not f.tracks for f in e.facts) or bool(e.static.stuck)
    with untouched(model) as buffers, preserve.uncompiled(), torch.no_grad():
        model.eval()
        sides.valid = min(map(of.valid_share, held))
        sides.mixes, sides.mixes_normalization = _companions(runner, held[0])
        try:
            whole = of.joined(held)
        except ValueError:
            whole = None
        sides.purity = _purity(held)
        if whole is not None and len(held) > 1 and (e.gap or depends):
            n = of.size_of(whole)
            order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(runner.device)
            sizes = [of.size_of(batch) for batch in held]
            shuffled = [of.part(whole, index) for index in order.split(sizes)]
            sides.ordered = _with_batches(runner, held, buffers)
            sides.shuffled = _with_batches(runner, shuffled, buffers)
            sides.joined = _with_batches(runner, [whole], buffers)
        if e.buffers_bad and any(isinstance(m, DROPOUT) and m.p > 0 for m in model.modules()):
            sides.dropped = _dropout(runner, held)
        if any(_small(c.running_var, c.var, f.eps) for f in e.tracked if (c := e.compared.get(f.name))):
            sides.at_own_eps = _loss(runner, held)
            sides.eps = _other_eps(runner, held)
        if sides.valid < 1 and e.buffers_bad:
            sides.silent = _silence(runner, held[0], next(iter(passes.seen), ""))
    return sides


def _some(passes: Passes) -> list[Any]:
    """Return a twentieth of a pass of the held batches, but four batches and 64 samples if there are."""
    chosen: list[Any] = []
    for batch in passes.held:
        samples = sum(map(of.size_of, chosen))
        if len(chosen) >= 4 and samples >= max(64, passes.samples // 20):
            break
        chosen.append(batch)
    return chosen


def _small(running_var: Tensor, var: Tensor, eps: float) -> bool:
    """Whether some channels have a variance that eps, this or that of another framework, changes."""
    return bool((torch.minimum(running_var, var) < 10 * max(eps, EPS[0])).any())


def _loss(runner: Runner, held: Sequence[Any]) -> float:
    sizes = [of.size_of(batch) for batch in held]
    losses = [runner.loss(runner.call(batch, i), batch) for i, batch in enumerate(held, 1)]
    return sum(v * n for v, n in zip(losses, sizes, strict=True)) / sum(sizes)


def _with_batches(runner: Runner, held: Sequence[Any], buffers: preserve.Buffers) -> float:
    with runner.watching(use_batch_statistics):
        found = _loss(runner, held)
    buffers.put_back()
    return found


def _companions(runner: Runner, batch: Any) -> tuple[str | None, bool]:
    """Find the first module whose output for the first sample depends on the other samples."""
    size = of.size_of(batch)
    if size < 2:
        return None, False
    modules = {m: name for name, m in runner.model.named_modules() if next(m.children(), None) is None}

    def outputs(of_batch: Any, samples: int) -> list[tuple[nn.Module, Tensor]]:
        found: list[tuple[nn.Module, Tensor]] = []

        def see(module: nn.Module, _: Any, output: Any) -> None:
            y = next(iter(of.tensors_of(output)), None)
            if y is not None and y.dim() and y.is_floating_point() and len(y) % samples == 0:
                found.append((module, y[: len(y) // samples].detach().clone()))

        with ExitStack() as stack:
            for module in modules:
                stack.callback(module.register_forward_hook(see).remove)
            last = next(iter(of.tensors_of(runner.call(of_batch, 1))), None)
        if last is not None and last.dim() and len(last) % samples == 0:
            found.append((runner.model, last[: len(last) // samples]))
        return found

    for few in (1, 2):  # a dense layer without running statistics takes no single sample
        try:
            alone = outputs(of.part(batch, slice(0, few)), few)
            break
        except Exception:  # any of the model's
            if few == min(2, size - 1):
                return None, False
    together = outputs(batch, size)
    if len(alone) != len(together):
        return None, False
    for (module, y), (other, z) in zip(alone, together, strict=True):
        if module is not other or y.shape != z.shape:
            return None, False
        close = ALIKE * float(z.nan_to_num(0, 0, 0).abs().max()) if z.numel() else 0.0
        if not torch.allclose(y, z, rtol=ALIKE, atol=close, equal_nan=True):
            name = modules.get(module, "")
            return name or "(the model's own forward)", name in runner.names
    return "", False


def _purity(held: Sequence[Any]) -> float | None:
    targets = [of.target_of(batch) for batch in held]
    if len(held) < 2 or not all(isinstance(t, Tensor) and t.dim() == 1 and not t.is_floating_point() for t in targets):
        return None

    def entropy(t: Tensor) -> float:
        shares = torch.unique(t, return_counts=True)[1].double() / len(t)
        return float(-(shares * shares.log()).sum())

    most = min(entropy(torch.cat(targets)), math.log(max(2, len(targets[0]))))
    return None if most <= 0 else 1 - sum(map(entropy, targets)) / len(targets) / most


def _dropout(runner: Runner, held: Sequence[Any]) -> dict[str, float]:
    """Return the variance of each layer's input with dropout on, over off, other layers as loaded."""

    def variances() -> dict[str, Population]:
        found: dict[str, Population] = {}

        def see(call: Call) -> None:
            if call.x.dim() > 1:
                found.setdefault(call.name, Population(call.name)).add(call.x)
            use_batch_statistics(call)

        with runner.watching(see):
            for i, batch in enumerate(held, 1):
                runner.call(batch, i)
        return found

    off = variances()
    chosen = [m for m in runner.model.modules() if isinstance(m, DROPOUT)]
    for module in chosen:
        module.training = True
    on = variances()
    for module in chosen:
        module.training = False
    ratios = {}
    for name, population in off.items():
        if name in on and population.count > 1 and on[name].count > 1:
            assert population.whole is not None
            ratio = on[name].whole.var / population.whole.var  # type: ignore[union-attr]
            ratios[name] = float(ratio[ratio.isfinite()].median()) if bool(ratio.isfinite().any()) else math.nan
    return ratios


def _other_eps(runner: Runner, held: Sequence[Any]) -> dict[float, float]:
    layers: list[Any] = [m for m in runner.names.values() if isinstance(getattr(m, "eps", None), float)]
    former = [layer.eps for layer in layers]
    found = {}
    try:
        for eps in EPS:
            if all(math.isclose(eps, own) for own in former):
                continue
            for layer in layers:
                layer.eps = eps
            found[eps] = _loss(runner, held)
    finally:
        for layer, eps in zip(layers, former, strict=True):
            layer.eps = eps
    return found


def _silence(runner: Runner, batch: Any, first: str) -> dict[str, Tensor]:
    """Return what the first layer is given where all inputs are 0."""
    found: dict[str, Tensor] = {}

    def see(call: Call) -> None:
        if call.name == first and call.x.dim() > 1:
            found[first] = call.x.transpose(0, 1).flatten(1).float().median(1).values

    quiet = of.mapped(batch, lambda t: torch.zeros_like(t) if t.is_floating_point() else t)
    with runner.watching(see):
        runner.call(quiet, 1)
    return found


@dataclass(frozen=True)
class Share:
    """How much of the gap one layer carries.

    Attributes
    ----------
    alone : float
        Share of the gap that closes if this layer alone gets the other statistics.
    last : float
        Share that is left open if all others get them.
    share : float
        Mean over two orders, first to last and last to first, of what closes when this layer gets them; over all
        layers it sums to 1.
    """

    alone: float
    last: float
    share: float


@dataclass(frozen=True)
class Attribution:
    """Shares of all layers in the gap between A and ``other``, on held samples.

    Attributes
    ----------
    other : str
        "recalibrated" or "batch": the statistics that close the gap.
    gap : float
        Loss as loaded minus loss with the others, on these samples.
    samples : int
        How many.
    shares : dict of str to Share
        By layer, in the order of the forward pass.
    """

    other: str
    gap: float
    samples: int
    shares: dict[str, Share]


def attribute(runner: Runner, passes: Passes, other: str) -> Attribution | None:
    """Exchange statistics layer by layer, on few of the held samples; on more where these show no gap.

    Parameters
    ----------
    runner : Runner
        The model, and how its outputs are scored.
    passes : Passes
        What the passes found.
    other : {'recalibrated', 'batch'}
        The statistics that close the gap.

    Returns
    -------
    Attribution or None
        None where a loss is not finite, or there is no gap on these samples.
    """
    few = min(MOST, max(FEWEST, passes.samples // (8 * max(1, len(passes.seen)))))
    return _attribute(runner, passes, other, few) or (_attribute(runner, passes, other, MOST) if few < MOST else None)


def _attribute(runner: Runner, passes: Passes, other: str, most: int) -> Attribution | None:
    """Exchange statistics layer by layer: four forwards for each layer."""
    model = runner.model
    names = [n for n in passes.seen if isinstance(getattr(runner.names[n], "running_mean", None), Tensor)]
    if not names:
        return None
    try:
        whole = of.joined(passes.held)
    except ValueError:
        whole = passes.held[0]
    size = of.size_of(whole)
    samples = min(size, most)
    if other == "batch":
        batches = passes.held[: max(1, samples // max(1, of.size_of(passes.held[0])))]
        samples = sum(map(of.size_of, batches))
    else:
        batches = [of.part(whole, torch.arange(samples, device=runner.device) * size // samples)]
    with untouched(model) as buffers, preserve.uncompiled(), torch.no_grad():
        model.eval()
        references = [_first_output(runner, batches, set(names), "batch", buffers, passes)] if _no_loss(runner) else []

        def loss(chosen: Collection[str]) -> float:
            if references:
                mine = _first_output(runner, batches, chosen, other, buffers, passes)
                return float((mine - references[0]).norm() / references[0].norm().clamp_min(1e-12))
            return float(_exchanged(runner, batches, chosen, other, buffers, passes, lambda: _loss(runner, batches)))

        none, every = loss(()), loss(names)
        gap = none - every
        if not math.isfinite(gap) or gap <= 1e-3 * abs(none):
            return None
        forwards = [none, *(loss(names[:k]) for k in range(1, len(names))), every]
        backwards = [none, *(loss(names[-k:]) for k in range(1, len(names))), every]
        shares = {}
        for k, name in enumerate(names):
            alone = (none - loss((name,))) / gap
            last = (loss([n for n in names if n != name]) - every) / gap
            back = len(names) - 1 - k
            closed = forwards[k] - forwards[k + 1] + backwards[back] - backwards[back + 1]
            shares[name] = Share(alone, last, closed / 2 / gap)
    return Attribution(other, gap, samples, shares)


def _no_loss(runner: Runner) -> bool:
    return runner.loss_name == ""


def _first_output(
    runner: Runner,
    batches: Sequence[Any],
    chosen: Collection[str],
    other: str,
    buffers: preserve.Buffers,
    passes: Passes,
) -> Tensor:
    def compute() -> Tensor:
        return torch.cat([of.tensors_of(runner.call(b, 1))[0].float().flatten() for b in batches])

    found: Tensor = _exchanged(runner, batches, chosen, other, buffers, passes, compute)
    return found


def _exchanged(
    runner: Runner,
    batches: Sequence[Any],  # noqa: ARG001  # the closure has them
    chosen: Collection[str],
    other: str,
    buffers: preserve.Buffers,
    passes: Passes,
    compute: Callable[[], Any],
) -> Any:
    """Compute something with the other statistics in the chosen layers."""

    def see(call: Call) -> None:
        if call.name.partition(" (call ")[0] in chosen:
            use_batch_statistics(call)

    try:
        if other == "batch":
            with runner.watching(see):
                return compute()
        for name in chosen:
            recalibrate(runner.names[name], passes.seen[name].population)
        return compute()
    finally:
        buffers.put_back()
