"""The figures show what they say, for every kind of run."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex

from batchnorm.lab.compare.artefacts import read_run
from batchnorm.lab.compare.plots import pictures
from batchnorm.lab.compare.summary import summarize
from batchnorm.lab.plots import save
from lab.compare.synthetic import write_run


def drawn(path):
    run = read_run(path)
    return {picture.name: picture for picture in pictures(run, summarize(run))}


def test_every_figure_is_drawn_described_and_saved(tmp_path):
    made = drawn(write_run(tmp_path / "run", evaluations=10, units=7))
    assert list(made) == [
        "accuracy-best", "accuracy-by-lr", "percentiles-one-unit", "percentiles-all-units", "saturated", "hero",
    ]  # fmt: skip
    for name, picture in made.items():
        assert name == "hero" or (picture.title and picture.caption and picture.alt)
        assert save(picture, tmp_path / "figures").read_bytes().startswith(b"\x89PNG")


def test_the_curve_is_the_summary_and_the_arms_differ_without_colour(tmp_path):
    path = write_run(tmp_path / "run", evaluations=10, units=7)
    summary = summarize(read_run(path))
    none, batch = drawn(path)["accuracy-best"].figure.axes[0].lines[:2]
    arm = summary.arm("none", summary.best_lr["none"])
    np.testing.assert_allclose(
        none.get_xydata(), np.column_stack([arm.accuracy.steps, 100 * np.array(arm.accuracy.mean)])
    )
    assert none.get_marker() != batch.get_marker()
    assert none.get_linestyle() != batch.get_linestyle()
    assert {to_hex(none.get_color()), to_hex(batch.get_color())} == {"#d55e00", "#0072b2"}


def test_one_unit_has_the_same_vertical_axis_in_both_arms_and_all_units_are_all(tmp_path):
    made = drawn(write_run(tmp_path / "run", evaluations=10, units=7))
    left, right = made["percentiles-one-unit"].figure.axes
    assert left.get_ylim() == right.get_ylim()
    none, batch, drift = made["percentiles-all-units"].figure.axes
    assert len(none.lines) == len(batch.lines) == 7 + 1  # and the one shown alone, in black
    assert none.get_ylim() == batch.get_ylim()
    assert all(len(line.get_xdata()) == 7 for line in drift.lines)


@pytest.mark.parametrize(
    "kind",
    [
        {"norm": ("batch",)},
        {"seeds": 1, "lr": (0.1,)},
        {"diverged": (("none", 0.1), ("none", 0.5))},
        {"diverged": (("batch", 0.5),)},
        {"evaluations": 1},
        {"lr": (0.1, 0.2, 0.3, 0.4)},
        {"steps": 2, "evaluations": 2},
    ],
    ids=str,
)
def test_unusual_runs_draw_without_a_warning(tmp_path, kind):
    for picture in drawn(write_run(tmp_path / "run", **{"evaluations": 8, "units": 5, **kind})).values():
        picture.figure.savefig(io.BytesIO(), dpi=40)
