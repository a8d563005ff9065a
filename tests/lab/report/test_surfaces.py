"""Surfaces that can be turned, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from batchnorm.lab.experiments.claims import registry
from batchnorm.lab.experiments.claims.form import Check, Findings, Terrain
from batchnorm.lab.experiments.claims.run import Judged
from batchnorm.lab.report import make_report, page
from lab.browser import CHROMIUM, Browser, browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH"),
]
TILES = "[...document.querySelectorAll('.tile')]"


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Iterator[Browser]:
    a, b = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5), indexing="ij")
    bowl, hole = np.log10(0.1 + a**2 + b**2), np.where((a > 0.9) & (b > 0.9), np.nan, a)
    surfaces = [
        Terrain("A bowl", "loss", bowl, ["one", "two", "three", "four"]),
        Terrain("A hole", "loss", hole, [""] * 4),
    ]
    findings = Findings("It turns.", [Check("c", "m", [1.0, 1.0, 1.0], 0.0)], surfaces=surfaces)
    config = {"claim": "whitening", "budget": "small", "command": "batchnorm", "settings": {}, "rule": "r"}
    folder = tmp_path_factory.mktemp("surfaces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "kind_of", lambda _path: "claim")
        patch.setattr(page, "judge", lambda _path: Judged(registry.claim("whitening"), findings, config, {}))
        made: Path = make_report([folder]).page
    with browser(tmp_path_factory.mktemp("profile")) as started:
        started.open(made)
        yield started
        assert started.complaints == []
        assert [url for url in started.requests if not url.startswith("data:")] == [made.as_uri()]


def _tiles(opened: Browser) -> list[str]:
    return opened.run(f"{TILES}.map(tile => tile.getAttribute('points'))")


def test_a_surface_turns_by_keys_and_says_its_range(opened: Browser) -> None:
    before = _tiles(opened)
    assert len(before) == 16
    label = opened.run("document.querySelector('.surface').getAttribute('aria-label')")
    assert label == "A bowl, loss from 0.1 to 2.1"
    assert "three" in opened.run("document.querySelector('.surface').textContent")
    opened.run("document.querySelector('.surface').focus()")
    for key in ("ArrowLeft", "ArrowRight"):
        opened.press(key)
        after = _tiles(opened)
        assert after != before
        before = after


def test_dragging_turns_it_too(opened: Browser) -> None:
    before = _tiles(opened)
    for kind, x in (("pointerdown", 10), ("pointermove", 60), ("pointerup", 60)):
        opened.run(
            f"document.querySelector('.surface').dispatchEvent(new PointerEvent('{kind}', "
            f"{{clientX: {x}, clientY: 10, pointerId: 1, isPrimary: true}}))"
        )
    assert _tiles(opened) != before


def test_low_is_dark_and_what_is_not_finite_is_a_hole(opened: Browser) -> None:
    opened.run("(() => { const s = document.querySelector('#surfaces select'); s.value = 1;"
               " s.dispatchEvent(new Event('change')); })()")  # fmt: skip
    fills = opened.run(f"{TILES}.map(tile => tile.getAttribute('fill'))")
    assert len(fills) == 15
    assert len(set(fills)) == 4  # one for each row of tiles
