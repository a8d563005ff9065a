"""Santurkar et al., figure 2: batch normalization helps although noise behind it makes inputs of layers unstable."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, curves, spread
from batchnorm.lab.experiments.numbers import Numbers
from batchnorm.lab.experiments.plan import Axis, Plan, vary
from batchnorm.lab.experiments.protocols import small_vgg
from batchnorm.lab.experiments.series import quantity
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.models import Normalization, build
from batchnorm.lab.recording import TrainRun

_NOISY = f"{__name__}:noisy_vgg"
ARMS: Axis = {
    "without BN": {"norm": "none"},
    "with BN": {"norm": "batch"},
    "noisy BN": {"norm": "batch", "model": _NOISY},
    "noisy, without BN": {"norm": "none", "model": _NOISY},
}


class Noise(nn.Module):
    """Multiply and shift every value by noise whose mean and size are drawn anew in every step, in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Return s * x + m with s ~ N(sigma, 0.1), m ~ U(mu - 0.1, mu + 0.1), sigma ~ U(1, 1.25), mu ~ U(-0.5, 0.5)."""
        if not self.training:
            return x
        mean, deviation = torch.rand(()) - 0.5, 1 + 0.25 * torch.rand(())
        shift = mean + 0.2 * torch.rand_like(x) - 0.1
        return (deviation + 0.1 * torch.randn_like(x)) * x + shift


def noisy_vgg(
    normalization: Normalization, input_shape: tuple[int, ...], classes: int, seed: int, width: float, initializer: str
) -> nn.Module:
    """Build the network of the other arms, with noise in front of every nonlinearity, behind BN where there is one."""
    network = build("vgg_small", normalization, input_shape=input_shape, classes=classes, seed=seed, width=width,
                    initializer=initializer)  # fmt: skip
    layers = []
    for layer in network.get_submodule("features").children():
        layers += [Noise(), layer] if isinstance(layer, nn.ReLU) else [layer]
    network.add_module("features", nn.Sequential(*layers))
    return network


def unsteadiness(run: TrainRun) -> float:
    """Return how far the mean input of a nonlinearity moves between the looks, in its deviations; mean over layers."""
    looks = [list(record["layers"].values()) for record in run.of_probe("activations")]
    mean, deviation = (np.array([[layer[key] for layer in look] for look in looks], dtype=np.float64)
                       for key in ("mean", "std"))  # fmt: skip
    return float(np.mean(np.abs(np.diff(mean, axis=0)) / deviation[1:]))


def _plan(settings: Settings) -> Plan:
    base = small_vgg(settings, probes=("activations",), probe_every=settings["every"])
    axes = {"seed": vary("seed", range(settings["seeds"])), "arm": ARMS}
    question = "Does BN still help when noise behind it makes the inputs of layers unstable?"
    return Plan(question, base, axes, rule=CLAIM.rule, interleave=("arm",))


def _find(_settings: Settings, study: Study, numbers: Numbers) -> Findings:
    ends = {group.name: [math.nan if run.final_accuracy is None else 100 * run.final_accuracy
                         for run in group.shown.runs] for group in numbers.groups}  # fmt: skip
    moved = {group.name: [unsteadiness(run) for arm in group.arms.values() for run in arm.runs]
             for group in study.groups}  # fmt: skip
    found = quantity(study.arms, "", lambda run: run.of_kind("train"), lambda record: record.get("loss"))
    assert found is not None
    lines = {group.name: found.series[k] for k, group in enumerate(study.groups) if k in found.series}

    def less(first: str, second: str) -> list[float]:
        return [a - b for a, b in zip(ends[first], ends[second], strict=True)]

    guessing = 100 * numbers.guessing
    return Findings(
        "Test accuracy in %: " + "; ".join(f"{name} {spread(ends[name])}" for name in ARMS) + ".",
        [Check("noisy BN ends higher than the network without BN", "points of test accuracy",
               less("noisy BN", "without BN"), 0.0),
         Check("although its inputs are less stable", "noisy BN over without BN: change of the mean input",
               [a / b for a, b in zip(moved["noisy BN"], moved["without BN"], strict=True)], 1.0),
         Check("the same noise without BN stops training", "final test accuracy in %, against guessing",
               ends["noisy, without BN"], guessing, above=False)],
        [curves("loss", "Training loss", "Line: mean over seeds; band: lowest to highest.",
                "Training loss over steps of four networks.", "loss", lines)],
        numbers=[f"BN with noise minus BN without: {spread(less('noisy BN', 'with BN'))} points.",
                 "Change of the mean input between looks, in deviations: "
                 + "; ".join(f"{name} {spread(moved[name])}" for name in ARMS) + "."],
        definitions=[("noise", ("Every value x in front of a ReLU becomes s x + m, s ~ N(sigma, 0.1), m ~ U(mu - 0.1, "
                      "mu + 0.1), with sigma ~ U(1, 1.25) and mu ~ U(-0.5, 0.5) drawn in each step for each layer."))],
    )  # fmt: skip


_SIZES = {"data": "cifar10", "lr": 0.1}
CLAIM = Claim(
    name="noisy-batch-norm",
    sentence="What batch normalization gains does not come from stable inputs: with noise behind it that makes them "
    "less stable than without it, it still ends higher, while the same noise without it stops training.",
    source="Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604, section 2.1, figure 2",
    protocol="A small VGG on CIFAR-10 without BN, with BN, with noise behind BN, and with that noise without BN; the "
    "same weights, batches and rate.",
    rule="The test accuracy with noisy BN is higher than without BN; the mean inputs of its nonlinearities change "
    "more; and with noise and without BN the accuracy stays below what guessing hardly exceeds.",
    budgets={
        "small": {"seeds": 3, "steps": 300, "every": 10, "width": 0.125, **_SIZES},
        "full": {"seeds": 3, "steps": 15000, "every": 100, "width": 1.0, **_SIZES},
    },
    cost={"small": "4 min", "full": "about 60 h, estimated"},
    differs="Four of the eight convolutions of VGG-11, an eighth as wide; 300 steps at the small budget, there 15,000; "
    "noise in training mode only.",
    plan=_plan,
    find_in_study=_find,
)
