"""train() beside eval(): the three programs of a course note, with momentum 0, 0.1, 1 and None side by side."""

from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from batchnorm import BatchNorm1d
from batchnorm.lab.experiments.claims.form import (
    Array,
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    number,
    style,
)
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.wording import Table

MOMENTA: dict[str, float | None] = {"0": 0.0, "0.1": 0.1, "1": 1.0, "None": None}
INPUTS = (100_000.0, 200_000.0)  # of the second and third program


def _measure(settings: Settings) -> Iterator[Measurement]:
    for seed in range(settings["seeds"]):
        records, arrays = [], {}
        for name, momentum in MOMENTA.items():
            x = torch.tensor(INPUTS)[:, None]
            layer, _ = train(x, momentum, seed, settings)
            records.append({"kind": "momentum", "seed": seed, "momentum": name, **compare(x, layer)})
            arrays[f"ratio/{name}/{seed}"] = first_batches(x, momentum, settings["shown"])
        for high in settings["high"]:
            for mode in (True, False):
                _, losses = train(torch.tensor([[1.0], [high]]), 0.1, seed, settings, training=mode)
                records.append(
                    {
                        "kind": "apart",
                        "seed": seed,
                        "high": high,
                        "training": mode,
                        "first": losses[0],
                        "last": losses[-1],
                    }
                )
        yield Measurement(f"seed {seed}", records, arrays)


