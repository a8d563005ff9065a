"""The page's tables are those of the stored matrix, and the stored matrix meets the goals."""

from __future__ import annotations

import json

import pytest

from batchnorm.probes.diagnosis import CAUSES
from probes.diagnosis import matrix


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(matrix.RESULTS.read_text(encoding="utf-8"))


def test_the_page_shows_the_stored_matrix(results: dict) -> None:
    page = matrix.PAGE.read_text(encoding="utf-8")
    assert matrix.filled(page, results) == page


def test_the_page_lists_every_cause() -> None:
    page = matrix.PAGE.read_text(encoding="utf-8")
    for cause in CAUSES:
        assert f"| `{cause.name}` | {cause.title} | {cause.signature} |" in page


def test_the_goals(results: dict) -> None:
    rows = results["causes"]
    located = [row for row in rows if row["layer"] is not None]
    assert sum(map(matrix.right, rows)) >= 0.9 * len(rows)
    assert sum(row["layers"][:1] == [row["layer"]] for row in located) >= 0.9 * len(located)
    assert sum(set(row["causes"]) <= set(row["named"][:3]) for row in results["pairs"]) >= 0.8 * len(results["pairs"])
    assert len(results["healthy"]) >= 20
    assert [row["network"] for row in results["healthy"] if row["named"]] == []
    sums = [row["sum"] for row in rows if row["sum"] is not None and row["closed_by"] == "recalibrated"]
    assert sums
    assert max(abs(total - 1) for total in sums) < 0.05
