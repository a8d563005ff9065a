"""Run directories of ``batchnorm train`` without training: curves from formulas, or from what a test writes down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.lab.recording import Recorder

ENVIRONMENT = {
    "date": "2026-11-21T00:00:00+00:00", "batchnorm": "0.1", "commit": "0" * 40, "python": "3.11", "torch": "2.13",
    "processor": "an example CPU", "cores": 2, "threads": 2, "seeds": "a seed fixes everything",
}  # fmt: skip


def config(**changes: Any) -> dict[str, Any]:
    settings = {
        "data": "digits", "model": "mlp", "norm": "batch", "optimizer": "sgd", "lr": 0.1, "schedule": "cosine",
        "momentum": 0.9, "weight_decay": 0.0, "epochs": 10, "batch_size": 64, "seed": 0, "out": None, **changes,
    }  # fmt: skip
    return {
        "command": "batchnorm train "
        + " ".join(f"--{key.replace('_', '-')} {value}" for key, value in settings.items() if value is not None),
        "config": settings,
        "data": {
            "name": settings["data"], "train": 1437, "validation": 0, "test": 360, "classes": 10,
            "input_shape": [1, 8, 8], "preprocessing": "pixel values divided by 16",
        },
        "model": {"name": settings["model"], "description": "three hidden layers of 100 sigmoids", "parameters": 28010},
    }  # fmt: skip


def write_records(
    path: Path, accuracy: Sequence[float | None], *, every: int = 10, status: str = "finished", reason: str = "",
    kind: str = "test", environment: dict[str, Any] | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """One evaluation every ``every`` steps, with the accuracies given; a step takes 0.1 s, an epoch 20 steps."""
    recorder = Recorder.create(path, config=config(**changes), environment=environment or ENVIRONMENT)
    for number, value in enumerate(accuracy, start=1):
        at = {"step": number * every, "epoch": number * every / 20, "seconds": number * every / 10}
        recorder.metrics("train", **at, loss=1 / number, lr=0.1, step_seconds=0.1, examples_per_second=640.0)
        recorder.metrics(kind, **at, loss=None if value is None else 1 - value, accuracy=value, statistics="running")
    if status:
        recorder.end(status=status, step=len(accuracy) * every, reason=reason)
    return path


def write_run(
    path: Path, *, norm: str = "batch", seed: int = 0, steps: int = 1000, evaluations: int = 25, layers: int = 3,
    records: int = 200, status: str = "finished", probes: Sequence[str] = ("activations", "gradients", "running"),
    stop: float = 1.0, **changes: Any,
) -> Path:  # fmt: skip
    """A run whose curves look like the experiment's: without normalization it learns late and its inputs wander."""
    settings = config(norm=norm, seed=seed, **changes)
    recorder = Recorder.create(path, config=settings, environment=ENVIRONMENT)
    rng = np.random.default_rng([seed, len(norm)])
    late, reach = (0.3, 0.93) if norm == "none" else (0.06, 0.975)
    moments = {round(steps * k / records): "train" for k in range(1, records + 1)}
    seen = {0, *(round(steps * k / evaluations) for k in range(1, evaluations + 1))}
    end = round(stop * steps)
    for step in sorted({0, *moments, *seen}):
        if step > end:
            break
        learned = float(1 / (1 + np.exp(-(step / steps - late) * 30)) * (1 - np.exp(-step / steps * 40)))
        at = {"step": step, "epoch": step / steps * 10, "seconds": step * (0.011 if norm == "none" else 0.014)}
        broken = status == "diverged" and step >= end
        if step in moments:
            noise = float(np.exp(rng.normal(0, 0.12)))
            recorder.metrics(
                "train", **at, loss=float("inf") if broken else 2.3 * (1 - 0.98 * learned) * noise,
                lr=0.05 * (1 + np.cos(np.pi * step / steps)), step_seconds=0.01,
                examples_per_second=(6400 if norm == "none" else 5100) * (1 + rng.normal(0, 0.03)),
            )  # fmt: skip
        if step in seen:
            for kind, extra in (("test", 0.0), ("train_evaluation", 0.02)):
                accuracy = min(1.0, 0.1 + (reach - 0.1 + extra) * learned + rng.normal(0, 0.004))
                recorder.metrics(
                    kind, **at, loss=2.3 * (1 - 0.95 * learned) + 0.1 - extra, accuracy=max(0.0, accuracy),
                    statistics="running" if norm == "batch" else "none",
                )  # fmt: skip
            for name in probes:
                scalars, inside = _seen(name, norm, step / steps, learned, layers, rng)
                recorder.probe(name, step=step, epoch=at["epoch"], scalars=scalars, layers=inside)
    if status:
        reason = {"diverged": "the training loss is not finite", "interrupted": "Ctrl-C"}.get(status, "")
        recorder.end(status=status, step=end, reason=reason)
    return path


def _seen(
    probe: str, norm: str, share: float, learned: float, layers: int, rng: np.random.Generator
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    plain = norm == "none"
    if probe == "landscape":
        width = (0.6 if plain else 0.1) * (1 - 0.5 * share)
        loss = 2.3 * (1 - 0.95 * learned) + 0.1
        return {
            "loss": loss, "loss_low": loss * (1 - width / 2), "loss_high": loss * (1 + width * 2),
            "gradient_change_low": width / 4, "gradient_change_high": 3 * width, "smoothness": 20 * width,
        }, {}  # fmt: skip
    if probe == "running" and plain:
        return {}, {}
    inside: dict[str, dict[str, Any]] = {}
    for depth in range(layers):
        middle = (1.5 * share * np.sin(4 * share + depth) if plain else 0.1 * np.sin(depth)) + rng.normal(0, 0.05)
        width = 0.3 + 3 * learned * (1 + depth / layers) if plain else 1.05
        counts = np.exp(-0.5 * ((np.linspace(-3, 3, 32) - rng.normal(0, 0.2)) * 1.1) ** 2) * 1000
        gradient = 10 ** (-1.5 - (0.35 if plain else 0.02) * (layers - depth) - share)
        name = f"layers.{depth * (2 if plain else 3) + 2}"
        inside[name] = {
            "activations": {
                "mean": middle, "std": width, "p15": middle - width, "p50": middle, "p85": middle + width,
                "saturated": float(np.clip(0.05 + (0.5 * learned if plain else 0.02) + 0.05 * depth, 0, 1)),
                "dead": 0.01 * depth,
                "histogram": {"low": middle - 3 * width, "high": middle + 3 * width, "counts": counts.round().tolist()},
            },
            "gradients": {
                "weight_norm": 10 + depth + share, "gradient_norm": gradient, "gradient_rms": gradient / 100,
                "histogram": {"low": -gradient / 20, "high": gradient / 20, "counts": counts.round().tolist()},
            },
            "running": {
                "mean_gap": 0.1 + 0.5 * float(np.exp(-20 * share)), "var_ratio": 1 + 0.5 * float(np.exp(-20 * share)),
                "var_ratio_low": 0.9, "var_ratio_high": 1.2 + float(np.exp(-20 * share)),
            },
            "input_shift": {"std_ratio": 1 + 0.01 * depth, "distance": (0.05 if plain else 0.01) * depth},
            "shift": {"shift": gradient / 3, "cosine": 0.9 - 0.1 * depth - (0.3 * share if plain else 0.0)},
        }[probe]  # fmt: skip
    return ({"gradient_norm": 0.5 * (1 - 0.8 * share)} if probe == "gradients" else {}), inside
