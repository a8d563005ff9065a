"""Ioffe and Szegedy: deep networks of sigmoids learn with batch normalization, and without it stay at guessing."""

import math

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, points, spread
from batchnorm.lab.experiments.numbers import GroupNumbers, Numbers
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.training import TrainConfig

NORMS = {"none": "without BN", "batch": "with BN"}
#: From this share of right answers on, a network has learned.
LEARNED = 80.0


def _plan(settings: Settings) -> Plan:
    base = TrainConfig(
        data=settings["data"], model="mlp", activation="sigmoid", optimizer="sgd", schedule="constant", l2=0.0,
        steps=settings["steps"], evaluate_every=max(1, settings["steps"] // 5), train_subset=0, probes=(),
    )  # fmt: skip
    axes = {
        "depth": {f"{depth}-layer": {"hidden": (settings["units"],) * depth} for depth in settings["depths"]},
        "seed": vary("seed", range(settings["seeds"])),
        "lr": vary("lr", settings["lr"]),
        "norm": vary("norm", list(NORMS)),
    }
    question = "How deep can a network of sigmoids be, without and with BN?"
    return Plan(question, base, axes, rule=CLAIM.rule, interleave=("norm",), tuned="lr")


def ends(group: GroupNumbers) -> list[float]:
    """Return the final accuracy of each seed in percent, at the best rate; 0 where training diverged."""
    return [100 * (run.final_accuracy or 0.0) if run.status == "finished" else 0.0 for run in group.shown.runs]


def _find(settings: Settings, study: Study, numbers: Numbers) -> Findings:
    found = {norm: {depth: [math.nan] for depth in settings["depths"]} for norm in NORMS}
    for group, numbered in zip(study.groups, numbers.groups, strict=True):
        config = next(iter(group.arms.values())).runs[0].config["config"]
        found[config["norm"]][len(config["hidden"])] = ends(numbered)
    deepest, guessing = max(settings["depths"]), 100 * numbers.guessing
    without, with_bn = found["none"][deepest], found["batch"][deepest]
    edges = [group.name for group in numbers.groups if group.best is not None and group.best.edge]
    return Findings(
        f"With {deepest} hidden layers of sigmoids the network ends at {spread(without)} % without BN, where guessing "
        f"gets {guessing:.1f} % at most, and at {spread(with_bn)} % with BN.",
        [Check("without BN: guessing", "final test accuracy in %, at its best rate", without, guessing, above=False),
         Check("with BN: learned", "final test accuracy in %, at its best rate", with_bn, LEARNED)],
        [points("accuracy", "Final accuracy by depth", "Points: seeds; line: mean. Each at its best rate.",
                "Test accuracy against the number of hidden layers of sigmoids, without and with BN.", "accuracy in %",
                {words: {f"{depth} layers": found[norm][depth] for depth in settings["depths"]}
                 for norm, words in NORMS.items()})],
        limits=[f"The best rate of {name} is at the edge of the grid." for name in edges],
        definitions=[("guessing", "One over the classes, and three standard errors on the test data.")],
    )  # fmt: skip


_SIZES = {"data": "digits", "depths": [3, 6, 10], "lr": [0.03, 0.3, 3.0, 30.0]}
CLAIM = Claim(
    name="deep-sigmoids",
    sentence="A deep network of sigmoids learns with batch normalization; without it, its accuracy stays at guessing.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 4.2.2",
    protocol="Dense networks of 3, 6 and 10 hidden layers of sigmoids on digits, plain SGD from the same weights, at "
    "each rate of a grid; the deepest decides.",
    rule="With 10 hidden layers, each at its best rate, the final test accuracy without BN is below what guessing "
    "hardly exceeds, and with BN above 80 %.",
    budgets={
        "small": {"seeds": 3, "units": 64, "steps": 1000, **_SIZES},
        "full": {"seeds": 5, "units": 100, "steps": 20000, **_SIZES},
    },
    cost={"small": "2 min", "full": "2 h, estimated"},
    published="Inception with sigmoids: 69.8 % with BN at five times the rate; without, never above 1/1000 "
    "(figure 3 and section 4.2.2).",
    differs="Dense networks on digits of 8x8 pixels instead of Inception on ImageNet, with kaiming_normal weights.",
    plan=_plan,
    find_in_study=_find,
)
