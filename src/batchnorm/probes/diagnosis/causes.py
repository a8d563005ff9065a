"""The causes: for each its name, signature, fix, what would confirm it, and the rule that reads the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from batchnorm.probes.diagnosis.evidence import Comparison, Evidence, spearman
from batchnorm.probes.diagnosis.static import HALF_HIGH, HALF_LOW, Facts

#: A cause is named from this strength on.
NAMED = 0.6
#: Remainder of the start values in a running average, above which it has not arrived.
REMAINDER = 0.01
#: Weight of a new batch from which on the running statistics are mostly those of the last few batches.
LARGE_MOMENTUM = 0.5
#: Values per channel that are few.
FEW = 32
#: Variance of batch means, over that of independent samples, that is too much for chance.
CORRELATED = 4.0
#: Purity of the classes in a batch that no shuffling gives.
SORTED = 0.5
#: Distance between running and measured statistics (deviations, or logarithm of variances) that is large.
FAR = 0.5


@dataclass(frozen=True)
class Found:
    """What a rule found.

    Attributes
    ----------
    strength : float
        How specific the evidence is, from 0 to 1.
    evidence : tuple of str
        The numbers, in sentences.
    layers : tuple of str
        The layers at fault, where they are not all.
    """

    strength: float
    evidence: tuple[str, ...]
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cause:
    """One reason why eval() is worse than train().

    Attributes
    ----------
    name, title : str
        Identifier, and a sentence.
    signature : str
        What tells it from others.
    fix : str
        A call of this package, or a line of code.
    confirm : str
        What would confirm it.
    rule : callable
        Reads the evidence; None: it is not this.
    general : bool
        Whether it is named only where no other is.
    """

    name: str
    title: str
    signature: str
    fix: str
    confirm: str
    rule: Callable[[Evidence], Found | None]
    general: bool = False


def _names(facts: Sequence[Facts]) -> tuple[str, ...]:
    return tuple(f.name for f in facts)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name or "(the model)" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _gap(e: Evidence) -> tuple[str, ...]:
    if e.passes is None:
        return ()
    p = e.passes
    return (
        (
            f"loss {p.as_loaded.loss:.4g} as loaded, {p.recalibrated.loss:.4g} recalibrated, {p.batch.loss:.4g} "
            "with batch statistics"
        ),
    )


def _at_start(e: Evidence) -> list[Facts]:
    return [f for f in e.tracked if f.at_start]


def _never_written(e: Evidence) -> Found | None:
    start = _at_start(e)
    if not start or len(start) < len(e.tracked) or any(f.counter for f in start) or e.static.average:
        return None
    if any(f.frozen for f in start) or not (e.gap if e.passes else any(f.trained for f in start)):
        return None
    trained = sum(f.trained for f in start)
    return Found(
        0.95 if e.passes else 0.7,
        (
            (
                f"running mean exactly 0, variance exactly 1 and counter 0 in all {len(start)} layers, "
                f"while weight and bias have learnt in {trained}"
            ),
            *_gap(e),
        ),
    )


def _buffers_lost(e: Evidence) -> Found | None:
    if e.static.missing:
        return Found(
            0.97,
            (
                (
                    f"the checkpoint lacks {len(e.static.missing)} buffers of running statistics: "
                    f"{_some(e.static.missing)}"
                ),
                *_gap(e),
            ),
            tuple(dict.fromkeys(name.rpartition(".")[0] for name in e.static.missing)),
        )
    start = [f for f in _at_start(e) if not f.counter]
    others = [f for f in e.tracked if not f.at_start]
    if not start or not others or (e.passes is not None and not e.gap):
        return None
    if e.passes is None and not any(f.trained for f in start):
        return None
    return Found(
        0.95,
        (
            (
                f"mean 0, variance 1, counter 0 in {len(start)} of {len(e.tracked)} layers "
                f"({_some(_names(start))}); the others hold statistics"
            ),
            *_gap(e),
        ),
        _names(start),
    )


def _too_few_steps(e: Evidence) -> Found | None:
    left = {}
    for f in e.moving:
        if f.momentum is not None and 0 < f.momentum < 1 and f.counter:
            left[f.name] = (1 - f.momentum) ** f.counter
    slow = [name for name, rest in left.items() if rest > REMAINDER]
    if not slow or not e.buffers_bad:
        return None
    fits = [_fits_start(e.compared[name], left[name]) for name in slow if name in e.compared]
    fit = sorted(fits)[len(fits) // 2] if fits else 0.0
    f = next(f for f in e.moving if f.name == slow[0])
    return Found(
        0.92 if fit > 0.5 else 0.65,
        (
            (
                f"momentum {f.momentum:g} and {f.counter:.0f} batches: {100 * left[f.name]:.3g} % of the "
                "running statistics is still the start values 0 and 1"
            ),
            f"that remainder explains {100 * max(0.0, fit):.0f} % of the distance of the variances (median layer)",
            *_gap(e),
        ),
        tuple(slow) if len(slow) < len(e.moving) else (),
    )


def _fits_start(c: Comparison, rest: float) -> float:
    """Return the share of the distance of logarithmic variances that a remainder of the start explains."""
    predicted = rest + (1 - rest) * c.var
    tiny = 1e-12
    far = (c.running_var.clamp_min(tiny) / c.var.clamp_min(tiny)).log().abs().mean()
    near = (c.running_var.clamp_min(tiny) / predicted.clamp_min(tiny)).log().abs().mean()
    return float(1 - near / far) if far > 0 else 0.0


def _momentum_zero(e: Evidence) -> Found | None:
    stopped = [f for f in e.moving if f.momentum == 0]
    if not stopped or (e.passes is not None and not e.gap):
        return None
    seen = [f for f in stopped if f.counter and f.at_start]
    return Found(
        0.98 if seen else 0.7,
        (
            f"momentum is 0 in {len(stopped)} layers: a batch has no weight in the running statistics",
            *((f"counter {seen[0].counter:.0f}, and mean 0, variance 1 as at the start",) if seen else ()),
            *_gap(e),
        ),
        _names(stopped) if len(stopped) < len(e.moving) else (),
    )


def _momentum_reversed(e: Evidence) -> Found | None:
    large = [f for f in e.moving if f.momentum is not None and f.momentum >= LARGE_MOMENTUM]
    if not large or not e.buffers_bad:
        return None
    f = large[0]
    return Found(
        0.88,
        (
            (
                f"momentum {f.momentum:g} in {len(large)} layers: in torch it is the weight of the new batch, so "
                f"{100 * (f.momentum or 0):.3g} % of the running statistics is the last batch"
            ),
            *_gap(e),
        ),
        _names(large) if len(large) < len(e.moving) else (),
    )


def _few_values(e: Evidence) -> Found | None:
    if e.passes is None or not e.gap:
        return None
    small = [f.name for f in e.moving if 0 < e.values(f.name) <= FEW and f.name in e.passes.seen]
    if not small:
        return None
    m = min(e.values(name) for name in small)
    joined, apart = e.sides.joined, e.sides.ordered
    depends = joined is not None and apart is not None and abs(joined - apart) > 0.1 * max(abs(joined), abs(apart))
    samples = e.passes.samples / e.passes.number
    if samples > FEW / 2 or not (depends or e.batch_bad):
        return None
    words = [
        f"{m} values per channel in a batch of {samples:.0f}: training divides by the variance over {m}, evaluation by "
        f"one that is {m}/{m - 1} times as large, a factor of {math.sqrt(m / (m - 1)):.4g} in the outputs"
        if m > 1
        else "one value per channel"
    ]
    if depends:
        words.append(
            f"with batch statistics the loss is {apart:.4g} in these batches, {joined:.4g} in one batch of all"
        )
    return Found(0.81 if e.batch_bad or m < 8 else 0.76, (*words, *_gap(e)))


def _single_value_batch(e: Evidence) -> Found | None:
    bad = [f for f in e.tracked if f.bad_vars and not f.bad_means and not f.half]
    if not bad or not e.static.finite:
        return None
    words = [
        (
            f"running variance not finite in {len(bad)} layers ({_some(_names(bad))}), running mean finite: the "
            "unbiased variance of one value is 0/0"
        )
    ]
    if e.remainder == 1:
        words.append("the last batch of the loader holds one sample")
    return Found(0.97, (*words, *_gap(e)), _names(bad))


def _nonfinite_batch(e: Evidence) -> Found | None:
    bad = [f for f in e.tracked if f.bad_means]
    if not bad or not e.static.finite:
        return None
    return Found(
        0.97,
        (
            (
                f"running mean not finite in {len(bad)} of {len(e.tracked)} layers, parameters finite; "
                f"{bad[0].name or '(the model)'} is the first in order"
            ),
            *_gap(e),
        ),
        (bad[0].name,),
    )


def _frozen_by_requires_grad(e: Evidence) -> Found | None:
    still = [f for f in e.moving if f.learns is False]
    if not still:
        return None
    if e.step is not None:
        moved = [f for f in still if f.name in e.step.changed]
        if not moved or e.step.steps == 0:
            return None
        return Found(
            0.95,
            (
                (
                    f"weight and bias of {len(still)} layers do not learn, but a training step changed the running "
                    f"statistics of {len(moved)} of them ({_some(_names(moved))})"
                ),
                *_gap(e),
            ),
            _names(moved) if len(moved) < len(e.moving) else (),
        )
    if not e.buffers_bad:
        return None
    return Found(
        0.55,
        (f"weight and bias of {len(still)} layers do not learn, and nothing holds their running statistics", *_gap(e)),
    )


def _freeze_undone(e: Evidence) -> Found | None:
    if e.step is None:
        return None
    undone = [n for n, training in e.step.before.items() if not training and e.step.modes.get(n)]
    undone = [n for n in undone if n in e.step.changed]
    if not undone or not e.static.training:
        return None
    return Found(
        0.96,
        (
            (
                f"{len(undone)} layers were in eval mode in a model in training mode; the training step put them into "
                f"training mode, and their statistics changed ({_some(undone)})"
            ),
            *_gap(e),
        ),
        tuple(undone) if len(undone) < len(e.tracked) else (),
    )


def _frozen_elsewhere(e: Evidence) -> Found | None:
    frozen = [f for f in e.tracked if f.frozen and f.name in e.compared]
    far = [f.name for f in frozen if e.compared[f.name].distance > FAR]
    if not far or not e.gap or len(_at_start(e)) == len(e.tracked):
        return None
    c = e.compared[far[0]]
    return Found(
        0.9,
        (
            (
                f"{len(frozen)} layers are frozen ({frozen[0].frozen}); in {len(far)} of them the data differ "
                f"from what they hold: in {far[0] or '(the model)'} by {c.shift:.3g} deviations in the mean and "
                f"{c.ratio:.3g} times in the variance"
            ),
            *_gap(e),
        ),
        tuple(far) if len(far) < len(e.tracked) else (),
    )


def _last_domain(e: Evidence) -> Found | None:
    p = e.passes
    if p is None or not e.gap or p.number < 6 or len(p.firsts) != p.number:
        return None
    name = next(iter(p.seen_as_loaded))
    if name not in e.running:
        return None
    mean, var = (t.cpu().double() for t in e.running[name])
    gaps = torch.tensor(p.as_loaded.losses) - torch.tensor(p.batch.losses)
    distance = torch.tensor([_apart(s, mean, var) for s in p.firsts])
    if not bool(gaps.isfinite().all()):
        return None
    order = distance.argsort()
    jumps = distance[order].diff()
    fewest = max(2, p.number // 8)  # batches of a kind
    inner = jumps[fewest - 1 : len(jumps) - fewest + 1]
    if not len(inner) or float(inner.max()) < 0.4 * float(jumps.sum()):
        return None
    cut = int(inner.argmax()) + fewest
    near, far = order[:cut], order[cut:]
    among = distance[far].mean() - distance[near].mean()
    inside = max(float(distance[near].std()), float(distance[far].std()), 1e-9)
    good, bad = float(gaps[near].mean()), float(gaps[far].mean())
    if among < 4 * inside or bad < 0.1 * abs(p.as_loaded.loss) or good > 0.34 * bad or (p.between or 0) < CORRELATED:
        return None
    if p.recalibrated.loss < p.batch.loss + 0.1 * (p.as_loaded.loss - p.batch.loss):
        return None  # one set of statistics serves all batches
    return Found(
        0.9,
        (
            (
                f"batches fall into two kinds: {len(near)} whose statistics the running ones match (within "
                f"{distance[near].mean():.2g} deviations), and {len(far)} that are {distance[far].mean():.2g} away"
            ),
            f"as loaded, the first are {good:.3g} worse than with their own statistics, the second {bad:.3g}",
            *_gap(e),
        ),
    )


def _apart(found: object, mean: torch.Tensor, var: torch.Tensor) -> float:
    m, v = (t.cpu().double().view(-1) for t in (found.mean, found.var))  # type: ignore[attr-defined]
    scale = torch.minimum(v, var.clamp_min(0)) + 1e-5
    return float(((m - mean).square() / scale + (v.clamp_min(1e-9) / var.clamp_min(1e-9)).log().square()).mean().sqrt())


def _several_distributions(e: Evidence) -> Found | None:
    if e.passes is None or not e.gap:
        return None
    found = {}
    for name, seen in e.passes.seen.items():
        sites = [s.whole for s in seen.sites.values() if s.count > 1 and s.whole is not None]
        if len(sites) < 2:
            continue
        first, *rest = sites
        apart = max(
            float(((s.mean - first.mean).square() / (torch.minimum(s.var, first.var) + 1e-5)).mean().sqrt())
            + float(((s.var + 1e-5) / (first.var + 1e-5)).log().abs().mean())
            for s in rest
        )
        if apart > FAR:
            found[name] = (len(sites), apart)
    if not found:
        return None
    name, (calls, apart) = max(found.items(), key=lambda item: item[1][1])
    return Found(
        0.9,
        (
            (
                f"{name or '(the model)'} is called {calls} times in a forward, on inputs whose statistics differ by "
                f"{apart:.3g} (deviations of the mean, and logarithm of the variance)"
            ),
            *_gap(e),
        ),
        tuple(found),
    )


def _micro(e: Evidence) -> tuple[int, int] | None:
    """Return calls per optimizer step and samples per call, where a batch is given in parts."""
    step = e.step
    if step is None or step.steps == 0 or len(step.samples) < 2:
        return None
    parts = sum(step.samples) <= step.given and max(step.samples) < step.given
    return (round(len(step.samples) / step.steps), max(step.samples)) if parts else None


def _several_updates(e: Evidence) -> Found | None:
    step = e.step
    if step is None or step.steps == 0 or _micro(e):
        return None
    more = {n: u / step.steps for n, u in step.updates.items() if u / step.steps > 1 and n in step.changed}
    repeated = {n for n, calls in step.calls.items() if _sites(e, n) > 1 and calls <= _sites(e, n) * step.steps}
    more = {n: u for n, u in more.items() if n not in repeated}
    if not more:
        return None
    name, often = max(more.items(), key=lambda item: item[1])
    again = sum(step.recomputed.values())
    return Found(
        0.95,
        (
            f"one optimizer step moved the statistics of {len(more)} layers more than once ({name or '(the model)'}: "
            f"{often:g} times)" + (f"; {again} calls were recomputations in the backward pass" if again else ""),
            *_gap(e),
        ),
        tuple(more) if len(more) < len(e.moving) else (),
    )


def _sites(e: Evidence, name: str) -> int:
    return len(e.passes.seen[name].sites) if e.passes and name in e.passes.seen else 1


def _accumulation(e: Evidence) -> Found | None:
    micro = _micro(e)
    if micro is None or e.step is None:
        return None
    calls, samples = micro
    return Found(
        0.94,
        (
            (
                f"one optimizer step is {calls} forwards of {samples} samples: each normalizes by itself, and "
                f"moves the running statistics; the batch of {e.step.given} exists for the optimizer only"
            ),
            *_gap(e),
        ),
    )


def _validation_in_train_mode(e: Evidence) -> Found | None:
    v = e.validation
    if v is None or not v.changed:
        return None
    return Found(
        0.98,
        (
            f"the validation pass changed the running statistics of {len(v.changed)} layers ({_some(v.changed)})",
            *_gap(e),
        ),
        v.changed if len(v.changed) < len(e.tracked) else (),
    )


def _not_in_eval(e: Evidence) -> Found | None:
    if not e.static.stuck:
        return None
    return Found(
        0.985,
        (f"after model.eval() {len(e.static.stuck)} layers are in training mode: {_some(e.static.stuck)}", *_gap(e)),
        e.static.stuck,
    )


def _averaged_without_buffers(e: Evidence) -> Found | None:
    if not e.static.average or not e.tracked or (e.passes is not None and not e.buffers_bad):
        return None
    start = len([f for f in _at_start(e) if not f.counter])
    return Found(
        0.96 if e.passes else 0.7,
        (
            f"{e.static.average} averages weights and not buffers; {start} of {len(e.tracked)} layers hold the start "
            "values" if start else f"{e.static.average} averages weights and not buffers",
            *_gap(e),
        ),
    )  # fmt: skip


def _averaged_wrongly(e: Evidence) -> Found | None:
    negative = [f for f in e.tracked if f.negative]
    broken = [f for f in e.tracked if f.counter is not None and f.counter != int(f.counter)]
    if not negative and not broken:
        return None
    words = []
    if negative:
        words.append(f"running variance below 0 in {len(negative)} layers ({_some(_names(negative))})")
    if broken:
        words.append(f"the counter of {broken[0].name or '(the model)'} is {broken[0].counter:g}, not a whole number")
    names = _names(negative or broken)
    return Found(0.97, (*words, *_gap(e)), names if len(names) < len(e.tracked) else ())


def _weights_averaged(e: Evidence) -> Found | None:
    if not e.buffers_bad or len(e.compared) < 2:
        return None
    ratios = [c.ratio for c in e.compared.values() if math.isfinite(c.ratio) and c.ratio > 0]
    distances = sorted(c.distance for c in e.compared.values())
    off = distances[len(distances) // 2]
    if not ratios or off > FAR:
        return None
    low = [r for r in ratios if r < 1]
    smaller = len(low) >= 0.6 * len(ratios) and sum(map(math.log, ratios)) / len(ratios) < -0.02
    words = (
        f"running and measured statistics differ a little in all layers (median {off:.2g}): the weights, or the "
        "data, are not those that the statistics were measured with"
    )
    fewer = (
        f"measured over running variance is below 1 in {len(low)} of {len(ratios)} layers, {ratios[0]:.3g} in "
        f"the first and {ratios[-1]:.3g} in the last, as in averages of weights"
    )
    strength = NAMED if not smaller else 0.72 if spearman(ratios) < -0.3 else 0.62
    return Found(strength, (words, *((fewer,) if smaller else ()), *_gap(e)))


def _ranks_differ(e: Evidence) -> Found | None:
    if e.ranks is None or not e.ranks.differ:
        return None
    return Found(
        0.97,
        (
            (
                f"running statistics of {len(e.ranks.differ)} layers differ between {e.ranks.number} processes "
                f"({_some(e.ranks.differ)}), by {e.ranks.apart:.3g} deviations in the mean"
            ),
            *_gap(e),
        ),
    )


def _activation_dropped(e: Evidence) -> Found | None:
    if not e.differs:
        return None
    fact = next((f for f in e.facts if f.name == e.differs), None)
    kind = f", a {fact.kind}," if fact else ""
    return Found(
        0.975 if fact else 0.7,
        (f"{e.differs}{kind} is the first module whose output differs from that of the reference", *_gap(e)),
        (e.differs,),
    )


def _class_sorted(e: Evidence) -> Found | None:
    s = e.sides
    if s.purity is None or s.purity < SORTED or s.ordered is None or s.shuffled is None:
        return None
    uses_batch = [f for f in e.facts if not f.tracks] or e.static.stuck
    if not uses_batch or s.ordered < 1.2 * s.shuffled:
        return None
    return Found(
        0.99,
        (
            (
                f"{len(uses_batch)} layers normalize with the statistics of the batch in evaluation too, and "
                f"batches are {100 * s.purity:.0f} % sorted by class"
            ),
            f"loss {s.ordered:.4g} in this order, {s.shuffled:.4g} shuffled",
        ),
    )


def _correlated(e: Evidence) -> Found | None:
    p = e.passes
    if p is None or not e.batch_bad or (p.between or 0) < CORRELATED:
        return None
    purity = e.sides.purity or 0.0
    return Found(
        0.84 if purity < SORTED else 0.62,
        (
            (
                f"the means of the batches vary {p.between:.3g} times as much as those of independent samples would: "
                "samples of a batch belong together, and training removed what they share"
            ),
            *_gap(e),
        ),
    )


def _dropout_before(e: Evidence) -> Found | None:
    if not e.buffers_bad:
        return None
    found = {}
    for name, ratio in e.sides.dropped.items():
        c = e.compared.get(name)
        if c is None or not ratio > 1.1:
            continue
        held = 1 / c.ratio if c.ratio > 0 else math.nan
        if abs(math.log(held / ratio)) < abs(math.log(held)):
            found[name] = (ratio, held)
    if not found:
        return None
    name, (ratio, held) = max(found.items(), key=lambda item: item[1][0])
    return Found(
        0.85,
        (
            (
                f"dropout comes before {len(found)} layers: with it on, the variance in {name or '(the model)'} is "
                f"{ratio:.3g} times that with it off; the running variance is {held:.3g} times"
            ),
            *_gap(e),
        ),
        tuple(found) if len(found) < len(e.moving) else (),
    )


def _other_preprocessing(e: Evidence) -> Found | None:
    p = e.passes
    if p is None or not e.buffers_bad or len(e.compared) < 2:
        return None
    if p.as_loaded.loss - p.recalibrated.loss < 0.7 * (p.as_loaded.loss - min(p.batch.loss, p.recalibrated.loss)):
        return None  # one set of statistics does not serve these data
    first, *rest = e.compared
    here, others = e.compared[first].distance, sorted(e.compared[n].distance for n in rest)
    if here < FAR or here < 3 * others[len(others) // 2] or _fact(e, first).at_start:
        return None
    c = e.compared[first]
    return Found(
        0.87,
        (
            (
                f"the inputs of the first layer, {first or '(the model)'}, differ from what it holds by {c.shift:.3g} "
                f"deviations in the mean and {c.ratio:.3g} times in the variance"
            ),
            f"after it, with batch statistics, the others differ by {others[len(others) // 2]:.2g} (median)",
            *_gap(e),
        ),
        (first,),
    )


def _fact(e: Evidence, name: str) -> Facts:
    return next(f for f in e.static.facts if f.name == name)


def _half_buffers(e: Evidence) -> Found | None:
    half = [f for f in e.tracked if f.half]
    found, low, high = [], 0, 0
    for f in half:
        c = e.compared.get(f.name)
        lost = f.zero if c is None else int(((c.running_var == 0) & (c.var > 0) & (c.var < HALF_LOW)).sum())
        over = f.bad_vars if c is None else int((~c.running_var.isfinite() & (c.var > HALF_HIGH)).sum())
        if lost or over or f.bad_vars:
            found.append(f.name)
            low, high = low + lost, high + max(over, f.bad_vars)
    if not found:
        return None
    return Found(
        0.97,
        (
            (
                f"running statistics are {half[0].dtype}: {low} channels have a variance below {HALF_LOW:.0e} "
                f"that became 0, {high} one above {HALF_HIGH:.0f} that became infinite ({_some(found)})"
            ),
            *_gap(e),
        ),
        tuple(found),
    )


def _other_eps(e: Evidence) -> Found | None:
    own = e.sides.at_own_eps
    if own is None or not e.sides.eps:
        return None
    eps, loss = min(e.sides.eps.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf)
    small = {}
    for f in e.tracked:
        c = e.compared.get(f.name)
        if c is not None:
            small[f.name] = float((c.running_var < 10 * max(eps, f.eps)).double().mean())
    share = max(small.values(), default=0.0)
    if share < 0.01 or not (loss < 0.8 * own or not math.isfinite(own)):
        return None
    far = sorted(c.distance for c in e.compared.values())
    settled = bool(far) and far[len(far) // 2] < FAR
    return Found(
        0.93 if settled else 0.5,
        (
            f"with eps {eps:g} in place of {e.tracked[0].eps:g} the loss is {loss:.4g} in place of {own:.4g}",
            f"in the worst layer {100 * share:.0f} % of the channels have a variance below 10 eps",
        ),
    )


def _no_running_statistics(e: Evidence) -> Found | None:
    without = [f for f in e.facts if not f.tracks]
    if not without:
        return None
    at = e.sides.mixes_normalization
    if e.passes is not None and not at:
        return None
    words = [f"{len(without)} of {len(e.facts)} layers keep no running statistics ({_some(_names(without))})"]
    if at:
        words.append(f"the output for one sample depends on the others of its batch from {e.sides.mixes} on")
    return Found(0.95 if at else 0.7, tuple(words), _names(without) if len(without) < len(e.facts) else ())


def _padding_counted(e: Evidence) -> Found | None:
    valid = min(e.sides.valid, e.step.valid if e.step else 1.0)
    if not e.buffers_bad or valid > 0.98 or not e.compared:
        return None
    first = next(iter(e.compared))
    c, silent = e.compared[first], e.sides.silent.get(first)
    if silent is None:
        return None
    fitted = _mixture(c, silent.cpu().double(), most=1 / valid)
    if fitted is None:
        return None
    share, left = fitted
    if left > 0.1 or abs(share - 1) < 0.1:
        return None
    more = "more" if share < 1 else "less"
    return Found(
        0.91,
        (
            f"{100 * (1 - valid):.0f} % of the positions of a batch are padding, and padding enters the statistics",
            (
                f"the running statistics of {first} are those of these data with {more} padding: {share:.2f} "
                f"times the share of valid positions explains {100 * (1 - left):.0f} % of their distance"
            ),
            *_gap(e),
        ),
    )


def _mixture(c: Comparison, silent: torch.Tensor, most: float) -> tuple[float, float] | None:
    """Fit a share s: running = s data + (1 - s) silence; return s and the unexplained share of the distance."""

    def distance(mean: torch.Tensor, var: torch.Tensor) -> float:
        scale = c.running_var.clamp_min(1e-9)
        ratio = (var.clamp_min(1e-9) / scale).log()
        return float(((mean - c.running_mean).square() / scale + ratio.square()).mean())

    whole = distance(c.mean, c.var)
    if not whole > 0 or not math.isfinite(whole):
        return None

    def mixed(s: float) -> float:
        mean = s * c.mean + (1 - s) * silent
        return distance(mean, s * c.var + s * (1 - s) * (c.mean - silent).square())

    candidates = [k / 50 for k in range(5, 150) if k / 50 <= most]
    best = min(candidates, key=mixed)
    return best, mixed(best) / whole


def _growing(e: Evidence) -> Found | None:
    if e.passes is None or not e.buffers_bad:
        return None
    found = {}
    for name, seen in e.passes.seen_as_loaded.items():
        largest = sorted(v for v in seen.largest if math.isfinite(v))
        if len(largest) >= 4 and largest[-1] > 100 * largest[len(largest) // 2] > 0:
            found[name] = largest[-1] / largest[len(largest) // 2]
    if not found:
        return None
    name = max(found, key=found.__getitem__)
    return Found(
        0.6,
        (f"the largest variance of a batch in {name or '(the model)'} is {found[name]:.3g} times the median", *_gap(e)),
        tuple(found),
    )


def _transduction(e: Evidence) -> Found | None:
    if e.passes is None or not e.batch_bad or e.passes.samples / e.passes.number > FEW or e.moving:
        return None
    return Found(0.62, ("only the statistics of a small batch serve, and no layer is meant to keep others", *_gap(e)))


def _elsewhere(e: Evidence) -> Found | None:
    if not e.sides.mixes or e.sides.mixes_normalization:
        return None
    return Found(
        0.93,
        (
            (
                f"the output for one sample depends on the others of its batch from {e.sides.mixes} on: no batch "
                "normalization"
            ),
        ),
        (e.sides.mixes,),
    )


#: In the order of the table in docs/guides/eval-worse-than-train.md.
CAUSES: tuple[Cause, ...] = (
    Cause(
        "never-written",
        "The running statistics were never written.",
        "mean exactly 0, variance exactly 1, counter 0 in every layer",
        "model = batchnorm.recalibrate(model, loader)",
        "Print num_batches_tracked after one training step: it must be 1.",
        _never_written,
    ),
    Cause(
        "buffers-lost",
        "Buffers were lost between saving and loading.",
        "the checkpoint lacks running_mean or running_var, or some layers are at the start values",
        "save model.state_dict() whole, and load it with strict=True; else batchnorm.recalibrate(model, loader)",
        "model.load_state_dict(checkpoint) without strict=False names the missing keys.",
        _buffers_lost,
    ),
    Cause(
        "too-few-steps",
        "Too few steps for the momentum.",
        "(1 - momentum) ** steps above 1 %, and recalibration closes the gap",
        "model = batchnorm.recalibrate(model, loader); for the next training momentum=0.1, or batchnorm.Debiased()",
        "Train on with a learning rate of 0: the gap shrinks by the factor (1 - momentum) in each step.",
        _too_few_steps,
    ),
    Cause(
        "momentum-zero",
        "Momentum is 0: batches never enter the running statistics.",
        "momentum 0, counter above 0, buffers as at the start",
        "layer.momentum = 0.1, and batchnorm.recalibrate(model, loader)",
        "running_mean is the same tensor of zeros before and after a training step.",
        _momentum_zero,
    ),
    Cause(
        "momentum-reversed",
        "Momentum was read the other way round.",
        "momentum 0.5 or more: the running statistics are those of the last batch",
        "layer.momentum = 1 - layer.momentum, and batchnorm.recalibrate(model, loader)",
        "Evaluate after each of a few steps with a learning rate of 0: the loss jumps with every batch.",
        _momentum_reversed,
    ),
    Cause(
        "few-values",
        "Few values per channel in a batch.",
        "batch statistics give another loss in other batch sizes; recalibrated ones do not",
        "train with larger batches, or batchnorm.BatchNorm2d(..., statistics=batchnorm.Renorm()), or SyncBatchNorm",
        "Train a few epochs with four times the batch size: the gap shrinks.",
        _few_values,
    ),
    Cause(
        "single-value-batch",
        "A batch with one value per channel entered the running statistics.",
        "running variance not finite, running mean finite",
        "DataLoader(..., drop_last=True), and batchnorm.recalibrate(model, loader)",
        "len(dataset) % batch_size is 1.",
        _single_value_batch,
    ),
    Cause(
        "nonfinite-batch",
        "One batch with values that are not finite entered the running statistics.",
        "buffers not finite, parameters finite; the first such layer in order",
        "model = batchnorm.recalibrate(model, loader); batchnorm.convert(model): its layers skip such batches",
        "torch.isfinite of the inputs of that layer, in the training log or under autocast.",
        _nonfinite_batch,
    ),
    Cause(
        "frozen-by-requires-grad",
        "Layers were frozen by requires_grad alone.",
        "weight and bias do not learn, and a training step changes the running statistics",
        "model = batchnorm.freeze(model, affine=True)",
        "running_mean differs before and after a training step.",
        _frozen_by_requires_grad,
    ),
    Cause(
        "freeze-undone",
        "train() undoes a freeze that was made with eval().",
        "layers in eval mode are in training mode after model.train(), and their statistics change",
        "model = batchnorm.freeze(model)",
        "Print layer.training after model.train().",
        _freeze_undone,
    ),
    Cause(
        "frozen-on-other-domain",
        "Frozen layers hold the statistics of other data.",
        "frozen, and data far from what the layers hold; recalibration closes the gap",
        "batchnorm.recalibrate(batchnorm.unfreeze(model), loader)",
        "Evaluate on the data that the statistics were measured on: there is no gap.",
        _frozen_elsewhere,
    ),
    Cause(
        "last-domain",
        "The running statistics are those of the last domain.",
        "batches of several kinds; as loaded one kind is good and another bad",
        "batchnorm.BatchNorm2d(..., statistics=batchnorm.Keyed([...])), or mix the domains in each batch",
        "Evaluate each domain by itself after recalibrating on it: no gap in either.",
        _last_domain,
    ),
    Cause(
        "several-distributions",
        "One layer serves inputs of several distributions.",
        "several calls in a forward, whose statistics differ",
        "one layer for each place, or batchnorm.BatchNorm2d(..., statistics=batchnorm.Keyed([...]))",
        "Give each call a copy of the layer and recalibrate: the gap is gone.",
        _several_distributions,
    ),
    Cause(
        "several-updates",
        "Statistics are updated more than once in an optimizer step.",
        "the counter grows by more than 1 in a step",
        "with batchnorm.hold_statistics(model): around the second forward",
        "num_batches_tracked divided by the number of optimizer steps.",
        _several_updates,
    ),
    Cause(
        "validation-in-train-mode",
        "Validation runs in training mode.",
        "the running statistics change in the validation pass",
        "model.eval() before validation, model.train() after it",
        "Print model.training in the validation loop.",
        _validation_in_train_mode,
    ),
    Cause(
        "submodule-not-in-eval",
        "A submodule is not in eval mode after model.eval().",
        "training is True somewhere after model.eval()",
        "remove or correct the train() that the module overrides, or register the module",
        "[n for n, m in model.eval().named_modules() if m.training]",
        _not_in_eval,
    ),
    Cause(
        "averaged-without-buffers",
        "Weights were averaged without their buffers (EMA, target network).",
        "a wrapper that averages parameters only; recalibration closes the gap",
        "averaged = batchnorm.recalibrate(averaged, loader)",
        "Compare averaged.buffers() before and after training.",
        _averaged_without_buffers,
    ),
    Cause(
        "buffers-averaged-wrongly",
        "Buffers were averaged by a formula for weights.",
        "a running variance below 0, or a counter that is no whole number",
        "model = batchnorm.recalibrate(model, loader), or batchnorm.merge_statistics",
        "The smallest running_var of the model.",
        _averaged_wrongly,
    ),
    Cause(
        "weights-averaged",
        "The statistics were measured with other weights (averaged, merged, or changed since).",
        "statistics a little off in all layers; measured over running variance below 1, and falling with depth",
        "model = batchnorm.recalibrate(model, loader)",
        "Evaluate one of the models that went into the average: it has no gap.",
        _weights_averaged,
        general=True,
    ),
    Cause(
        "ranks-differ",
        "Processes hold different statistics, and one of them was saved.",
        "hashes of the buffers differ between ranks",
        "batchnorm.recalibrate(model, loader, group=torch.distributed.group.WORLD) before saving",
        "Save the buffers of two ranks, and compare.",
        _ranks_differ,
    ),
    Cause(
        "activation-dropped",
        "A conversion dropped what a layer did besides normalizing.",
        "a batch normalization is the first module whose output differs from the original's",
        "convert with batchnorm.convert, which keeps activations; or add the activation behind the layer",
        "Compare the outputs of that layer in both models.",
        _activation_dropped,
    ),
    Cause(
        "class-sorted",
        "Evaluation with batch statistics reads one class after the other.",
        "with batch statistics the loss in this order is not that of shuffled batches",
        "shuffle the evaluation, or keep running statistics: track_running_stats=True",
        "DataLoader(..., shuffle=True) for the evaluation.",
        _class_sorted,
    ),
    Cause(
        "correlated-batches",
        "Samples of a batch belong together (windows of a recording, frames of a video).",
        "means of batches vary far more than those of independent samples; only batch statistics are good",
        "draw the samples of a batch from many recordings: DataLoader(..., shuffle=True)",
        "Shuffle samples over batches, with batch statistics: the loss gets as bad as in evaluation.",
        _correlated,
    ),
    Cause(
        "dropout-before",
        "Dropout in front of batch normalization.",
        "the variance of a layer's inputs is larger with dropout on, and the running variance is that one",
        "model = batchnorm.recalibrate(model, loader); or move dropout behind the last batch normalization",
        "Recalibrate on the training data: dropout is off, and the gap is gone.",
        _dropout_before,
    ),
    Cause(
        "other-preprocessing",
        "Evaluation prepares its inputs in another way than training.",
        "the first layer is far from what it holds, those after it are not; batch statistics hide it",
        "use the transforms of training in evaluation (scale, mean, order of channels)",
        "Feed training data through the evaluation path: the gap is the same.",
        _other_preprocessing,
    ),
    Cause(
        "half-buffers",
        "Running statistics in half precision.",
        "variances below 6e-8 became 0, or above 65504 infinite",
        "keep the layers in float32: for m in norms: m.float(); then batchnorm.recalibrate(model, loader)",
        "The same checkpoint loaded in float32.",
        _half_buffers,
    ),
    Cause(
        "other-eps",
        "The eps of another framework.",
        "channels with a variance below 10 eps, and a better loss with another eps",
        "layer.eps = 1e-3 for weights of TensorFlow or Keras; the value is in the original's configuration",
        "The eps in the original's configuration.",
        _other_eps,
    ),
    Cause(
        "no-running-statistics",
        "Layers keep no running statistics: evaluation depends on the batch.",
        "buffers are None, and one sample's output changes with its companions",
        "track_running_stats=True, and train on; or evaluate in large shuffled batches",
        "Evaluate one sample alone.",
        _no_running_statistics,
    ),
    Cause(
        "padding-counted",
        "Padding is counted in the statistics.",
        "the running statistics are those of the data with another share of zeros",
        "with batchnorm.masked(model, lengths): around each forward, then batchnorm.recalibrate",
        "Append padding to a batch in training mode: the output changes.",
        _padding_counted,
    ),
    Cause(
        "accumulation",
        "Accumulated gradients are taken for a large batch.",
        "several forwards of fewer samples in an optimizer step",
        "with batchnorm.deferred(model): around the forwards of a step; normalization stays that of the micro-batch",
        "Train with the micro-batch size alone: the statistics are the same.",
        _accumulation,
    ),
    Cause(
        "growing-activations",
        "Activations grow without bound in some batches.",
        "the largest variance of a batch is far above the median",
        "clip gradients, or lower the learning rate; then batchnorm.recalibrate(model, loader)",
        "Log the running variance over training: it grows.",
        _growing,
    ),
    Cause(
        "transduction",
        "The method uses the statistics of its few test samples by design.",
        "only batch statistics are good, at a few samples",
        "say so when reporting: the result holds for batches only",
        "The method's description.",
        _transduction,
    ),
    Cause(
        "not-batch-normalization",
        "Another module mixes the samples of a batch.",
        "one sample's output changes with its companions at a module that is no batch normalization",
        "correct that module: a mean or a maximum over the batch dimension?",
        "The outputs of that module for one sample alone, and with others.",
        _elsewhere,
    ),
)
