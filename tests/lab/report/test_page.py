"""The page of training runs: complete, self-contained, safe, small, and what it writes where."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import pytest

from batchnorm.lab import cli
from batchnorm.lab.errors import OutputError
from batchnorm.lab.recording import Recorder
from batchnorm.lab.report import make_report
from lab.synthetic_train import ENVIRONMENT, config, write_records, write_run


def _carried(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def test_the_page_says_the_numbers_the_settings_and_the_commands(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"{norm}{seed}", norm=norm, seed=seed, steps=200, evaluations=8, records=20)
             for norm in ("none", "batch") for seed in (0, 1)]  # fmt: skip
    report = make_report(paths, tmp_path / "page")
    text = html.unescape(report.page.read_text(encoding="utf-8"))
    assert report.study is not None
    assert report.numbers is not None
    answer = report.verdict
    cells = [cell for table in report.tables for row in table.rows for cell in row]
    commands = [config(norm=norm, seed=seed)["command"] for norm in ("none", "batch") for seed in (0, 1)]
    for sentence in [answer.headline, *answer.numbers, *answer.limits, *cells, *commands]:
        assert sentence in text
    assert "batchnorm report" in text
    summary = json.loads((tmp_path / "page/summary.json").read_text())
    assert summary["groups"][1]["arms"]["0.0"]["final_accuracy"]["mean"] == report.numbers.arms[1].final_accuracy.mean
    assert {path.name for path in (tmp_path / "page/figures").iterdir()} == {"over-training.png", "layers.png"}


def test_the_curves_on_the_page_are_those_of_the_records(tmp_path: Path) -> None:
    path = write_records(tmp_path / "run", [0.25, None, 0.75])
    chart = _carried(make_report([path]).page.read_text())["charts"][0]
    assert (chart["title"], chart["unit"]) == ("Accuracy", "share")
    (series,) = chart["variants"][0]["series"]
    assert (series["step"], series["mean"]) == ([10, 20, 30], [0.25, None, 0.75])
    assert (series["epoch"], series["second"], series["runs"]) == ([0.5, 1.0, 1.5], [1, 2, 3], [1, 0, 1])


def test_only_its_own_script_may_run_and_nothing_is_fetched(tmp_path: Path) -> None:
    text = make_report([write_records(tmp_path / "run", [0.5])]).page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    (code,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert html.unescape(policy[1]) == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert "innerHTML" not in code


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_text_from_the_runs_is_never_markup(tmp_path: Path) -> None:
    settings = config(model=EVIL)
    recorder = Recorder.create(tmp_path / "run", config=settings, environment={**ENVIRONMENT, "processor": EVIL})
    at = {"step": 1, "epoch": 1.0, "seconds": 1.0}
    recorder.metrics("test", **at, loss=1.0, accuracy=0.5)
    layer = {"p50": 1.0}
    recorder.probe("activations", step=1, epoch=1.0, scalars={}, layers={EVIL: layer})
    recorder.end(status="failed", step=1, reason=EVIL)
    text = make_report([tmp_path / "run"]).page.read_text()
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<img src=x" not in text
    assert _carried(text)["layers"]["probes"]["activations"][0]["names"] == [EVIL]


def test_a_long_training_of_a_deep_network_stays_below_two_megabytes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", steps=20_000, records=20_000, evaluations=200, layers=12)
    page = make_report([path]).page
    assert page.stat().st_size < 2_000_000
    series = _carried(page.read_text())["charts"][1]["variants"][1]["series"][0]
    assert len(series["step"]) < 320


@pytest.mark.parametrize("kind", ["empty", "one record", "diverged at once", "no probes", "NaN only", "interrupted"])
def test_every_kind_of_run_has_a_page(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "interrupted":
        write_run(path, steps=100, evaluations=4, records=10, status="", stop=0.3)
    else:
        accuracy: list = {"empty": [], "one record": [0.5], "diverged at once": [None]}.get(kind, [None, None])
        write_records(path, accuracy, status="diverged" if kind == "diverged at once" else "finished")
    text = make_report([path]).page.read_text()
    assert re.search(r"\bnan\b", re.sub(r"<script.*?</script>|base64,[^\"]*", "", text, flags=re.S).lower()) is None
    assert "What was asked" in text


def test_the_page_of_one_run_lies_in_it_and_of_several_in_a_new_place(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = (write_records(tmp_path / name, [0.5], seed=seed) for seed, name in enumerate("ab"))
    assert make_report([one]).page == one / "report.html"
    page = make_report([one, other]).page
    assert re.fullmatch(r"runs/report-\d{8}T\d{6}Z/report.html", page.as_posix())
    out = tmp_path / "deep/page"
    make_report([one, other], out)
    assert make_report([one], out).page == out / "report.html"  # an earlier report may be replaced


def test_what_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    run = write_records(tmp_path / "run", [0.5])
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("")
    for out, why in (("file", "it is a file"), ("file/page", "not a directory"), ("full", "holds something else")):
        with pytest.raises(OutputError, match=why):
            make_report([run], tmp_path / out)
    (run / "figures").write_text("in the way")
    with pytest.raises(OutputError, match="figures"):
        make_report([run])


def test_the_command_prints_the_same_numbers_and_refuses_in_one_line(tmp_path: Path, capsys) -> None:
    one = write_records(tmp_path / "a", [0.5, 0.75], norm="none")
    other = write_records(tmp_path / "b", [0.5, 0.875])
    assert cli.main(["report", str(one), str(other), "--out", str(tmp_path / "page")]) == 0
    printed = capsys.readouterr()
    assert (
        "Batch norm reached the accuracy that no normalization ended with (75.0%) in about as many steps" in printed.out
    )
    assert printed.out.endswith(f"\nreport: {tmp_path / 'page/report.html'}\n")
    assert "87.5%" in printed.out
    for arguments, message in (
        ([str(tmp_path / "absent")], "it does not exist"),
        ([str(one), str(tmp_path)], "holds no config.json"),
        ([str(one), str(one)], "is given twice"),
        ([], "at least one run directory"),
    ):
        assert cli.main(["report", *arguments]) == 2
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1
        assert message in complaint
