"""Stored results of claims, and the pages of all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from batchnorm.lab import cli
from batchnorm.lab.errors import LabError
from batchnorm.lab.experiments.claims import registry
from batchnorm.lab.experiments.claims.run import judge
from batchnorm.lab.report import claims

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Two claims that were run, at tiny sizes."""
    out = tmp_path_factory.mktemp("results")
    cli.main(["claims", "run", "whitening", "--seeds", "3", "--set", "channels=8,16", "limit=50", "--out",
              str(out / "whitening")])  # fmt: skip
    cli.main(["claims", "run", "convexity-and-descent", "--seeds", "2", "--set", "steps=40", "points=5", "samples=20",
              "--out", str(out / "convexity-and-descent")])  # fmt: skip
    return out


def test_the_page_of_the_documentation_is_what_the_stored_results_give() -> None:
    made = claims.markdown(claims.read_results(DOCS / "claims"))
    assert (DOCS / "claims.md").read_text(encoding="utf-8") == made, "run `batchnorm claims store`"


def test_every_claim_has_a_place_on_the_page_and_its_own_verdict() -> None:
    page = (DOCS / "claims.md").read_text(encoding="utf-8")
    for name, own in claims.read_results(DOCS / "claims").items():
        assert f"\n## {name}\n" in page
        for budget in own:
            assert f"{budget.capitalize()} budget: {claims.findings_of(own[budget]).status}." in page


def test_a_result_comes_back_as_it_was_judged(results, tmp_path, capsys) -> None:
    directories = sorted(results.iterdir())
    assert cli.main(["claims", "store", *map(str, directories), "--into", str(tmp_path / "claims")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {tmp_path / 'claims.md'}"
    stored = claims.read_results(tmp_path / "claims")
    assert set(stored) == set(registry.names())
    for directory in directories:
        judged = judge(directory)
        result = stored[judged.claim.name]["small"]
        found = claims.findings_of(result)
        assert found.status == judged.findings.status
        assert [c.status for c in found.checks] == [c.status for c in judged.findings.checks]
        assert result["seconds"] == judged.seconds > 0
        assert str(results) not in json.dumps(result)  # nothing of the machine's folders
    page = (tmp_path / "claims.md").read_text()
    assert "| [optimizers](#optimizers) |" in page
    assert "**Full budget: not run**" in page
    assert judge(directories[0]).findings.headline in page


def test_a_verdict_on_the_page_follows_from_the_values_not_from_a_word() -> None:
    checks = [{"name": "n", "measured": "m", "bound": 0.0, "above": True, "values": [-1.0, -2.0, "inf"]}]
    result = {"headline": "It was measured.", "checks": checks, "limits": [], "verdict": "holds"}
    assert claims.findings_of(result).status == "does not hold"
    result["checks"][0]["values"] = [1.0, 1.1]
    assert claims.findings_of(result).status == "inconclusive"


def test_a_result_of_another_rule_or_of_no_claim_is_refused(results, tmp_path) -> None:
    claims.store([judge(results / "whitening")], tmp_path / "claims")
    file = tmp_path / "claims/whitening.small.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({**before, "rule": "It is nice."}))
    with pytest.raises(LabError, match="made by a rule that whitening no longer has; run it again: batchnorm claims"):
        claims.read_results(tmp_path / "claims")
    file.write_text(json.dumps({**before, "settings": {**before["settings"], "limit": 3}}))
    with pytest.raises(LabError, match="made by a setting that whitening no longer has"):
        claims.read_results(tmp_path / "claims")
    file.write_text(json.dumps({**before, "claim": "whitning"}))
    with pytest.raises(LabError, match="'whitning' is no claim; did you mean 'whitening'"):
        claims.read_results(tmp_path / "claims")


def test_several_claims_are_reported_on_one_page(results, tmp_path, capsys) -> None:
    paths = [str(results / name) for name in ("whitening", "convexity-and-descent")]
    assert cli.main(["report", *paths, "--out", str(tmp_path / "all")]) == 0
    page = (tmp_path / "all/report.html").read_text()
    assert page.count('<section class="claim"') == page.count("data:image/png;base64,") == 2
    for name in ("whitening", "convexity-and-descent"):
        found = judge(results / name)
        assert f'<a href="#{name}">' in page
        assert f'">{found.findings.status}</p>' in page
    assert "batchnorm claims run whitening" in page
    assert "Of 2 claims" in capsys.readouterr().out
    shutil.copytree(results / "whitening", tmp_path / "again")
    assert cli.main(["report", paths[0], str(tmp_path / "again"), "--out", str(tmp_path / "b")]) == 2
    assert "whitening is given twice" in capsys.readouterr().err


def test_running_several_ends_with_one_page_of_all(tmp_path, capsys) -> None:
    names = ["convexity-and-descent", "train-eval"]
    assert cli.main(["claims", "run", *names, "--seeds", "1", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "Of 2 claims 2 are inconclusive." in printed  # one repetition decides nothing
    assert f"report of all: {tmp_path / 'all/report.html'}" in printed
    assert '<a href="#train-eval">' in (tmp_path / "all/report.html").read_text()
