"""Causes in layers that are frozen, or were meant to be."""

from __future__ import annotations

from batchnorm.probes.diagnosis.causes.form import FAR, Cause, Found, at_start, losses_of, names_of, some_of
from batchnorm.probes.diagnosis.evidence import Evidence


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
                    f"statistics of {len(moved)} of them ({some_of(names_of(moved))})"
                ),
                *losses_of(e),
            ),
            names_of(moved) if len(moved) < len(e.moving) else (),
        )
    if not e.buffers_bad:
        return None
    return Found(
        0.55,
        (
            f"weight and bias of {len(still)} layers do not learn, and nothing holds their running statistics",
            *losses_of(e),
        ),
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
                f"training mode, and their statistics changed ({some_of(undone)})"
            ),
            *losses_of(e),
        ),
        tuple(undone) if len(undone) < len(e.tracked) else (),
    )


def _frozen_elsewhere(e: Evidence) -> Found | None:
    frozen = [f for f in e.tracked if f.frozen and f.name in e.compared]
    far = [f.name for f in frozen if e.compared[f.name].distance > FAR]
    if not far or not e.gap or len(at_start(e)) == len(e.tracked):
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
            *losses_of(e),
        ),
        tuple(far) if len(far) < len(e.tracked) else (),
    )


CAUSES: tuple[Cause, ...] = (
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
)
