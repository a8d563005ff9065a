"""The page: complete, self-contained, honest about unusual runs, and quiet in a browser."""

import html
import json
import re
from html.parser import HTMLParser

import pytest

from batchnorm.lab.compare.artefacts import RunWriter, read_run
from batchnorm.lab.compare.charts import data
from batchnorm.lab.compare.report import make_report
from batchnorm.lab.compare.summary import summarize
from batchnorm.lab.compare.wording import tables, verdict
from batchnorm.lab.errors import OutputError
from lab.browser import CHROMIUM, browser
from lab.compare.synthetic import ENVIRONMENT, config, write_run, write_trial


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.headings, self.images, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(attributes)
        self.links += [value for key, value in attributes.items() if key in {"src", "href"}]


def page_of(path):
    return make_report(path).page.read_text(encoding="utf-8")


def test_the_page_says_the_verdict_the_tables_and_the_command(tmp_path):
    path = write_run(tmp_path / "run", evaluations=10)
    text = html.unescape(page_of(path))
    summary = summarize(read_run(path))
    answer = verdict(summary)
    cells = [cell for table in tables(summary) for row in table.rows for cell in row]
    for sentence in [answer.headline, *answer.numbers, *answer.limits, *cells, config(lr=(0.1, 0.5))["command"]]:
        assert sentence in text
    assert json.loads((path / "summary.json").read_text())["best"]["ratio"] == summary.best.ratio
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower().split()


def test_nothing_is_fetched_headings_nest_and_pictures_have_words(tmp_path):
    text = page_of(write_run(tmp_path / "run", evaluations=10))
    outline = Outline()
    outline.feed(text)
    assert all(link.startswith("data:") for link in outline.links)
    assert not re.search(r"url\((?!#)", text)  # a chart refers to its own clip path
    assert "@import" not in text
    assert outline.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert len(outline.images) == 5
    assert all(len(image["alt"]) > 20 for image in outline.images)


def test_text_from_the_files_is_escaped(tmp_path):
    writer = RunWriter.create(tmp_path / "run", config=config(), environment={"processor": "<script>alert(1)</script>"})
    write_trial(writer, "none", [0.5], status="diverged", lr=0.1)
    text = page_of(tmp_path / "run")
    assert text.count("<script") == text.count("</script>") == 2  # the page's own
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("kind", ["empty", "interrupted", "one arm", "diverged", "one record"])
def test_every_kind_of_run_has_a_page(tmp_path, kind):
    writer = RunWriter.create(tmp_path / "run", config=config(), environment=ENVIRONMENT)
    if kind == "interrupted":
        writer.trial(norm="none", lr=0.5, seed=0)
        write_trial(writer, "none", [0.3, 0.5], status="interrupted")
        write_trial(writer, "batch", [0.6], status="interrupted")
    elif kind == "one arm":
        write_trial(writer, "batch", [0.3, 0.5])
    elif kind == "diverged":
        write_trial(writer, "none", [0.3, 0.5], status="diverged")
        writer.trial(norm="batch", lr=0.1, seed=0).end(status="diverged", step=0, reason="at once")
    elif kind == "one record":
        write_trial(writer, "none", [0.3])
        write_trial(writer, "batch", [0.5])
    text = html.unescape(page_of(tmp_path / "run"))
    expected = {
        "empty": "Nothing was recorded",
        "interrupted": "The run was interrupted",
        "one arm": "Only one arm was run",
        "diverged": "training without BN and with BN diverged",
        "one record": "about",
    }
    assert expected[kind] in text or kind == "one record"


def test_a_page_that_cannot_be_written_is_one_message(tmp_path):
    path = write_run(tmp_path / "run", evaluations=3)
    (path / "figures").write_text("in the way")
    with pytest.raises(OutputError, match="figures"):
        make_report(path)


def test_the_curves_of_the_page_are_those_of_the_summary(tmp_path):
    run = read_run(write_run(tmp_path / "run", evaluations=10, lr=(0.1, 0.5), diverged=[("none", 0.5)]))
    summary = summarize(run)
    accuracy, saturated = data(summary)["charts"]
    assert [variant["label"] for variant in accuracy["variants"]] == ["each at its best lr", "lr 0.1", "lr 0.5"]
    assert [variant["label"] for variant in saturated["variants"]] == [f"hidden layer {n}" for n in (1, 2, 3)]
    for one, arm in zip(accuracy["variants"][1]["series"], ("none", "batch"), strict=True):
        assert (one["step"], one["mean"]) == (summary.arm(arm, 0.1).accuracy.steps, summary.arm(arm, 0.1).accuracy.mean)
    at_half = accuracy["variants"][2]
    assert ([one["arm"] for one in at_half["series"]], [one["arm"] for one in at_half["lost"]]) == ([1], [0])


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_the_page_loads_in_a_browser_without_a_message_and_its_charts_work(tmp_path):
    page = make_report(write_run(tmp_path / "run", evaluations=10)).page
    with browser(tmp_path / "profile") as opened:
        opened.open(page)
        path = "document.querySelector('[data-chart=\"0\"] .line').getAttribute('d')"
        before = opened.run(path)
        opened.click('[data-chart="0"] button', 2)  # from the best rates to lr 0.5
        assert opened.run(path) != before
        opened.hover('[data-chart="0"] .plot svg')
        tip = opened.run("document.querySelector('.tip').innerText")
        assert tip.startswith("step 1,000")
        assert "without BN: " in tip
        assert "3 runs" in tip
        assert opened.run("document.querySelectorAll('.legend button').length") == 2
        assert opened.run("document.documentElement.scrollWidth") == 1280
        assert opened.complaints == []
        assert [url for url in opened.requests if not url.startswith("data:")] == [page.as_uri()]
