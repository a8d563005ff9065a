"""Causes in the training and validation procedure: updates, modes, averages of weights, processes."""

from __future__ import annotations

import math

from batchnorm.probes.diagnosis.causes.form import (
    FAR,
    NAMED,
    Cause,
    Found,
    at_start,
    losses_of,
    micro_batches,
    names_of,
    some_of,
)
from batchnorm.probes.diagnosis.evidence import Evidence, spearman


def _several_updates(e: Evidence) -> Found | None:
    step = e.step
    if step is None or step.steps == 0 or micro_batches(e):
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
            *losses_of(e),
        ),
        tuple(more) if len(more) < len(e.moving) else (),
    )


def _sites(e: Evidence, name: str) -> int:
    return len(e.passes.seen[name].sites) if e.passes and name in e.passes.seen else 1


def _validation_in_train_mode(e: Evidence) -> Found | None:
    v = e.validation
    if v is None or not v.changed:
        return None
    return Found(
        0.98,
        (
            f"the validation pass changed the running statistics of {len(v.changed)} layers ({some_of(v.changed)})",
            *losses_of(e),
        ),
        v.changed if len(v.changed) < len(e.tracked) else (),
    )


def _not_in_eval(e: Evidence) -> Found | None:
    if not e.static.stuck:
        return None
    return Found(
        0.985,
        (
            f"after model.eval() {len(e.static.stuck)} layers are in training mode: {some_of(e.static.stuck)}",
            *losses_of(e),
        ),
        e.static.stuck,
    )


def _averaged_without_buffers(e: Evidence) -> Found | None:
    if not e.static.average or not e.tracked or (e.passes is not None and not e.buffers_bad):
        return None
    start = len([f for f in at_start(e) if not f.counter])
    return Found(
        0.96 if e.passes else 0.7,
        (
            f"{e.static.average} averages weights and not buffers; {start} of {len(e.tracked)} layers hold the start "
            "values" if start else f"{e.static.average} averages weights and not buffers",
            *losses_of(e),
        ),
    )  # fmt: skip


def _averaged_wrongly(e: Evidence) -> Found | None:
    negative = [f for f in e.tracked if f.negative]
    broken = [f for f in e.tracked if f.counter is not None and f.counter != int(f.counter)]
    if not negative and not broken:
        return None
    words = []
    if negative:
        words.append(f"running variance below 0 in {len(negative)} layers ({some_of(names_of(negative))})")
    if broken:
        words.append(f"the counter of {broken[0].name or '(the model)'} is {broken[0].counter:g}, not a whole number")
    names = names_of(negative or broken)
    return Found(0.97, (*words, *losses_of(e)), names if len(names) < len(e.tracked) else ())


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
    return Found(strength, (words, *((fewer,) if smaller else ()), *losses_of(e)))


def _ranks_differ(e: Evidence) -> Found | None:
    if e.ranks is None or not e.ranks.differ:
        return None
    return Found(
        0.97,
        (
            (
                f"running statistics of {len(e.ranks.differ)} layers differ between {e.ranks.number} processes "
                f"({some_of(e.ranks.differ)}), by {e.ranks.apart:.3g} deviations in the mean"
            ),
            *losses_of(e),
        ),
    )


def _activation_dropped(e: Evidence) -> Found | None:
    if not e.differs:
        return None
    fact = next((f for f in e.facts if f.name == e.differs), None)
    kind = f", a {fact.kind}," if fact else ""
    return Found(
        0.975 if fact else 0.7,
        (f"{e.differs}{kind} is the first module whose output differs from that of the reference", *losses_of(e)),
        (e.differs,),
    )


CAUSES: tuple[Cause, ...] = (
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
)
