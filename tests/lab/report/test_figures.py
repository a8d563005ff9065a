"""The figures in files: every panel shows all of its curves, also on logarithmic axes and beside a run that blew up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from batchnorm.lab.experiments.numbers import summarize
from batchnorm.lab.experiments.study import read_study
from batchnorm.lab.recording import Recorder
from batchnorm.lab.report.charts import charts, shown_arms
from batchnorm.lab.report.figures import pictures
from lab.synthetic_train import ENVIRONMENT, config, write_run


def test_every_panel_shows_the_whole_of_its_curves(tmp_path: Path) -> None:
    probes = ("activations", "gradients", "running", "input_shift", "shift", "landscape")
    given = {"steps": 200, "evaluations": 8, "records": 100, "probes": probes}
    study = read_study([write_run(tmp_path / norm, norm=norm, **given) for norm in ("none", "batch")])
    numbers = summarize(study)
    drawn = charts(study, numbers, None)
    training, layers = pictures(study, shown_arms(study, numbers), drawn)
    panels = [(chart, one) for chart in drawn for one in chart.quantities]
    assert any(chart.log for chart in drawn)
    for axes, (chart, one) in zip(training.figure.axes, panels, strict=False):
        bottom, top = axes.get_ylim()
        factor = 100 if chart.unit == "share" else 1
        for index, series in one.series.items():
            line = axes.lines[list(one.series).index(index)]
            np.testing.assert_allclose(line.get_ydata(), factor * series.mean)
            assert bottom < factor * np.nanmin(series.mean) * (1 + 1e-9 * np.sign(np.nanmin(series.mean)))
            assert factor * np.nanmax(series.mean) < top
    assert len([axes for axes in layers.figure.axes if axes.has_data()]) == 12


def test_a_run_that_blew_up_does_not_flatten_the_others(tmp_path: Path) -> None:
    paths = []
    for seed, (status, losses) in enumerate([("finished", [2.0, 1.0, 0.5]), ("diverged", [2.0, 3.0, 1e9])]):
        paths.append(tmp_path / str(seed))
        recorder = Recorder.create(paths[-1], config=config(seed=seed), environment=ENVIRONMENT)
        for step, loss in enumerate(losses):
            recorder.metrics("train", step=step, epoch=step, seconds=step, loss=loss)
        recorder.end(status=status, step=3)
    study = read_study(paths)
    numbers = summarize(study)
    (picture,) = pictures(study, shown_arms(study, numbers), charts(study, numbers, None))
    (axes,) = [axes for axes in picture.figure.axes if axes.has_data()]
    assert axes.get_ylim()[1] < 3
    (cross,) = [line for line in axes.lines if line.get_marker() == "X"]
    assert cross.get_ydata()[0] == axes.get_ylim()[1]  # the end of the lost run stays in sight
