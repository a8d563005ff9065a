"""Under torchrun every cell is a distributed training; one process stores the plan and makes the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import batchnorm
from batchnorm.lab.experiments.plan import missing, read_plan
from batchnorm.lab.recording import read_train_run

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "batchnorm"]
SMALL = ["--data", "two_moons", "--hidden", "8", "--lr", "0.1", "--seeds", "2", "--steps", "6", "--evaluate-every", "3"]


def test_two_processes_train_every_cell_together(tmp_path: Path) -> None:
    done = subprocess.run(
        [*LAUNCH, "compare", *SMALL, "--no-units", "--out", "run"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(batchnorm.__file__).parents[1])},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = tmp_path / "run"
    plan = read_plan(path)
    assert missing(plan, path) == []
    run = read_train_run(plan.cells[0].directory(path))
    assert run.environment["processes"] == 2
    assert run.step == 6
    assert done.stdout.count("report: ") == 1
