"""Ioffe and Szegedy, sections 3.3 and 1: over how many learning rates and initial scales a network trains."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, spread, style
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Plan, label_of, vary
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.training import TrainConfig
from batchnorm.lab.wording import Table

NORMS = {"none": "without BN", "batch": "with BN"}
#: A setting works when it ends within so many points of the best that either network reached with that seed.
WITHIN = 5.0
KINDS = {"lr": "learning rates", "weight_std": "initial scales"}


def _plan(settings: Settings) -> Plan:
    every = max(1, settings["steps"] // 4)
    base = TrainConfig(
        data=settings["data"], model="mlp", hidden=(64,) * settings["layers"], activation="relu", optimizer="sgd",
        schedule="constant", batch_size=60, l2=0.0, lr=settings["fixed_rate"], steps=settings["steps"], probes=(),
        train_subset=0, evaluate_every=every, log_every=every, checkpoint_every=settings["steps"],
    )  # fmt: skip
    tried = {f"{kind} {label_of(value)}": {kind: value} for kind in KINDS for value in settings[kind]}
    axes = {"seed": vary("seed", range(settings["seeds"])), "tried": tried, "norm": vary("norm", list(NORMS))}
    return Plan("Over how many rates and scales does it train?", base, axes, CLAIM.rule, ("norm",))


def _find(settings: Settings, study: Study, _numbers: Numbers) -> Findings:
    found: dict[tuple[str, str, float], list[float]] = {}
    for arm in study.arms:
        for run in arm.runs:
            own = run.config["config"]
            kind = "lr" if own["weight_std"] is None else "weight_std"
            records = run.of_kind("test")
            right = records[-1]["accuracy"] if run.status == "finished" and records else None
            found.setdefault((own["norm"], kind, own[kind]), []).append(0.0 if right is None else 100 * right)
    seeds = range(settings["seeds"])
    best = [max(each[seed] for each in found.values()) for seed in seeds]

    def working(norm: str, kind: str) -> list[float]:
        return [float(sum(found[norm, kind, value][seed] > best[seed] - WITHIN for value in settings[kind]))
                for seed in seeds]  # fmt: skip

    more = {kind: [a - b for a, b in zip(working("batch", kind), working("none", kind), strict=True)] for kind in KINDS}
    with mpl.rc_context(SETTINGS):
        picture = _picture(settings, found)
    return Findings(
        "It works with BN and without: "
        + "; ".join(f"of {len(settings[kind])} {words} {spread(working('batch', kind))} and "
                    f"{spread(working('none', kind))}" for kind, words in KINDS.items()) + ".",
        [Check(f"more {words} work with BN", f"of {len(settings[kind])}, with minus without", more[kind], 0.0)
         for kind, words in KINDS.items()],
        [picture],
        tables=[Table("Final test accuracy (%)", ["setting", *NORMS.values()],
                      [[f"{kind.replace('_', ' ')} {value:g}", *(spread(found[norm, kind, value]) for norm in NORMS)]
                       for kind in KINDS for value in settings[kind]],
                      "Mean over seeds ± standard deviation; a run that diverged counts as 0.")],
        limits=[(f"{settings['steps']} steps, so that a rate that is only slow does not work. The wider grid of the "
                "two is a count on a grid of half decades, and ends where the grid ends.")],
        definitions=[("works", (f"Ends within {WITHIN:g} points of the best accuracy that either network had with that "
                                "seed at any setting."))],
    )  # fmt: skip


def _picture(settings: Settings, found: dict[tuple[str, str, float], list[float]]) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    for axes, (kind, words) in zip(figure.subplots(1, 2, sharey=True), KINDS.items(), strict=True):
        for index, (norm, arm) in enumerate(NORMS.items()):
            each = np.array([found[norm, kind, value] for value in settings[kind]])
            axes.plot(settings[kind], each.mean(axis=1), label=arm, **style(index))
            axes.fill_between(
                settings[kind], each.min(axis=1), each.max(axis=1), color=style(index)["color"], alpha=0.15
            )
        axes.set(xscale="log", xlabel=words[:-1], title=words)
    figure.axes[0].set_ylabel("final test accuracy (%)")
    figure.axes[0].legend()
    return Picture("tolerance", "Where each network trains", "Line: mean over seeds; band: lowest to highest.",
                   "Final accuracy against learning rate and initial scale, without and with BN.", figure)  # fmt: skip


_GRID = {"data": "digits", "layers": 5, "fixed_rate": 0.1, "lr": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
         "weight_std": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]}  # fmt: skip
CLAIM = Claim(
    name="rates-and-scales",
    sentence="Batch normalization makes training less sensitive to the learning rate and to the scale of the initial "
    "weights.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, sections 1 and 3.3",
    protocol="A network of five hidden layers of 64 ReLUs at each rate of a grid (Kaiming weights), and at each "
    "initial deviation of a grid (one rate), without and with BN.",
    rule="More rates of the grid work with BN than without, and more initial scales.",
    budgets={"small": {"seeds": 3, "steps": 400, **_GRID}, "full": {"seeds": 10, "steps": 3000, **_GRID}},
    cost={"small": "2 min", "full": "25 min, estimated"},
    differs="The paper argues from BN((aW)u) = BN(Wu), and shows one network at two larger rates.",
    plan=_plan,
    find_in_study=_find,
)
