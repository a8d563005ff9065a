"""Curves: the mean over runs, gaps that stay gaps, and long curves that keep their extremes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from batchnorm.lab.experiments.series import Track, combine, quantity, thin, track
from batchnorm.lab.experiments.study import read_study
from lab.synthetic_train import write_records, write_run

NAN = np.nan


def made(steps: list[float], values: list[float]) -> Track:
    grid = np.array(steps, dtype=float)
    return Track(grid, grid / 10, grid / 100, np.array(values, dtype=float))


def test_the_mean_is_over_the_runs_that_have_a_value() -> None:
    series = combine([made([0, 10, 20], [1, 2, 3]), made([0, 20, 40], [3, 5, 7])])
    assert series is not None
    np.testing.assert_array_equal(series.steps, [0, 10, 20, 40])
    np.testing.assert_allclose(series.mean, [2, 3, 4, 7])  # at 10 the second run is halfway from 3 to 5
    np.testing.assert_allclose(series.low, [1, 2, 3, 7])
    np.testing.assert_allclose(series.high, [3, 4, 5, 7])
    np.testing.assert_array_equal(series.runs, [2, 2, 2, 1])
    np.testing.assert_allclose(series.epochs, [0, 1, 2, 4])


def test_nothing_is_drawn_across_a_gap() -> None:
    series = combine([made([0, 10, 20, 30], [1, NAN, 3, 4]), made([5], [9])])
    assert series is not None
    np.testing.assert_array_equal(series.steps, [0, 5, 10, 20, 30])
    np.testing.assert_array_equal(series.mean, [1, 9, NAN, 3, 4])
    assert combine([made([], [])]) is None


def test_of_two_records_of_a_step_the_last_counts_and_ends_without_a_value_go() -> None:
    records = [{"step": s, "epoch": s, "seconds": s, "v": v}
               for s, v in [(0, None), (1, 5.0), (1, 6.0), (2, "x"), (3, 7.0), (4, None)]]  # fmt: skip
    found = track(records, lambda record: record["v"])
    np.testing.assert_array_equal(found.steps, [1, 2, 3])
    np.testing.assert_array_equal(found.values, [6, NAN, 7])


def test_a_long_curve_keeps_its_extremes_and_its_gaps() -> None:
    values = np.sin(np.arange(100_000) / 5_000)
    values[[12_345, 54_321]] = 50.0, -50.0
    values[70_000:70_010] = NAN
    series = combine([made(list(range(100_000)), values.tolist())])
    assert series is not None
    short = thin(series, 300)
    assert short.steps.size < 320
    assert (short.steps[0], short.steps[-1]) == (0, 99_999)
    assert short.mean[short.steps == 12_345] == 50
    assert short.mean[short.steps == 54_321] == -50
    assert np.isnan(short.mean).sum() == 1
    every = series.mean[:: 100_000 // 300]  # the naive way
    assert np.nanmax(every) < 2


def test_a_band_keeps_the_extremes_of_its_runs_not_of_their_mean() -> None:
    flat = np.zeros(1_000)
    high, low = flat.copy(), flat.copy()
    high[503], low[503] = 1.0, -1.0  # the mean stays 0
    series = combine([made(list(range(1_000)), run.tolist()) for run in (high, low)])
    assert series is not None
    short = thin(series, 50)
    assert (short.high.max(), short.low.min()) == (1, -1)


def test_a_lost_run_is_drawn_alone_and_enters_no_mean(tmp_path: Path) -> None:
    arms = read_study([
        write_records(tmp_path / "a", [0.5, 0.7]),
        write_records(tmp_path / "b", [0.1], seed=1, status="diverged"),
    ]).arms  # fmt: skip
    found = quantity(arms, "", lambda run: run.of_kind("test"), lambda record: record["accuracy"])
    assert found is not None
    np.testing.assert_array_equal(found.series[0].mean, [0.5, 0.7])
    (lost,) = found.lost
    assert (lost.what, lost.track.values.tolist()) == ("seed 1, diverged", [0.1])


def test_probes_take_their_seconds_from_the_metrics(tmp_path: Path) -> None:
    arms = read_study([write_run(tmp_path / "run", steps=100, evaluations=4)]).arms
    found = quantity(
        arms, "", lambda run: run.of_probe("gradients"), lambda record: record["scalars"].get("gradient_norm")
    )
    assert found is not None
    np.testing.assert_allclose(found.series[0].seconds, 0.014 * found.series[0].steps)
