"""``diagnose``: find out why eval() is worse than train()."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from batchnorm.probes.diagnosis import batches as of
from batchnorm.probes.diagnosis.causes import CAUSES, NAMED, Cause, Found
from batchnorm.probes.diagnosis.evidence import Evidence
from batchnorm.probes.diagnosis.passes import Passes, Runner, run
from batchnorm.probes.diagnosis.result import CHANNELS, Diagnosis, Finding, LayerRow, ProbeRow, Verdict
from batchnorm.probes.diagnosis.sides import Attribution, attribute, look_aside
from batchnorm.probes.diagnosis.static import Facts, layers_of, look, untouched
from batchnorm.probes.diagnosis.stepping import compare_ranks, watch_call
from batchnorm.tools import preserve
from batchnorm.tools.walk import require_module

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def diagnose(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    metric: Callable[[Any, Any], Any] | None = None,
    training_step: Callable[[nn.Module, Any], object] | None = None,
    *,
    evaluation: Callable[[nn.Module], object] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    reference: nn.Module | None = None,
    state_dict: Mapping[str, Any] | None = None,
    batches: int | None = None,
    group: ProcessGroup | None = None,
) -> Diagnosis:
    """Find out why a model is worse in eval mode than in training mode, and name the cause with its evidence.

    Parameters
    ----------
    model : torch.nn.Module
        The trained model, in the mode in which training left it. Layers of torch and of this package, SyncBatchNorm
        and frozen variants are understood.
    loader : iterable, default=None
        Batches of the evaluation: a ``DataLoader`` or a list; it is read twice. None: only what the model holds is
        looked at.
    metric : callable, default=None
        ``metric(output, target)`` returns one number; for a batch without a target it is given the batch.
    training_step : callable, default=None
        ``training_step(model, batch)`` makes one training step: forward, backward, ``optimizer.step()``. It is called
        once, with the first batch of ``loader`` or None, and undone.
    evaluation : callable, default=None
        ``evaluation(model)`` runs the validation as the user's code does. It is called once, and undone.
    forward : callable, default=None
        ``forward(model, batch)`` returns the output. None: the model is called with the batch if that is a tensor, else
        with the first element of a tuple or list.
    loss : callable, default=None
        ``loss(output, batch)`` returns one number. None: cross-entropy for whole-number targets, the mean squared error
        for targets of the output's shape, else the distance to the output with batch statistics.
    reference : torch.nn.Module, default=None
        The model before it was converted, if it was: outputs are compared module by module.
    state_dict : mapping, default=None
        The checkpoint that was loaded: missing buffers are found.
    batches : int, default=None
        The most batches to read. None: all.
    group : torch.distributed.ProcessGroup, default=None
        Processes whose statistics are compared. All of them must call this.

    Returns
    -------
    Diagnosis
        Verdict, named causes, shares of the layers. It prints as a table; ``save`` writes JSON.

    Raises
    ------
    TypeError
        ``model`` is no module, ``loader`` no iterable of batches, or the model cannot be called with what came.
    ValueError
        The model has no batch normalization; the loader gives no batch, or not the same twice.

    Notes
    -----
    The model is bit for bit as it was afterwards, whatever happens: the passes run on a deep copy (on the model itself,
    restored, where it cannot be copied), and what ``training_step`` and ``evaluation`` change is undone: weights,
    gradients, buffers, modes, random state and the state of the optimizers that step. Other objects, such as a learning
    rate scheduler, keep what they were told.

    Read are: evaluation as loaded, with batch statistics, and with recalibrated ones, three passes; a fourth goes to
    probes on some of the batches. The shares of the gap are the mean over two orders in which layers get the other
    statistics, so they sum to it.

    Examples
    --------
    >>> import torch, batchnorm
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, momentum=0), torch.nn.Linear(8, 2))
    >>> data = [(3 * torch.randn(32, 4) + 5, torch.randint(2, (32,))) for _ in range(4)]
    >>> for x, _ in data:
    ...     y = model(x)
    >>> [finding.cause for finding in batchnorm.diagnose(model, data).causes]
    ['momentum-zero']
    """
    require_module(model, "diagnose")
    if not layers_of(model):
        raise ValueError(
            f"diagnose needs a model with batch normalization; this {type(model).__name__} has none, so batch "
            "normalization is not the cause. Diagnose before folding; look at dropout, augmentation and the data."
        )
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
        raise ValueError(f"batches must be a positive integer, or None for all; got {batches!r}.")
    work = _copy(model)
    evidence = Evidence(look(work, state_dict))
    for name, layer in layers_of(model):
        mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            evidence.running[name] = (mean.detach().clone(), var.detach().clone())
    if group is not None:
        evidence.ranks = compare_ranks(model, group)
    attribution, runner, first = None, None, None
    if loader is not None:
        evidence.remainder = _remainder(loader)
        runner = Runner(work, forward, loss, metric)
        with untouched(model):  # the user's functions may call it
            evidence.passes = run(runner, loader, batches)
            first = evidence.passes.held[0]
            evidence.sides = look_aside(runner, evidence)
            if evidence.gap:
                attribution = attribute(runner, evidence.passes, "recalibrated" if evidence.buffers_bad else "batch")
            if reference is not None:
                evidence.differs = _first_difference(runner, reference, first)
    if training_step is not None:
        evidence.step = watch_call(model, lambda: training_step(model, first), first)
    if evaluation is not None:
        evidence.validation = watch_call(model, lambda: evaluation(model))
    return _conclude(model, evidence, runner, attribution, reference)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception:  # any: then everything is restored on the model itself
        return model


def _remainder(loader: object) -> int | None:
    """Return how many samples the last batch of a DataLoader holds; None if it does not say."""
    if not isinstance(loader, torch.utils.data.DataLoader) or not loader.batch_size or loader.drop_last:
        return None
    try:
        samples = len(loader.dataset)  # type: ignore[arg-type]  # a dataset may have no length
    except TypeError:
        return None
    return samples % loader.batch_size or loader.batch_size


def _first_difference(runner: Runner, reference: nn.Module, batch: Any) -> str:
    """Return the first leaf whose output on the first batch is not that of the module of the same name."""
    mine, theirs = _outputs(runner, runner.model, batch), _outputs(runner, reference, batch)
    for name, y in mine.items():
        z = theirs.get(name)
        if z is None or y.shape != z.shape:
            continue
        if not torch.allclose(y, z, rtol=1e-3, atol=1e-3 * float(z.nan_to_num(0, 0, 0).abs().max()), equal_nan=True):
            return name
    return ""


def _outputs(runner: Runner, model: nn.Module, batch: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    former, runner.model = runner.model, model
    hooks = []

    def see(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            y = next(iter(of.tensors_of(output)), None)
            if y is not None:
                found.setdefault(name, y.detach().float().clone())

        return hook

    try:
        with untouched(model), preserve.uncompiled(), torch.no_grad():
            model.eval()
            hooks = [
                module.register_forward_hook(see(name))
                for name, module in model.named_modules()
                if next(module.children(), None) is None
            ]
            runner.call(batch, 1)
    finally:
        for hook in hooks:
            hook.remove()
        runner.model = former
    return found


def _conclude(
    model: nn.Module,
    e: Evidence,
    runner: Runner | None,
    attribution: Attribution | None,
    reference: nn.Module | None,
) -> Diagnosis:
    ranked = sorted(
        ((cause, found) for cause in CAUSES if (found := cause.rule(e)) is not None), key=lambda pair: -pair[1].strength
    )
    specific = any(found.strength >= NAMED and not cause.general for cause, found in ranked)
    ranked = [(cause, found) for cause, found in ranked if not (cause.general and specific)]
    findings = [_finding(cause, found, attribution) for cause, found in ranked]
    causes = tuple(f for f in findings if f.strength >= NAMED)
    verdict: Verdict
    p = e.passes
    if causes and causes[0].cause != "not-batch-normalization":
        verdict = "cause"
        where = f" ({', '.join(causes[0].layers[:3])})" if 0 < len(causes[0].layers) <= 3 else ""
        headline = f"{causes[0].title.rstrip('.')}{where}."
        if p is not None and not e.gap:
            headline += " On these data evaluation is not worse for it."
    elif causes:
        verdict = "not batch normalization"
        headline = f"Batch normalization is not the cause: {causes[0].layers[0]} mixes the samples of a batch."
    elif p is None:
        verdict, headline = "undecided", "Nothing that the model holds explains a gap; pass a loader to measure one."
    elif not e.static.finite:
        verdict = "not batch normalization"
        headline = "Batch normalization is not the cause: parameters of the model are not finite."
    elif e.gap:
        verdict = "undecided"
        what = "the buffers" if e.buffers_bad else "a dependence on the batch"
        headline = f"The gap comes from {what}, but the evidence does not say how that came about."
    elif not math.isfinite(p.as_loaded.loss):
        verdict, headline = "undecided", "The loss is not finite with any statistics, so nothing can be compared."
    else:
        verdict = "not batch normalization"
        headline = (
            f"Batch normalization is not the cause: the loss is {p.as_loaded.loss:.4g} as loaded, "
            f"{p.recalibrated.loss:.4g} with recalibrated statistics and {p.batch.loss:.4g} with those of each batch."
        )
    losses = {} if p is None else _three(p, "loss")
    smallest = [v for k, v in losses.items() if k != "as loaded" and math.isfinite(v)]
    return Diagnosis(
        verdict,
        headline,
        causes,
        tuple(f for f in findings if f.strength < NAMED),
        losses["as loaded"] - min(smallest) if smallest else None,
        losses,
        {} if p is None or p.as_loaded.metric is None else _three(p, "metric"),
        "" if runner is None else runner.loss_name or "distance to the output with batch statistics",
        "" if attribution is None else attribution.other,
        tuple(_row(f, e, attribution) for f in e.facts),
        tuple(_probes(e, attribution, reference)),
        tuple(_unseen(e, reference)),
        type(model).__name__,
        0 if p is None else p.samples,
        0 if p is None else p.number,
        0.0 if p is None or runner is None else runner.forwarded / max(1, p.samples),
    )


def _finding(cause: Cause, found: Found, attribution: Attribution | None) -> Finding:
    evidence = list(found.evidence)
    if attribution is not None and found.layers:
        closed = sum(attribution.shares[n].share for n in found.layers if n in attribution.shares)
        evidence.append(f"these layers carry {100 * closed:.0f} % of the gap")
    return Finding(
        cause.name, cause.title, found.strength, found.layers, tuple(evidence), cause.fix, cause.confirm
    )  # fmt: skip


def _three(p: Passes, what: str) -> dict[str, float]:
    return {
        "as loaded": getattr(p.as_loaded, what),
        "batch statistics": getattr(p.batch, what),
        "recalibrated": getattr(p.recalibrated, what),
    }


def _state(f: Facts) -> str:
    if not f.tracks:
        return "batch statistics"
    if f.frozen:
        return f"frozen: {f.frozen}"
    momentum = "cumulative" if f.momentum is None else f"momentum {f.momentum:g}"
    return f"{momentum}, {f.counter:.0f} batches" if f.counter is not None else momentum


def _row(f: Facts, e: Evidence, attribution: Attribution | None) -> LayerRow:
    c = e.compared.get(f.name)
    share = attribution.shares.get(f.name) if attribution else None
    channels: dict[str, list[float]] = {}
    if c is not None:
        every = max(1, -(-len(c.mean) // CHANNELS))
        channels = {
            name: [float(f"{v:.5g}") for v in getattr(c, name)[::every].tolist()]
            for name in ("running_mean", "mean", "running_var", "var")
        }
    return LayerRow(
        f.name,
        f.kind,
        _state(f),
        e.values(f.name),
        None if c is None else c.shift,
        None if c is None else c.ratio,
        None if share is None else share.share,
        None if share is None else share.alone,
        None if share is None else share.last,
        channels,
    )


def _probes(e: Evidence, attribution: Attribution | None, reference: nn.Module | None) -> list[ProbeRow]:
    s = e.static
    start = sum(f.at_start for f in e.tracked)
    rows = [
        ProbeRow(
            "S",
            "buffers, flags and modes",
            f"{len(s.facts)} layers, {len(e.tracked)} with running statistics, {start} of them at the start values, "
            f"{sum(bool(f.frozen) for f in s.facts)} frozen, {len(s.stuck)} not in eval mode after eval()",
        )
    ]
    p = e.passes
    if p is not None:
        sides = e.sides
        rows += [
            ProbeRow("A", "evaluation as loaded", f"loss {p.as_loaded.loss:.5g}"),
            ProbeRow("B", "batch statistics, nothing updated", f"loss {p.batch.loss:.5g}"),
            ProbeRow("C", "evaluation after recalibrating a copy", f"loss {p.recalibrated.loss:.5g}"),
        ]
        mixed = "could not be compared" if sides.mixes is None else f"differs from {sides.mixes} on"
        rows.append(ProbeRow("D", "one sample alone, and with companions", "equal" if sides.mixes == "" else mixed))
        if sides.valid < 1:
            rows.append(ProbeRow("E", "padding", f"{100 * (1 - sides.valid):.0f} % of the positions"))
        if sides.ordered is not None and sides.shuffled is not None:
            rows.append(
                ProbeRow(
                    "F", "batch statistics in this order, and shuffled", f"{sides.ordered:.5g}, {sides.shuffled:.5g}"
                )
            )
        if sides.dropped:
            rows.append(
                ProbeRow("dropout", "largest variance with dropout on over off", f"{max(sides.dropped.values()):.3g}")
            )
        if sides.eps:
            eps, loss = min(sides.eps.items(), key=lambda item: item[1])
            rows.append(ProbeRow("eps", "the best other eps", f"{eps:g}: loss {loss:.5g}, own {sides.at_own_eps:.5g}"))
    if attribution is not None:
        rows.append(
            ProbeRow(
                "shares",
                f"{attribution.other} statistics layer by layer",
                f"a gap of {attribution.gap:.5g} on {attribution.samples} samples",
            )
        )
    if e.step is not None:
        w = e.step
        rows.append(
            ProbeRow(
                "W",
                "one training step",
                f"{w.steps} optimizer steps, {max(w.calls.values(), default=0)} calls of a layer, statistics of "
                f"{len(w.changed)} layers changed",
            )
        )
        if w.silent:
            result = (
                f"all but none in {', '.join(w.silent[:3])}: its output does not depend on the scale of these weights, "
                "so inputs that are far apart come out the same whatever the weights; scale the inputs"
            )
            rows.append(ProbeRow("W", "gradients of weights before a normalization", result))
    if e.validation is not None:
        rows.append(ProbeRow("W", "the validation pass", f"statistics of {len(e.validation.changed)} layers changed"))
    if e.ranks is not None:
        rows.append(ProbeRow("ranks", "hashes over processes", f"{len(e.ranks.differ)} layers differ"))
    if reference is not None:
        rows.append(ProbeRow("reference", "outputs module by module", f"first difference: {e.differs or 'none'}"))
    return rows


def _unseen(e: Evidence, reference: nn.Module | None) -> list[str]:
    found = []
    if e.passes is None:
        found.append("the gap and the layers that carry it; pass loader=.")
    if e.step is None:
        found.append("how a training step updates the statistics; pass training_step=lambda model, batch: ....")
    if e.validation is None:
        found.append("the mode that validation runs in; pass evaluation=lambda model: ....")
    if reference is None and any(type_ == "SyncBatchNorm" for type_ in (f.kind for f in e.facts)):
        found.append("whether converting to SyncBatchNorm dropped something; pass reference=, the model before.")
    return found
