"""The claim train-eval: its measurement on a known answer, and its rule on planted outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from batchnorm.lab.experiments.claims import train_eval

SETTINGS = {"seeds": 3, "high": [2e5, 2e13], "steps": 1, "shown": 1}


def _records(ratio: float, moved: float, fall: float) -> list[dict]:
    """Return records: eval() is `ratio` of train(), momentum 0 moves distances by `moved`, losses end at `fall`."""
    records: list[dict] = []
    for seed in range(3):
        rest = 1 + 1e-6 * seed  # not all alike
        for name in train_eval.MOMENTA:
            far = {"inputs": 5.0, "gamma": 2.0, "train": 2.0, "eval": 2.0 * ratio * rest}
            if name == "0":
                far["eval"] = 10.0 * (1 + moved * rest)
            records.append({"kind": "momentum", "seed": seed, "momentum": name, **far})
        for high in SETTINGS["high"]:
            records += [
                {"kind": "apart", "seed": seed, "high": high, "training": mode, "first": 1.0, "last": fall * rest}
                for mode in (True, False)
            ]
    return records


def _verdicts(**planted: float) -> list[str]:
    arrays = {f"ratio/{name}/{seed}": np.ones(2) for name in train_eval.MOMENTA for seed in range(3)}
    findings = train_eval._find(SETTINGS, _records(**planted), arrays)
    return [check.status for check in findings.checks]


@pytest.mark.parametrize(
    ("planted", "wrong"),
    [
        ({"ratio": math.sqrt(0.5), "moved": 0.0, "fall": 0.99}, None),
        ({"ratio": 1.0, "moved": 0.0, "fall": 0.99}, 0),
        ({"ratio": 0.6, "moved": 0.0, "fall": 0.99}, 1),
        ({"ratio": math.sqrt(0.5), "moved": 0.01, "fall": 0.99}, 2),
        ({"ratio": math.sqrt(0.5), "moved": 0.0, "fall": 0.1}, 3),
    ],
)
def test_a_planted_opposite_outcome_does_not_hold(planted: dict[str, float], wrong: int | None) -> None:
    verdicts = _verdicts(**planted)
    if wrong is None:
        assert set(verdicts) == {"holds"}
    else:
        assert verdicts[wrong] == "does not hold"


def test_the_third_program_ends_at_the_square_root_of_one_half() -> None:
    """Momentum 1: from the second forward on, the running statistics are the batch's, with its unbiased variance."""
    ratios = train_eval.first_batches(torch.tensor([[1e5], [2e5]]), 1.0, 3)
    np.testing.assert_allclose(ratios[1:], math.sqrt(0.5), rtol=1e-6)
    assert ratios[0] > 1e4
