"""The whole matrix: every cause, three networks, three seeds; pairs of causes; healthy networks.

``make diagnose-matrix`` writes it to docs/guides/diagnose-matrix.json, and the tables of it into
docs/guides/eval-worse-than-train.md.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

import batchnorm
from probes.diagnosis import healthy, injections_after, injections_before, pairs
from probes.diagnosis.networks import PROBLEMS, Case

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "guides" / "diagnose-matrix.json"
PAGE = ROOT / "docs" / "guides" / "eval-worse-than-train.md"
BEGIN, END = "<!-- matrix: written by make diagnose-matrix -->", "<!-- end of matrix -->"
SEEDS = (0, 1, 2)


def measure(given: Case) -> dict[str, Any]:
    found = batchnorm.diagnose(given.model, given.loader, **given.options)
    shares = [row.share for row in found.layers if row.share is not None]
    return {
        "verdict": found.verdict,
        "named": [cause.cause for cause in found.causes],
        "layer": given.layer,
        "layers": list(found.causes[0].layers) if found.causes else [],
        "closed_by": found.closed_by,
        "sum": sum(shares) if shares else None,
        "gap": found.gap,
    }


def _tasks() -> Iterator[tuple[str, dict[str, Any], Callable[[], Case | None]]]:
    """Yield for each case the table it belongs to, its row without results, and how it is made."""
    for half, module in (("before", injections_before), ("after", injections_after)):
        for inject in module.INJECTIONS:
            for name in PROBLEMS:
                for seed in SEEDS:
                    yield "causes", {"half": half, "network": name, "seed": seed}, partial(inject, name, seed)
    for causes, make in pairs.PAIRS.items():
        for name in PROBLEMS:
            for seed in SEEDS:
                yield "pairs", {"causes": list(causes), "network": name, "seed": seed}, partial(make, name, seed)
    for name, make in healthy.HEALTHY.items():
        yield "healthy", {"network": name}, make


def _one(number: int) -> tuple[str, dict[str, Any] | None]:
    torch.set_num_threads(1)
    table, row, make = list(_tasks())[number]
    given = make()
    if given is None:
        return table, None
    return table, {"cause": given.cause, **row, **measure(given)}


def run(workers: int, say: Callable[[object], object]) -> dict[str, Any]:
    results: dict[str, Any] = {"torch": torch.__version__, "causes": [], "pairs": [], "healthy": []}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for table, row in pool.map(_one, range(len(list(_tasks())))):
            if row is not None:
                results[table].append(row)
                say(row)
    return results


def right(row: dict[str, Any]) -> bool:
    return bool(row["named"]) and row["named"][0] == row["cause"]


def summary(results: dict[str, Any]) -> list[str]:
    """Return the lines of the page between its marks."""
    rows = results["causes"]
    located = [row for row in rows if row["layer"] is not None]
    found = [row for row in located if row["layers"][:1] == [row["layer"]]]
    two = [row for row in results["pairs"] if set(row["causes"]) <= set(row["named"][:3])]
    well = [row for row in results["healthy"] if not row["named"]]
    sums = [row["sum"] for row in rows if row["sum"] is not None and row["closed_by"] == "recalibrated"]
    lines = [
        "| measured | result |",
        "|---|---|",
        _share("right cause first", sum(map(right, rows)), len(rows)),
        *(
            _share(f"of them injections written {half} the rules", sum(map(right, some)), len(some))
            for half in ("before", "after")
            if (some := [row for row in rows if row["half"] == half])
        ),
        _share("right layer first, where one is at fault", len(found), len(located)),
        _share("two causes, both among the first three", len(two), len(results["pairs"])),
        _share("healthy networks without a named cause", len(well), len(results["healthy"])),
        f"| sum of the shares, gaps in the buffers | {min(sums):.3f} to {max(sums):.3f} in {len(sums)} cases |",
        "",
        "| injected | " + " | ".join(PROBLEMS) + " | named instead |",
        "|---|" + "---|" * len(PROBLEMS) + "---|",
    ]
    for cause in dict.fromkeys(row["cause"] for row in rows):
        cells = []
        for name in PROBLEMS:
            here = [row for row in rows if row["cause"] == cause and row["network"] == name]
            cells.append(f"{sum(map(right, here))}/{len(here)}" if here else "-")
        wrong = Counter(
            row["named"][0] if row["named"] else row["verdict"]
            for row in rows
            if row["cause"] == cause and not right(row)
        )
        lines.append(f"| {cause} | {' | '.join(cells)} | {', '.join(f'{n} ({k})' for n, k in wrong.items())} |")
    return lines


def _share(what: str, good: int, number: int) -> str:
    return f"| {what} | {good} of {number} ({100 * good / number:.0f} %) |"


def written(results: dict[str, Any]) -> str:
    """Return the results as JSON with one line for each row."""
    tables = [
        f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]"
        if isinstance(rows, list)
        else f'"{name}": "{rows}"'
        for name, rows in results.items()
    ]
    return "{\n" + ",\n".join(tables) + "\n}\n"


def filled(page: str, results: dict[str, Any]) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n\n" + "\n".join(summary(results)) + "\n\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    results = run(
        int(sys.argv[1]) if sys.argv[1:] else 2, lambda row: sys.stdout.write(f"{row}\n") and sys.stdout.flush()
    )
    RESULTS.write_text(written(results), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