def train(
    x: torch.Tensor, momentum: float | None, seed: int, settings: Settings, *, training: bool = True
) -> tuple[nn.Sequential, list[float]]:
    """Train Linear(1, 1) and BatchNorm1d(1) under a sigmoid with Adam, as the first two programs do.

    Parameters
    ----------
    x : Tensor of shape (2, 1)
        The batch; its targets are 0 and 1.
    momentum : float or None
        Of the running statistics.
    seed : int
        Of the initial weights.
    settings : mapping
        ``steps`` and ``lr``.
    training : bool
        The mode of the layer while it trains: the source has ``network1.eval()`` as a comment.

    Returns
    -------
    layer : Sequential
        Linear and BatchNorm1d, in that mode.
    losses : list of float
        Before each step.
    """
    torch.manual_seed(seed)
    layer = nn.Sequential(nn.Linear(1, 1), BatchNorm1d(1, momentum=momentum)).train(training)
    optimizer = torch.optim.Adam(layer.parameters(), lr=settings["lr"], foreach=False)
    target, losses = torch.tensor([[0.0], [1.0]]), []
    for _ in range(settings["steps"]):
        optimizer.zero_grad()
        loss = ((torch.sigmoid(layer(x)) - target) ** 2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return layer, losses


def compare(x: torch.Tensor, layer: nn.Sequential) -> Record:
    """Return the distance between the two outputs in each mode, between the inputs of the layer, and gamma."""
    first, norm = layer.children()
    with torch.no_grad():
        u = first(x)
        before = _distance(norm.eval()(u))
        trained = _distance(norm.train()(u))
    return {"train": trained, "eval": before, "inputs": _distance(u), "gamma": norm.get_parameter("weight").item()}


def first_batches(x: torch.Tensor, momentum: float | None, batches: int) -> Array:
    """Return eval() over train() after 0, 1, ... forwards of one batch in training mode: the third program."""
    norm, ratios = BatchNorm1d(1, affine=False, momentum=momentum), []
    with torch.no_grad():
        for _ in range(batches + 1):
            evaluated = _distance(norm.eval()(x))
            ratios.append(evaluated / _distance(norm.train()(x)))
    return np.array(ratios)


def _distance(y: torch.Tensor) -> float:
    return abs(y[1] - y[0]).item()


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    by = {name: [r for r in records if r["kind"] == "momentum" and r["momentum"] == name] for name in MOMENTA}
    m = len(INPUTS)
    settled = float(np.sqrt((m - 1) / m))
    farthest = [r for r in records if r["kind"] == "apart" and r["high"] == max(settings["high"])]
    falls = {mode: [r["last"] / r["first"] for r in farthest if r["training"] == mode] for mode in (True, False)}
    ratios = {name: [r["eval"] / r["train"] for r in rows] for name, rows in by.items()}
    # With momentum 0, eval() only multiplies by gamma: 1 / sqrt(1 + eps) is all that its statistics do.
    untouched = [abs(r["eval"] / abs(r["gamma"] * r["inputs"]) - 1) for r in by["0"]]
    checks = [
        Check(
            "train() and eval() differ", "|eval / train - 1|, momentum 0.1", [abs(v - 1) for v in ratios["0.1"]], 0.01
        ),
        Check(
            "they differ by sqrt((m - 1) / m)",
            "|eval / train / 0.7071 - 1|, momentum 1",
            [abs(v / settled - 1) for v in ratios["1"]],
            0.001,
            above=False,
        ),
        Check(
            "momentum 0: eval() does not normalize",
            "change of the distance besides gamma",
            untouched,
            1e-4,
            above=False,
        ),
        Check("inputs 1 and 2e13: the loss stays", "last loss over the first, in train()", falls[True], 0.9),
    ]
    with mpl.rc_context(SETTINGS):
        pictures = [_picture(arrays, settled)]
    return Findings(
        f"Outputs in eval() are {np.mean(ratios['1']):.4f} times as far apart as in train() with momentum 1, "
        f"{np.mean(ratios['0.1']):.4f} with 0.1; with inputs 1 and {max(settings['high']):.0e} the loss ends at "
        f"{100 * np.mean(falls[True]):.2g}% of its first value in train(), "
        f"{100 * np.mean(falls[False]):.0f}% in eval().",
        checks,
        pictures,
        numbers=[
            (
                f"sqrt((m - 1) / m) with m = {m}: train() divides by the variance over m; the running variance, which "
                f"eval() divides by, is m / (m - 1) times as large, so that it is not biased. Hence {settled:.4f} for "
                "statistics that have settled on this batch. With m = 1000 it would be 0.9995."
            ),
            (
                "momentum is the weight of the new batch. 0: the running statistics stay 0 and 1, and eval() hands its "
                "inputs on; that is not the paper, whose Algorithm 2 evaluates with population statistics. 1: those of "
                "the last batch. None: the mean over all batches, old ones as much as new ones."
            ),
            (
                "Inputs far apart: batch statistics bring them to -1 and 1 whatever their size, and gamma learns the "
                "rest. What stays is the weight in front, as the output does not depend on its size."
            ),
        ],
        limits=[
            "Two inputs in a batch: the largest difference there can be between the two variances.",
            "The source does not say which loss it saw; it was in torch, with the same layers and optimizer.",
        ],
        tables=[_table(by), _apart(records)],
        definitions=[("distance", "Between the outputs for the two inputs.")],
    )


def _table(by: dict[str, list[Record]]) -> Table:
    rows = [
        [
            name,
            *(number(float(np.mean([r[key] for r in rows]))) for key in ("inputs", "train", "eval")),
            f"{np.mean([r['eval'] / r['train'] for r in rows]):.4f}",
        ]
        for name, rows in by.items()
    ]
    return Table(
        "After training",
        ["momentum", "distance of inputs", "in train()", "in eval()", "eval / train"],
        rows,
        "Second program: inputs 100,000 and 200,000; mean over seeds.",
    )


def _apart(records: Sequence[Record]) -> Table:
    found: dict[tuple[float, bool], list[float]] = {}
    for r in records:
        if r["kind"] == "apart":
            found.setdefault((r["high"], r["training"]), []).append(r["last"] / r["first"])
    rows = [
        [f"1 and {high:g}", "train()" if mode else "eval()", number(float(np.mean(values))), number(max(values))]
        for (high, mode), values in found.items()
    ]
    return Table(
        "Inputs far apart",
        ["inputs", "trained in", "last loss / first, mean", "largest"],
        rows,
        "First program, and the same with its commented line network1.eval().",
    )


def _picture(arrays: Arrays, settled: float) -> Picture:
    figure = Figure(figsize=(7.5, 4.0), layout="constrained")
    axes = figure.subplots()
    for k, name in enumerate(MOMENTA):
        axes.plot(arrays[f"ratio/{name}/0"], label=f"momentum {name}", **style(k))
    axes.axhline(settled, color="#888888", ls=":", lw=1)
    axes.axhline(1.0, color="#888888", lw=1)
    axes.set(yscale="log", xlabel="forward passes in train()", ylabel="distance in eval() / in train()")
    axes.legend()
    return Picture(
        "modes",
        "eval() over train()",
        "Third program: one layer without gamma and beta, fed the same batch. "
        "Dotted: sqrt((m - 1) / m) for m = 2; line: the same output in both modes.",
        "Ratio of outputs in the two modes over forward passes, for four momenta.",
        figure,
    )


_SIZES = {"lr": 0.04, "shown": 60, "high": [2.0, 2e5, 2e13]}
CLAIM = Claim(
    name="train-eval",
    sentence="train() and eval() give different outputs on the same data; with momentum 0, eval() does not normalize; "
    "and where inputs are as far apart as 1 and 2e13 the loss stays in spite of batch normalization.",
    source="A course note on Ioffe and Szegedy 2015 with three programs",
    protocol="Linear(1, 1), BatchNorm1d(1) and a sigmoid on a batch of two, by Adam, as in the programs, with "
    "momentum 0, 0.1, 1 and None; then inputs up to 2e13, trained in either mode.",
    rule="Outputs differ by more than 1%, and by sqrt((m - 1) / m) to 0.1% where the running statistics are the "
    "batch's; with momentum 0 nothing but gamma changes distances; the loss with inputs 1 and 2e13 ends above "
    "0.9 of its first.",
    budgets={"small": {"seeds": 5, "steps": 1000, **_SIZES}, "full": {"seeds": 20, "steps": 5000, **_SIZES}},
    cost={"small": "1 min", "full": "15 min"},
    published="Outputs ±8.2227 in train() and ±5.8143 in eval(): a ratio of 0.7071.",
    differs="Several initial weights instead of one that is not known; a fixed number of steps instead of an endless "
    "loop; small budget: 1000 steps instead of 5000.",
    measure=_measure,
    find_in_records=_find,
)
