"""Run directories without training: curves made from formulas, or from the numbers that a test writes down."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.lab.compare.artefacts import RunWriter


def config(
    *, norm: Sequence[str] = ("none", "batch"), lr: Sequence[float] = (0.1,), seeds: int = 1, steps: int = 100
) -> dict[str, Any]:
    return {
        "command": "batchnorm compare --data digits --lr " + " ".join(f"{rate:g}" for rate in lr),
        "config": {
            "data": "digits", "model": "mlp", "norm": list(norm), "lr": list(lr), "seeds": seeds, "steps": steps,
            "batch_size": 60, "weight_std": 0.1, "eps": 1e-5, "momentum": 0.1, "evaluations": 40,
        },
        "data": {
            "name": "digits", "train": 1437, "test": 360, "input_shape": [1, 8, 8], "classes": 10,
            "preprocessing": "pixel values 0 to 16 divided by 16",
        },
        "model": {
            "name": "mlp", "description": "three hidden layers of 100 sigmoids", "activation": "sigmoid",
            "hidden_units": [100, 100, 100], "parameters": {"none": 27710, "batch": 28010},
        },
    }  # fmt: skip


ENVIRONMENT = {
    "batchnorm": "0.1.0",
    "python": "3.12.0",
    "torch": "2.13.0+cpu",
    "threads": 2,
    "processor": "an example CPU",
}


def record(step: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "train_loss": 1.0,
        "test_loss": 1.0 - accuracy,
        "test_accuracy": accuracy,
        "saturated": [0.1, 0.2, 0.3],
        "percentiles": [[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]],
        "step_seconds": 0.001,
        **changes,
    }


def write_trial(
    writer: RunWriter, norm: str, accuracy: Sequence[float], *, lr: float = 0.1, seed: int = 0,
    status: str = "finished", every: int = 10, **changes: Any,
) -> None:  # fmt: skip
    """One evaluation every ``every`` steps, with the accuracies given."""
    trial = writer.trial(norm=norm, lr=lr, seed=seed)
    for number, value in enumerate(accuracy, start=1):
        trial.record(record(number * every, value, **changes))
    trial.end(
        status=status, step=len(accuracy) * every, reason="" if status == "finished" else f"for the test: {status}"
    )


def write_run(path: Path, *, norm: Sequence[str] = ("none", "batch"), lr: Sequence[float] = (0.1, 0.5), seeds: int = 3,
              steps: int = 2000, evaluations: int = 40, units: int = 100, diverged: Sequence[tuple[str, float]] = (),
              status: str = "finished") -> Path:  # fmt: skip
    """A run whose curves look like the experiment's: the arm without BN learns late and its inputs wander."""
    writer = RunWriter.create(path, config=config(norm=norm, lr=lr, seeds=seeds, steps=steps), environment=ENVIRONMENT)
    grid = np.unique(np.linspace(0, steps, evaluations + 1).astype(int))
    for rate in lr:
        for seed in range(seeds):
            for name in norm:
                rng = np.random.default_rng([seed, int(rate * 1000), name == "batch"])
                trial = writer.trial(norm=name, lr=rate, seed=seed)
                units_at = rng.normal(0, 0.3, units)
                dies = (name, rate) in diverged
                for number, step in enumerate(grid.tolist()):
                    if dies and number > 6:
                        break
                    late = (0.45 * steps if name == "none" else 0.03 * steps) * (0.1 / rate) ** 0.5
                    learned = 1 / (1 + np.exp(-(step - late) / (late / 4 + 1))) * (1 - np.exp(-step / 20))
                    accuracy = 0.1 + (0.81 if name == "none" else 0.86) * learned + rng.normal(0, 0.004)
                    width = 0.2 + 4 * learned if name == "none" else 2.2 + 0.2 * learned
                    units_at = units_at + rng.normal(0, 0.25 if name == "none" else 0.04, units) * (0.3 + learned)
                    trial.record({
                        "step": step,
                        "train_loss": None if step == 0 else 2.3 * (1 - learned) + 0.05,
                        "test_loss": 2.3 * (1 - learned) + 0.2,
                        "test_accuracy": accuracy,
                        "saturated": (0.02 + learned * np.array([0.3, 0.2, 0.35]) / (1 if name == "none" else 4)),
                        "percentiles": units_at + np.array([[-0.5], [0.0], [0.5]]) * width,
                        "step_seconds": 0.0009 * (1 + (name == "batch") / 3) * rng.uniform(0.95, 1.1) if step else None,
                    })  # fmt: skip
                if dies:
                    trial.end(status="diverged", step=int(grid[6]) + 7, reason="the training loss is not finite")
                else:
                    trial.end(status="finished", step=steps)
    if status:
        writer.finish(status)
    return path
