"""What the probes saw, as the page carries it: by place, thinned evenly, histograms in one character a bin."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from batchnorm.lab.experiments.numbers import summarize
from batchnorm.lab.experiments.study import read_study
from batchnorm.lab.recording import Recorder
from batchnorm.lab.report.charts import charts, data
from batchnorm.lab.report.layers import BUDGET, HEIGHTS, watched
from lab.synthetic_train import ENVIRONMENT, config, write_records, write_run


def _probed(path: Path, steps: list[int], layers: dict) -> Path:
    recorder = Recorder.create(path, config=config(), environment=ENVIRONMENT)
    for step in steps:
        recorder.metrics("train", step=step, epoch=step, seconds=step, loss=1.0)
        recorder.probe("activations", step=step, epoch=step, scalars={}, layers=layers)
    recorder.end(status="finished", step=steps[-1])
    return path


def test_layers_keep_their_order_and_what_is_missing_is_nan(tmp_path: Path) -> None:
    path = _probed(tmp_path / "run", [0, 5], {"z.9": {"p15": -1.0, "p50": 0.5, "p85": 2.0}, "a.1": {"p50": None}})
    (one,) = watched(read_study([path]).arms, "activations")
    assert one.names == ["z.9", "a.1"]
    np.testing.assert_array_equal(one.values["p50"], [[0.5, np.nan], [0.5, np.nan]])
    np.testing.assert_array_equal(one.values["p85"], [[2, np.nan], [2, np.nan]])
    assert one.bins == []


def test_a_histogram_becomes_one_character_for_each_bin(tmp_path: Path) -> None:
    counts = [0, 1, 51, 100]
    given = {
        "a": {"low": -2, "high": 2, "counts": counts},
        "b": {"low": None, "high": 2, "counts": counts},
        "c": {"low": 0, "high": 0, "counts": [0]},
    }
    path = _probed(tmp_path / "run", [0], {name: {"p50": 0.0, "histogram": one} for name, one in given.items()})
    (one,) = watched(read_study([path]).arms, "activations")
    assert one.bins == [["01vZ", "", ""]]
    assert [HEIGHTS.index(character) for character in "01vZ"] == [0, 1, 31, 61]
    np.testing.assert_array_equal(one.edges[0, 0], [-2, 2])


def test_many_steps_of_many_layers_are_thinned_evenly(tmp_path: Path) -> None:
    layers = {f"layer.{n}": {"p15": 1.0, "p50": 2.0, "p85": 3.0, "saturated": 0.1, "dead": 0.0} for n in range(110)}
    (one,) = watched(read_study([_probed(tmp_path / "run", list(range(0, 2_000, 10)), layers)]).arms, "activations")
    assert (one.steps[0], one.steps[-1]) == (0, 1990)
    assert one.steps.size * 110 * len(one.values) <= BUDGET
    gaps = np.diff(one.steps)
    assert gaps.max() - gaps.min() <= 10


def test_arms_with_other_names_and_without_bn_stand_side_by_side(tmp_path: Path) -> None:
    probes = ("activations", "running")
    study = read_study([
        write_run(tmp_path / "a", norm="none", steps=50, evaluations=2, records=2, probes=probes),
        write_run(tmp_path / "b", norm="batch", steps=50, evaluations=2, records=2, probes=probes),
    ])  # fmt: skip
    carried = data(study, study.arms, charts(study, summarize(study), None))["layers"]
    assert [one["names"] for one in carried["probes"]["activations"]] == [
        ["layers.2", "layers.4", "layers.6"], ["layers.2", "layers.5", "layers.8"],
    ]  # fmt: skip
    assert [one["arm"] for one in carried["probes"]["running"]] == [1]
    assert {view["middle"] for view in carried["views"]} == {"p50", "saturated", "dead", "mean_gap", "var_ratio"}


def test_gradients_stand_beside_those_of_the_same_layer(tmp_path: Path) -> None:
    def run(path: Path, norm: str, layers: list[str], normalizations: list[str]) -> Path:
        recorder = Recorder.create(path, config=config(norm=norm), environment=ENVIRONMENT)
        recorder.metrics("train", step=1, epoch=1, seconds=1, loss=1.0)
        for probe, names in (("gradients", layers), ("running", normalizations)):
            recorder.probe(probe, step=1, epoch=1, scalars={}, layers={name: {"gradient_norm": 1.0} for name in names})
        recorder.end(status="finished", step=1)
        return path

    plain = run(tmp_path / "a", "none", ["0", "2"], [])
    normalized = run(tmp_path / "b", "batch", ["0", "1", "3"], ["1"])
    found = watched(read_study([plain, normalized]).arms, "gradients")
    assert [one.names for one in found] == [["0", "2"], ["0", "3"]]
    (alone,) = watched(read_study([normalized]).arms, "gradients")
    assert alone.names == ["0", "1", "3"]


def test_the_line_of_the_landscape_is_the_loss_and_its_band_the_range(tmp_path: Path) -> None:
    recorder = Recorder.create(tmp_path / "run", config=config(), environment=ENVIRONMENT)
    for step in (1, 2):
        recorder.metrics("train", step=step, epoch=step, seconds=step, loss=1.0)
        scalars = {"loss": 1.0 * step, "loss_low": 0.5 * step, "loss_high": 3.0 * step}
        recorder.probe("landscape", step=step, epoch=step, scalars=scalars, layers={})
    recorder.end(status="finished", step=2)
    study = read_study([tmp_path / "run"])
    (chart,) = [one for one in charts(study, summarize(study), None) if one.name == "landscape"]
    series = chart.quantities[0].series[0]
    np.testing.assert_array_equal([series.low, series.mean, series.high], [[0.5, 1.0], [1, 2], [3, 6]])


def test_runs_without_probes_have_no_layers(tmp_path: Path) -> None:
    study = read_study([write_records(tmp_path / "run", [0.5])])
    assert data(study, study.arms, charts(study, summarize(study), None))["layers"] == {"views": [], "probes": {}}


def test_a_loss_outside_the_recorded_range_widens_the_band(tmp_path: Path) -> None:
    """The probe visits no distance 0: where every step along the gradient raises the loss, the line was below it."""
    recorder = Recorder.create(tmp_path / "run", config=config(), environment=ENVIRONMENT)
    recorder.metrics("train", step=1, epoch=1, seconds=1, loss=1.0)
    scalars = {"loss": 1.0, "loss_low": 2.0, "loss_high": 3.0}
    recorder.probe("landscape", step=1, epoch=1, scalars=scalars, layers={})
    recorder.end(status="finished", step=1)
    study = read_study([tmp_path / "run"])
    (chart,) = [one for one in charts(study, summarize(study), None) if one.name == "landscape"]
    series = chart.quantities[0].series[0]
    np.testing.assert_array_equal([series.low, series.mean, series.high], [[1.0], [1.0], [3.0]])


def test_covariate_shift_by_distribution_has_a_chart_and_views_of_the_layers(tmp_path: Path) -> None:
    recorder = Recorder.create(tmp_path / "run", config=config(), environment=ENVIRONMENT)
    recorder.metrics("train", step=1, epoch=1, seconds=1, loss=1.0)
    layers = {"0": {"distance": 0.0, "std_ratio": None}, "2": {"distance": 0.3, "std_ratio": 1.1}}
    recorder.probe("input_shift", step=1, epoch=1, scalars={}, layers=layers)
    recorder.end(status="finished", step=1)
    study = read_study([tmp_path / "run"])
    made = charts(study, summarize(study), None)
    (chart,) = [one for one in made if one.name == "input_shift"]
    np.testing.assert_allclose(chart.quantities[0].series[0].mean, [0.15])
    carried = data(study, study.arms, made)["layers"]
    assert [view["middle"] for view in carried["views"]] == ["distance", "std_ratio"]
    assert carried["probes"]["input_shift"][0]["values"]["distance"] == [[0.0, 0.3]]
