"""The curves of a comparison as data for the page, where they can be hovered and switched."""

from collections.abc import Sequence
from typing import Any

from batchnorm.lab.compare.summary import ArmSummary, Curve, Summary
from batchnorm.lab.compare.wording import arm_name

#: Colour of the page, dashes, marker: as in the figures of ``plots``.
LOOKS = {"none": (1, "5 2", "circle"), "batch": (0, "", "square")}
OTHER = (2, "8 3 2 3", "triangle")
#: The figures that the page draws itself; their files are for where scripts do not run.
REDRAWN = ("accuracy-by-lr", "saturated")


def data(summary: Summary) -> dict[str, Any]:
    """Write accuracy and saturated shares as the page embeds them.

    Parameters
    ----------
    summary : Summary
        The numbers of a run.

    Returns
    -------
    dict
        What ``templates/charts.js`` draws; no chart without a record.
    """
    norms = list(summary.best_lr)
    rates = sorted({arm.lr for arm in summary.arms})
    best = [arm for norm, lr in summary.best_lr.items() if (arm := summary.arm(norm, lr)) is not None]
    choices = [("each at its best lr", best)] if len(rates) > 1 else []
    choices += [(f"lr {lr:g}", [arm for arm in summary.arms if arm.lr == lr]) for lr in rates]
    accuracy = [_variant(label, norms, [(arm, arm.accuracy) for arm in arms]) for label, arms in choices]
    shown = summary.shown.lr if summary.shown else summary.best_lr
    watched = [arm for norm, lr in shown.items() if (arm := summary.arm(norm, lr)) is not None]
    saturated = [
        _variant(
            f"hidden layer {layer + 1}", norms, [(a, a.saturated[layer]) for a in watched if layer < len(a.saturated)]
        )
        for layer in range(max((len(arm.saturated) for arm in watched), default=0))
    ]
    charts = [
        {"name": name, "title": title, "label": label, "unit": "share", "log": False, "note": note, "variants": kept}
        for name, title, label, note, variants in (
            ("accuracy", "Test accuracy", "test accuracy", "A thin line with a cross: every trial diverged.", accuracy),
            ("saturated", "Saturated units", "saturated", "When an input counts as saturated stands below.", saturated),
        )
        if (kept := [variant for variant in variants if variant["series"] or variant["lost"]])
    ]
    looks = [LOOKS.get(norm, OTHER) for norm in norms]
    return {
        "arms": [
            {"name": arm_name(norm), "color": color, "dash": dash, "marker": marker}
            for norm, (color, dash, marker) in zip(norms, looks, strict=True)
        ],
        "charts": charts,
        "layers": {"views": [], "probes": {}},
    }


def _variant(label: str, norms: Sequence[str], curves: Sequence[tuple[ArmSummary, Curve]]) -> dict[str, Any]:
    drawn: dict[str, Any] = {"label": label, "series": [], "lost": []}
    for arm, curve in curves:
        if not curve.steps:
            continue
        line = {
            "arm": norms.index(arm.norm), "step": curve.steps, "epoch": [], "second": [], "runs": len(arm.seeds),
            "mean": curve.mean, "low": curve.low, "high": curve.high,
        }  # fmt: skip
        lost = arm.basis == "diverged"
        drawn["lost" if lost else "series"].append({**line, "what": "diverged"} if lost else line)
    return drawn
