"""From the command line to the page, in this process, for every claim."""

import json
import shlex

import pytest

from batchnorm.lab import cli
from batchnorm.lab.claims import races, run
from batchnorm.lab.claims.config import ClaimsConfig, ListClaims, RunClaims
from batchnorm.lab.claims.registry import CLAIMS

FIGURES = {"activation-statistics": 5, "optimizers": 2, "whitening": 3, "regularizers": 3}
SMALL = {"activation-statistics": ["--units", "32", "--seeds", "1"], "optimizers": ["--seeds", "3"],
         "whitening": ["--seeds", "1"], "regularizers": ["--seeds", "1"]}  # fmt: skip


def test_list_names_every_claim_with_its_source(capsys):
    assert cli.main(["claims", "list"]) == 0
    printed = capsys.readouterr().out
    for claim in CLAIMS.values():
        assert f"{claim.name}\n    {claim.sentence}" in printed
        assert claim.source in printed


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_runs_and_its_page_has_verdict_and_figures(tmp_path, capsys, name, monkeypatch):
    settings = races.settings
    monkeypatch.setattr(races, "settings", lambda c: {**settings(c), "limit": 60, "lr": [0.001, 0.01, 0.1]})
    out = tmp_path / "run"
    code = cli.main(["claims", "run", name, "--quick", *SMALL[name], "--out", str(out)])
    printed = capsys.readouterr()
    assert printed.err == ""
    summary = json.loads((out / "summary.json").read_text())
    assert code == (0 if summary["verdict"] == "holds" else 1)
    for check in summary["checks"]:
        assert check["n"] == len(check["passed"]) >= 1
    page = (out / "report.html").read_text()
    assert f"{summary['verdict'][:1].upper()}{summary['verdict'][1:]}. " in page
    assert "What decides" in page
    assert CLAIMS[name].source in page
    assert page.count("data:image/png;base64,") == FIGURES[name] == len(list((out / "figures").glob("*.png")))
    assert "What decides" in printed.out
    assert f"report: {out / 'report.html'}" in printed.out
    assert json.loads((out / "status.json").read_text()) == {"status": "finished"}
    command = json.loads((out / "config.json").read_text())["command"]
    parsed = cli._parse(shlex.split(command)[1:])
    assert parsed.action.names == (name,)
    before = (out / "summary.json").read_text()
    (out / "summary.json").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "summary.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "claims run needs at least one name"),
        (["run", "gravity"], "gravity"),
        (["run", "optimizers", "optimizers"], "names must hold each claim once"),
        (["run", "optimizers", "--seeds", "0"], "seeds must be at least 1; got 0"),
        (["run", "activation-statistics", "--units", "3"], "units must be at least 16; got 3"),
        (["run", "optimizers", "--units", "64"], "units belongs to the claim activation-statistics"),
        (["run", "whitening", "--data", "a.npz"], "data belongs to the claim regularizers"),
        (["run", "regularizers", "--data", "nowhere.npz"], "cannot read nowhere.npz: no such file"),
        (["run", "whitening", "--out", "full"], "it is not empty"),
        (["run", "whitening", "--out", "full/file"], "it is a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    assert cli.main(["claims", *arguments]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("batchnorm: error: ")
    assert message in line
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_keeps_the_records_and_exits_130(tmp_path, monkeypatch, capsys):
    def interrupted(_given):
        yield races.Measurement("one", [{"steps": float("inf")}], {})
        raise KeyboardInterrupt

    monkeypatch.setattr(races, "measure", interrupted)
    out = tmp_path / "run"
    assert cli.main(["claims", "run", "optimizers", "--quick", "--out", str(out)]) == 130
    assert (out / "records.jsonl").read_text() == '{"steps":null}\n'
    assert json.loads((out / "status.json").read_text()) == {"status": "interrupted"}
    capsys.readouterr()
    assert cli.main(["report", str(out)]) == 2
    assert "interrupted run of a claim; run it again" in capsys.readouterr().err


def test_damaged_records_are_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"claim": "whitening", "config": {}}')
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is not a finished run of a claim: no such file" in capsys.readouterr().err


def test_several_claims_get_a_directory_each(tmp_path):
    several = RunClaims(("whitening", "optimizers"), out=tmp_path)
    assert run.directories(several) == {n: tmp_path / n for n in ("whitening", "optimizers")}
    (path,) = run.directories(RunClaims(("whitening",))).values()
    assert path.parts[0] == "runs"
    assert path.name.startswith("claim-whitening-")


def test_the_command_line_parses_into_the_dataclasses():
    assert cli._parse(["claims", "list"]) == ClaimsConfig(ListClaims())
    assert cli._parse(["claims", "run", "whitening", "--quick"]).action == RunClaims(("whitening",), quick=True)
