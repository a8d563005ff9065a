"""One process of several: trains, and saves what it holds afterwards. For torchrun.

torchrun --standalone --nproc-per-node 2 ranks.py DIRECTORY
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from batchnorm.lab.training import train
from lab.training.runs import plain, points


def network(norm: str) -> torch.nn.Module:
    """Make a small network; ``norm`` is none or batch."""
    torch.manual_seed(3)
    between = [torch.nn.BatchNorm1d(8)] if norm == "batch" else []
    return torch.nn.Sequential(torch.nn.Linear(6, 8), *between, torch.nn.ReLU(), torch.nn.Linear(8, 3))


def main() -> None:
    """Train without and with batch normalization, and resume."""
    directory, rank = Path(sys.argv[1]), os.environ["RANK"]
    runs = {"none": ("none", "running"), "batch": ("batch", "running"), "longer": ("batch", "population")}
    for name, (norm, statistics) in runs.items():
        model = network(norm)
        outcome = train(plain(directory / name, norm, statistics=statistics), dataset=points(), model=model)
        scores = {kind: asdict(score) for kind, score in outcome.scores.items()}
        torch.save({"model": model.state_dict(), "scores": scores}, directory / f"{name}-{rank}.pt")
    longer = plain(directory / "longer", "batch", steps=12, statistics="population")
    train(longer, resume=directory / "longer", dataset=points(), model=network("batch"))


if __name__ == "__main__":
    main()
