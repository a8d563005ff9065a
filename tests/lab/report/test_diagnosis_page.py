"""The page of a diagnosis: it says what the JSON says, escapes, and needs nothing else."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.lab.errors import OutputError
from batchnorm.lab.report.diagnosis import FILE, PAGE, make_diagnosis_page, page_of
from lab.browser import CHROMIUM, browser


@pytest.fixture(scope="module")
def found() -> batchnorm.probes.diagnosis.Diagnosis:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2), nn.BatchNorm1d(2))
    data = [(3 * torch.randn(32, 4) + 5, torch.randint(2, (32,))) for _ in range(6)]
    for x, _ in data * 30:
        model(x)
    model[1].reset_running_stats()
    return batchnorm.diagnose(model.eval(), data)


def test_it_says_what_was_found(found: batchnorm.probes.diagnosis.Diagnosis, tmp_path: Path) -> None:
    found.save(tmp_path / FILE)
    text = html.unescape(make_diagnosis_page(tmp_path).read_text(encoding="utf-8"))
    assert found.headline in text
    assert [cause.cause for cause in found.causes] == ["buffers-lost"]
    for cause in found.causes:
        assert all(part in text for part in (cause.title, cause.fix, cause.confirm, *cause.evidence))
    for row in found.layers:
        assert f"{round(100 * row.share)}%" in text
    for probe in found.probes:
        assert probe.result in text
    assert text.count("<circle") == 2 * (8 + 2)  # mean and deviation of every channel
    assert not re.search(r"https?://|<script|src=", text)


def test_names_are_escaped_and_numbers_may_be_missing(found: batchnorm.probes.diagnosis.Diagnosis) -> None:
    carried = json.loads(json.dumps(found.to_dict()))
    carried["headline"] = carried["layers"][0]["name"] = "<b>bold</b>"
    carried["layers"][0]["channels"]["running_mean"] = [None] * 8
    carried["losses"]["as loaded"] = None
    page = page_of(carried)
    assert "<b>" not in page
    assert "(8 not finite)" in page
    assert "not finite</td>" in page


def test_a_file_that_is_damaged_is_one_message(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(OutputError, match="damaged"):
        make_diagnosis_page(tmp_path)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_it_fits_a_phone_and_a_desk_and_is_silent(found: batchnorm.probes.diagnosis.Diagnosis, tmp_path: Path) -> None:
    found.save(tmp_path / FILE)
    page = make_diagnosis_page(tmp_path)
    assert page.name == PAGE
    with browser(tmp_path / "profile") as opened:
        for width in (1280, 390):
            for dark in (False, True):
                opened.open(page, width=width, dark=dark)
                measured = opened.call(
                    "Runtime.evaluate", expression="document.documentElement.scrollWidth", returnByValue=True
                )
                assert measured["result"]["value"] <= width
        assert opened.complaints == []
