"""Ioffe and Szegedy, section 3.4: batch normalization against dropout and L2, and together with them."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, spread, style
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.training import TrainConfig
from batchnorm.lab.wording import Table

NORMS = {"none": "without BN", "batch": "with BN"}
REGULARIZERS = ("nothing", "dropout", "L2", "both")


def _plan(settings: Settings) -> Plan:
    every = max(1, settings["steps"] // 4)
    base = TrainConfig(
        data=settings["data"], model="mlp", activation="relu", optimizer="momentum", schedule="cosine", batch_size=60,
        lr=settings["lr"], steps=settings["steps"], probes=(), train_subset=1000, evaluate_every=every, log_every=every,
        checkpoint_every=settings["steps"], l2=0.0,
    )  # fmt: skip
    drop, penalty = {"dropout": settings["dropout"]}, {"l2": settings["l2"]}
    axes = {"seed": vary("seed", range(settings["seeds"])),
            "regularizer": dict(zip(REGULARIZERS, ({}, drop, penalty, {**drop, **penalty}), strict=True)),
            "norm": vary("norm", list(NORMS))}  # fmt: skip
    return Plan("Does BN replace dropout and L2?", base, axes, CLAIM.rule, ("norm",))


def _read(study: Study, kind: str) -> dict[tuple[str, str], list[float]]:
    """Return the final accuracy in percent of each seed, by norm and regularizer; 0 where a run diverged."""
    found: dict[tuple[str, str], list[float]] = {}
    for arm in study.arms:
        for run in arm.runs:
            own = run.config["config"]
            which = REGULARIZERS[(own["dropout"] > 0) + 2 * (own["l2"] > 0)]
            right = run.of_kind(kind)[-1]["accuracy"] if run.status == "finished" else 0.0
            found.setdefault((own["norm"], which), []).append(100 * right)
    return found


def _find(settings: Settings, study: Study, _numbers: Numbers) -> Findings:
    test, train = _read(study, "test"), _read(study, "train_evaluation")

    def less(first: list[float], second: list[float]) -> list[float]:
        return [round(a - b, 9) for a, b in zip(first, second, strict=True)]  # without the noise of rounding

    alone = less(test["batch", "nothing"], test["none", "nothing"])
    gain = {(norm, which): less(test[norm, which], test[norm, "nothing"]) for norm in NORMS for which in REGULARIZERS}
    gap = {key: less(train[key], test[key]) for key in test}
    narrower = less(gap["batch", "nothing"], gap["none", "nothing"])
    with mpl.rc_context(SETTINGS):
        picture = _bars(test, gap)
    return Findings(
        f"BN alone gains {spread(alone)} points of test accuracy; dropout gains {spread(gain['none', 'dropout'])} "
        f"without BN and {spread(gain['batch', 'dropout'])} with it, L2 {spread(gain['none', 'L2'])} and "
        f"{spread(gain['batch', 'L2'])}.",
        [Check("BN alone: higher test accuracy", "points, with minus without", alone, 0.0),
         Check("BN alone: narrower gap", "points, with minus without", narrower, 0.0, above=False),
         *(Check(f"{which} gains less with BN", "points gained with BN minus without",
                 less(gain["batch", which], gain["none", which]), 0.0, above=False) for which in ("dropout", "L2"))],
        [picture],
        tables=[Table("At the end", ["regularizer", "BN", "test (%)", "training (%)", "gap (points)"],
                      [[which, words, spread(test[norm, which]), spread(train[norm, which]), spread(gap[norm, which])]
                       for which in REGULARIZERS for norm, words in NORMS.items()],
                      "Mean over seeds ± standard deviation; gap: training minus test.")],
        limits=[(f"Dropout {settings['dropout']:g} and L2 {settings['l2']:g} were not tuned; one learning rate, "
                f"{settings['lr']:g}, for all.")],
    )  # fmt: skip


def _bars(test: dict[tuple[str, str], list[float]], gap: dict[tuple[str, str], list[float]]) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    titles = ("test accuracy (%)", "gap, training minus test (points)")
    for axes, values, words in zip(figure.subplots(1, 2), (test, gap), titles, strict=True):
        for index, (norm, arm) in enumerate(NORMS.items()):
            each = [values[norm, which] for which in REGULARIZERS]
            axes.plot(REGULARIZERS, np.mean(each, axis=1), label=arm, **style(index))
            for place, own in enumerate(each):
                axes.scatter([place] * len(own), own, s=10, color=style(index)["color"], alpha=0.5)
        axes.set_title(words, loc="left")
    figure.axes[0].legend()
    return Picture("regularizers", "With and without each", "Points: seeds; line: mean.",
                   "Test accuracy and gap for four regularizers, without and with BN.", figure)  # fmt: skip


_SIZES = {"data": "digits", "dropout": 0.3, "l2": 1e-3, "lr": 0.03}
CLAIM = Claim(
    name="bn-and-dropout",
    sentence="Batch normalization regularizes: the network generalizes better, and dropout and L2 have less to gain.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, sections 3.4 and 4.2.1",
    protocol="A network of three hidden layers of 100 ReLUs with nothing, dropout, L2 and both, without and with BN.",
    rule="With nothing else, BN raises the test accuracy and narrows its gap to the training accuracy; dropout gains "
    "less with BN than without, and so does L2.",
    budgets={"small": {"seeds": 5, "steps": 1000, **_SIZES}, "full": {"seeds": 20, "steps": 10000, **_SIZES}},
    cost={"small": "1 min", "full": "35 min, estimated"},
    differs="There Inception on ImageNet, where dropout could be left out with BN, and the penalty be divided by 5.",
    plan=_plan,
    find_in_study=_find,
)
