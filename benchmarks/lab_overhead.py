"""What the lab costs: `batchnorm train`'s loop beside a bare torch loop on ResNet-20 and CIFAR-10.

    python benchmarks/lab_overhead.py                      # under 6 minutes on two cores
    python benchmarks/lab_overhead.py --steps 60 --threads 2

Three comparisons, each of a bare loop with the lab's loop and its default probes in every 25th step, the most often
that they come by default: both train the network as it is built, with torch's batch normalization; both train it after
`batchnorm.convert`; the bare loop has torch's, the lab's is converted. Both arms take the same batches from the same
weights. They run in one process in turns: 25 steps
of one, then of the other, in random order, so that what the machine does meanwhile meets both; a ratio is taken
inside each such pair, and the first pair warms up. Records and probes are part of the lab's steps; evaluations and
checkpoints are not, as a bare loop has to do something of the kind too.

Unless arms with the same network end with bit-equal weights and buffers nothing is printed and the exit code is 1.
Rows go to benchmarks/results/lab_overhead.csv.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import batchnorm
from batchnorm.lab.bench.measure import Spread
from batchnorm.lab.data import Loader
from batchnorm.lab.environment import environment, load
from batchnorm.lab.training import TrainConfig
from batchnorm.lab.training.building import make_subject
from batchnorm.lab.training.run import Talk, train

RESULTS = Path(__file__).parent / "results/lab_overhead.csv"
#: Steps of a turn, and between measurements of the probes, so that each turn of the lab has one.
BLOCK = 25


@dataclass(frozen=True)
class Row:
    """One comparison, as it stands in the CSV file."""

    date: str
    commit: str
    processor: str
    torch: str
    threads: int
    network: str
    data: str
    batch_size: int
    steps: int
    pairs: int
    bare_ms: float
    lab_ms: float
    ratio_20: float
    ratio: float
    ratio_80: float
    load: float | None


def bare(config: TrainConfig) -> tuple[nn.Module, Iterator[None]]:
    """Make the network and a loop as one writes it without a lab; each ``next`` is a step."""
    subject = make_subject(config, dataset=None, model=None, rank=0, world=1)
    model, resolved = subject.model, subject.config
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": resolved.l2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=resolved.lr, momentum=resolved.momentum)

    def loop() -> Iterator[None]:
        for batch in batches(subject.loader):
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(batch.x), batch.y)
            loss.backward()
            optimizer.step()
            if not loss.item() < float("inf"):
                raise SystemExit("diverged")
            yield

    return model, loop()


def batches(loader: Loader) -> Iterator[Any]:
    """Draw batches for ever."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


class Turns:
    """Two loops that run in turns, one in the main thread and one that calls back after each of its steps.

    Parameters
    ----------
    config : TrainConfig
        What both train.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.pairs: list[tuple[float, float]] = []
        self.bare_model, self.loop = bare(config)
        self.order = random.Random(0)  # noqa: S311  # nothing secret
        self.step, self.start, self.first = 0, 0.0, 0.0
        self.bare_goes_first = False

    def before_step(self) -> None:
        """Hear that the lab is about to take a step: at the beginning of a block the bare loop may go first."""
        if self.step % BLOCK == 0:
            if self.step:
                self._end_block(time.perf_counter() - self.start)
            self.bare_goes_first = self.order.random() < 0.5
            if self.bare_goes_first:
                self.first = self._bare_block()
            self.start = time.perf_counter()
        self.step += 1

    def end(self) -> None:
        """Hear that the lab has taken its last step."""
        self._end_block(time.perf_counter() - self.start)

    def _end_block(self, lab: float) -> None:
        took = self.first if self.bare_goes_first else self._bare_block()
        self.pairs.append((took / BLOCK, lab / BLOCK))

    def _bare_block(self) -> float:
        start = time.perf_counter()
        for _ in range(BLOCK):
            next(self.loop)
        return time.perf_counter() - start


def compare(config: TrainConfig, *, bare_convert: bool) -> tuple[list[tuple[float, float]], bool]:
    """Run both loops in turns: seconds per step of each pair, and whether they ended bit-equal."""
    from batchnorm.lab.training.loop import Loop
    from batchnorm.lab.training.step import Stepper

    turns = Turns(replace(config, convert=bare_convert))
    trained: dict[str, Any] = {}
    taking, evaluating, saving = Stepper.__call__, Loop._evaluate, Loop._save  # noqa: SLF001  # what a turn leaves out

    def step(self: Stepper, *arguments: Any, **settings: Any) -> Any:
        turns.before_step()
        return taking(self, *arguments, **settings)

    def last(self: Loop) -> bool:
        if self.at.step == self.steps:
            turns.end()
            trained.update(self.stepper.model.state_dict())
        return False

    nothing: Callable[[Loop], None] = lambda _loop: None  # noqa: E731  # a method that does nothing
    Stepper.__call__, Loop._evaluate, Loop._save = step, last, nothing  # type: ignore[method-assign]  # noqa: SLF001
    try:
        train(config, talk=Talk())
    finally:
        Stepper.__call__, Loop._evaluate, Loop._save = taking, evaluating, saving  # type: ignore[method-assign]  # noqa: SLF001
    expected = turns.bare_model.state_dict()
    same = trained.keys() == expected.keys() and all(torch.equal(trained[name], expected[name]) for name in expected)
    return turns.pairs[1:], same  # the first pair warms up


def main() -> int:
    """Measure, write the rows, print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    batchnorm.tune_allocator()  # for both arms
    rows = []
    for name, bare_convert, convert in (
        (asked.model, False, False),
        (f"{asked.model}, converted", True, True),
        (f"{asked.model}, converted in the lab alone", False, True),
    ):
        with tempfile.TemporaryDirectory() as directory:
            config = TrainConfig(
                data=asked.data, data_dir=asked.data_dir, model=asked.model, norm="torch", convert=convert,
                steps=asked.steps, batch_size=asked.batch_size, threads=asked.threads, optimizer="momentum", lr=0.1,
                schedule="constant", probe_every=BLOCK, train_subset=0, out=Path(directory) / "run",
            )  # fmt: skip
            pairs, same = compare(config, bare_convert=bare_convert)
        if not same and bare_convert == convert:
            sys.stderr.write(f"{name}: the arms ended with different weights, so no numbers\n")
            return 1
        ratio = Spread.of([lab / alone for alone, lab in pairs])
        machine = environment(asked.threads)
        rows.append(
            Row(
                str(machine["date"]), str(machine["commit"]), str(machine["processor"]), torch.__version__,
                asked.threads, name, asked.data, asked.batch_size,
                asked.steps, len(pairs), 1e3 * Spread.of([alone for alone, _ in pairs]).median,
                1e3 * Spread.of([lab for _, lab in pairs]).median, ratio.p20, ratio.median, ratio.p80,
                averages[0] if (averages := load()) else None,
            )
        )  # fmt: skip
        print(
            f"{rows[-1].network}: bare {rows[-1].bare_ms:.1f} ms a step, lab {rows[-1].lab_ms:.1f} ms, ratio "
            f"{ratio.median:.3f} ({ratio.p20:.3f} to {ratio.p80:.3f}, 20th to 80th percentile of {len(pairs)} pairs)"
        )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    new = not asked.out.exists()
    with asked.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(map(asdict, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
