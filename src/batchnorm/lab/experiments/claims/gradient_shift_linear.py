"""Santurkar et al., figure 3: in a deep linear network gradients shift more with batch normalization than without."""

from collections.abc import Iterator, Sequence

import numpy as np

from batchnorm.lab.experiments.claims.form import (
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    curves,
    spread,
)
from batchnorm.lab.experiments.claims.gradient_shift import HIGHER, NORMS, SMALLER, cosine, relative_shift
from batchnorm.lab.experiments.deep_linear import descend, gaussian_problem, linear_network
from batchnorm.lab.experiments.series import Series, Track, combine
from batchnorm.probes.shift import Shift

PICTURES = {"cosine": ("Cosine between gradients", "Mean over the layers behind the first. "),
            "loss": ("Relative loss", "Over the loss of a network that gives 0. ")}  # fmt: skip


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train without and with BN on the same data from the same weights; look at the shift of some steps."""
    for seed in range(settings["seeds"]):
        problem = gaussian_problem(settings["examples"], settings["units"], seed)
        for norm, words in NORMS.items():
            network = linear_network(norm, settings["depth"], settings["units"], seed)
            losses, readings = descend(network, problem, steps=settings["steps"], lr=settings["lr"],
                                       probe=Shift(network), every=settings["every"])  # fmt: skip
            seen: list[Record] = [{"layers": reading.layers} for reading in readings.values()]
            cosines, shifts = np.array([cosine(r) for r in seen]), np.array([relative_shift(r) for r in seen])
            record = {"seed": seed, "norm": norm, "cosine": float(np.nanmean(cosines)),
                      "shift": float(np.nanmean(shifts)), "loss": float(losses[-1])}  # fmt: skip
            yield Measurement(f"seed {seed}, {words}", [record], {f"cosine/{norm}/{seed}": cosines,
                                                                  f"loss/{norm}/{seed}": losses})  # fmt: skip


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    values = {key: {norm: np.array([r[key] for r in records if r["norm"] == norm]) for norm in NORMS}
              for key in ("cosine", "shift", "loss")}  # fmt: skip

    def picture(key: str, every: int) -> dict[str, Series]:
        made = {}
        for norm, words in NORMS.items():
            each = [arrays[f"{key}/{norm}/{seed}"] for seed in range(settings["seeds"])]
            steps = [every * np.arange(len(one), dtype=np.float64) for one in each]
            if (mean := combine([Track(at, at, at, one) for at, one in zip(steps, each, strict=True)])) is not None:
                made[words] = mean
        return made

    cosines, shifts, losses = (values[key] for key in ("cosine", "shift", "loss"))
    return Findings(
        f"The cosine between a layer's gradient before and after the step of the layers in front is "
        f"{spread(cosines['batch'].tolist())} with BN and {spread(cosines['none'].tolist())} without; the loss ends at "
        f"{spread(losses['batch'].tolist())} and {spread(losses['none'].tolist())} of that of a network that gives 0.",
        [Check("the cosine is not higher with BN", "with BN minus without, mean over steps and layers",
               (cosines["batch"] - cosines["none"]).tolist(), HIGHER, above=False),
         Check("the relative shift is not smaller with BN", "with BN over without, mean over steps and layers",
               (shifts["batch"] / shifts["none"]).tolist(), SMALLER),
         Check("yet the loss ends lower with BN", "logarithm (base 10) of the ratio of losses",
               np.log10(losses["batch"] / losses["none"]).tolist(), 0.0, above=False)],
        [curves(key, title, f"{caption}Line: mean over seeds; band: lowest to highest.",
                f"{title} over steps, without and with BN.", title.lower(),
                picture(key, settings["every"] if key == "cosine" else 1), log=key == "loss")
         for key, (title, caption) in PICTURES.items()],
    )  # fmt: skip


_SIZES = {"depth": 25, "units": 10, "lr": 0.001}
CLAIM = Claim(
    name="gradient-shift-linear",
    sentence="In a deep linear network, batch normalization does not reduce internal covariate shift by gradient, and "
    "yet the network trains better.",
    source="Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604, section 2.2, figure 3",
    protocol="25 linear layers of 10 units on Gaussian inputs, targets from a random matrix, full-batch descent at the "
    "same rate; each layer's gradient before and after the layers in front of it take their step.",
    rule="The mean cosine between the two gradients is at most 0.05 higher with BN; the change over the norm of the "
    "gradient is more than 0.8 times that without; and the loss ends lower with BN.",
    budgets={
        "small": {"seeds": 5, "examples": 500, "steps": 400, "every": 40, **_SIZES},
        "full": {"seeds": 10, "examples": 1000, "steps": 10000, "every": 200, **_SIZES},
    },
    cost={"small": "1 min", "full": "1 h, estimated"},
    differs="400 steps at the small budget, there 10,000. The loss is the mean over examples, so that a rate of 0.001 "
    'stands for 1e-6 of a sum over 1000. The bounds for "not reduced" are ours.',
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(NORMS),
)
