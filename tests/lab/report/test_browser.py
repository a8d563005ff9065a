"""The page in a real browser: silent, alone, and every control does what it says.

Pictures of it stay in ``BATCHNORM_SCREENSHOTS``, or in pytest's temporary folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchnorm.lab.report import make_report
from lab.browser import CHROMIUM, Browser, browser
from lab.synthetic_train import write_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH"),
]
PROBES = ("activations", "gradients", "running", "input_shift", "shift", "landscape")
ACCURACY = '[data-chart="0"]'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    given = {"steps": 400, "evaluations": 10, "records": 40, "probes": PROBES}
    runs = [write_run(root / f"{norm}{seed}", norm=norm, seed=seed, **given)
            for norm in ("none", "batch") for seed in (0, 1)]  # fmt: skip
    runs.append(write_run(root / "lost", norm="none", seed=2, status="diverged", stop=0.5, **given))
    return make_report(runs, root / "page").page


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def opened(chromium: Browser, page: Path) -> Iterator[Browser]:
    chromium.open(page)
    yield chromium
    assert chromium.complaints == []
    assert [url for url in chromium.requests if not url.startswith("data:")] == [page.as_uri()]


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("BATCHNORM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _lines(opened: Browser, where: str = ACCURACY) -> int:
    return opened.run(f"document.querySelectorAll('{where} .plot .arm .line').length")


def test_hovering_shows_the_values_of_every_arm_there(opened: Browser) -> None:
    opened.hover(f"{ACCURACY} .plot svg")
    tip = opened.run(f"document.querySelector('{ACCURACY} .tip').innerText")
    head, *rows = tip.strip().splitlines()
    assert head == "step 200"
    carried = opened.run(
        "JSON.parse(document.getElementById('chart-data').textContent).charts[0].variants[0].series"
        ".map(one => one.mean[one.step.indexOf(200)])"
    )
    for name, mean in zip(("no normalization", "batch norm"), carried, strict=True):
        (row,) = [row for row in rows if name in row and "diverged" not in row]
        assert f"{float(f'{100 * mean:.4g}'):g}%" in row
        assert " to " in row  # the band
    assert any("seed 2, diverged" in row for row in rows)


def test_the_legend_hides_and_shows_an_arm_in_every_chart(opened: Browser) -> None:
    before = _lines(opened)
    assert before == 3  # two arms and the run that was lost
    opened.click(".legend button", 0)
    assert opened.run("document.querySelectorAll('.legend button')[0].getAttribute('aria-pressed')") == "false"
    assert _lines(opened) == 1
    assert _lines(opened, "#layers") > 0
    assert opened.run("document.querySelectorAll('#layers .plot .c1').length") == 0
    opened.click(".legend button", 1)
    assert "no arm is shown" in opened.run(f"document.querySelector('{ACCURACY}').textContent")
    opened.click(".legend button", 0)
    opened.click(".legend button", 1)
    assert _lines(opened) == before


def test_the_horizontal_axis_switches_for_all_charts(opened: Browser) -> None:
    def labels() -> set[str]:
        return set(opened.run("[...document.querySelectorAll('[data-chart] .label')].map(e => e.textContent)"))

    assert labels() == {"training steps"}
    opened.click("#controls button", 1)
    assert labels() == {"epochs"}
    opened.click("#controls button", 2)
    assert labels() == {"training time (s)"}
    opened.hover(f"{ACCURACY} .plot svg")
    assert opened.run(f"document.querySelector('{ACCURACY} .tip strong').textContent").startswith("s ")


def test_a_chart_switches_its_part_and_its_scale(opened: Browser) -> None:
    loss = '[data-chart="1"]'
    assert opened.run(f"document.querySelector('{loss} h3').textContent") == "Loss"

    def ticks() -> list[str]:
        return opened.run(f"[...document.querySelectorAll('{loss} text[text-anchor=end]')].map(e => e.textContent)")

    before = ticks()
    opened.click(f"{loss} .scale")
    assert ticks() != before
    path = opened.run(f"document.querySelector('{loss} .line').getAttribute('d')")
    opened.click(f"{loss} button", 1)
    assert opened.run(f"document.querySelector('{loss} .line').getAttribute('d')") != path
    pressed = opened.run(f"[...document.querySelectorAll('{loss} button')].map(e => e.getAttribute('aria-pressed'))")
    assert pressed[:3] == ["false", "true", "false"]


def test_arrow_keys_read_a_chart_aloud(opened: Browser) -> None:
    opened.run(f"document.querySelector('{ACCURACY} .plot svg').focus()")
    opened.press("Home")
    assert opened.run("document.getElementById('spoken').textContent").startswith("step 0. no normalization: ")
    opened.press("ArrowRight")
    assert opened.run("document.getElementById('spoken').textContent").startswith("step 40. ")
    opened.press("ArrowLeft")
    opened.press("End")
    assert opened.run("document.getElementById('spoken').textContent").startswith("step 400. ")
    opened.press("Escape")
    assert opened.run(f"document.querySelector('{ACCURACY} .tip').hidden")


def test_the_slider_moves_the_layers_through_training_with_arrow_keys(opened: Browser) -> None:
    profile = "document.querySelector('#layers .plot .c0 .band').getAttribute('d')"
    bins = "document.querySelector('#layers .bins .line').getAttribute('d')"
    opened.run("document.getElementById('at').focus()")
    assert opened.run("document.querySelector('#layers output').textContent") == "step 400"
    last, last_bins = opened.run(profile), opened.run(bins)
    opened.press("ArrowLeft")
    assert opened.run("document.querySelector('#layers output').textContent") == "step 360"
    assert opened.run("document.getElementById('at').getAttribute('aria-valuetext')") == "step 360"
    assert opened.run(profile) != last
    assert opened.run(bins) != last_bins
    opened.press("End")
    assert opened.run(profile) == last


def test_play_runs_to_the_last_step_and_stops(opened: Browser) -> None:
    opened.run("document.getElementById('at').focus()")
    for _ in range(2):
        opened.press("ArrowLeft")
    opened.click("#layers .moving button")
    assert opened.run("document.querySelector('#layers .moving button').textContent") == "pause"
    opened.wait("document.querySelector('#layers output').textContent === 'step 400'")
    assert opened.run("document.querySelector('#layers .moving button').textContent") == "play"


def test_every_quantity_of_the_layers_can_be_chosen(opened: Browser) -> None:
    for number in range(opened.run("document.getElementById('view').options.length")):
        opened.run(
            f"(() => {{ const v = document.getElementById('view'); v.value = {number}; "
            "v.dispatchEvent(new Event('change')); })()"
        )
        assert opened.run("document.querySelectorAll('#layers .cell').length") == 3
        assert opened.run("[...document.querySelectorAll('#layers button')].filter(e => e.offsetHeight).length") == 1
        assert opened.run("document.querySelector('#layers .plot .line').getAttribute('d').includes('NaN')") is False


def test_on_paper_every_curve_is_shown_and_no_control(opened: Browser, album: Path) -> None:
    opened.click(".legend button", 0)
    opened.emulate(paper=True)
    opened.wait("document.querySelectorAll('[data-chart=\"1\"] .plot').length === 3")  # all parts, one below the other
    assert _lines(opened) == 6
    assert opened.run("getComputedStyle(document.getElementById('at').parentElement).display") == "none"
    assert opened.run("document.querySelectorAll('#layers h3').length") == 11  # the other quantities of the layers
    assert opened.run("document.documentElement.scrollWidth <= window.innerWidth")
    opened.screenshot(album / "paper.png")
    opened.emulate()
    opened.wait("document.querySelectorAll('[data-chart=\"1\"] .plot').length === 1")
    assert _lines(opened) == 1  # what was hidden is hidden again
    assert opened.pdf(album / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("name", "width", "dark"), [("light", 1280, False), ("dark", 1280, True), ("phone", 390, False)]
)
def test_nothing_sticks_out_in_any_size_and_light(
    opened: Browser, page: Path, album: Path, name: str, width: int, dark: bool
) -> None:
    opened.open(page, width=width, dark=dark)
    assert opened.run("document.documentElement.scrollWidth") == width
    ink, paper = opened.run("['color', 'backgroundColor'].map(key => getComputedStyle(document.body)[key])")
    light = [sum(int(part) for part in colour[4:-1].split(",")) for colour in (ink, paper)]
    assert (light[0] > light[1]) == dark
    wide = (
        "[...document.querySelectorAll('.plot svg')].every(e => e.getBoundingClientRect().right <= window.innerWidth)"
    )
    assert opened.run(wide)
    opened.screenshot(album / f"{name}.png")


def test_arms_differ_without_colour(opened: Browser) -> None:
    looks = opened.run(
        "[...document.querySelectorAll('.legend svg')].map(e => ["
        "e.querySelector('.line').getAttribute('stroke-dasharray'), e.querySelector('.mark').getAttribute('d')])"
    )
    dashes, marks = zip(*looks, strict=True)
    assert len(set(dashes)) == len(set(marks)) == 2


def test_without_scripts_the_pictures_are_shown(opened: Browser, page: Path) -> None:
    opened.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened.open(page)
        shown = opened.run(
            "[...document.querySelectorAll('figure img')].map(e => e.getBoundingClientRect().width > 300)"
        )
        assert shown == [True, True]
        assert opened.run("document.querySelector('[data-live]').getBoundingClientRect().height") == 0
    finally:
        opened.call("Emulation.setScriptExecutionDisabled", value=False)
