"""How sure population statistics are: correlated pixels, the usual estimates' bias, coverage, and the stopping rule."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import batchnorm
from batchnorm.reference import statistics as reference
from batchnorm.statistics import population
from batchnorm.statistics.population import Population

#: Channels are independent repetitions. Each image has an offset of its own beside the noise of its pixels.
CHANNELS, IMAGES, SIDE, OFFSET, MEAN = 400, 256, 6, 1.5, 3.0
TRUTH = 1 + OFFSET**2


def images(per_batch: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(IMAGES, CHANNELS, 1, 1, generator=generator, dtype=torch.float64) * OFFSET
    pixels = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return list((MEAN + offset + pixels).split(per_batch))


@pytest.mark.parametrize("per_batch", [1, 2, 4])
def test_with_correlated_pixels_the_usual_estimate_is_biased_and_ours_covers_the_truth(per_batch: int) -> None:
    data = images(per_batch)
    usual = nn.Sequential(nn.BatchNorm2d(CHANNELS)).double()
    update_bn(data, usual)  # the mean of the batches' unbiased variances
    of_usual = float(usual[0].running_var.mean()) / TRUTH
    # In expectation it lacks the offsets' variance within a batch that N images show only (N - 1) / N of.
    m = per_batch * SIDE**2
    expected = (m / (m - 1)) * ((1 - 1 / m) + OFFSET**2 * (1 - 1 / per_batch)) / TRUTH
    assert abs(of_usual - expected) < 0.01
    assert of_usual < 0.85

    layer, report = batchnorm.recalibrate(nn.Sequential(nn.BatchNorm2d(CHANNELS)).double(), data, report=True)
    mean, var = layer[0].running_mean.numpy(), layer[0].running_var.numpy()
    assert abs(var.mean() / TRUTH - 1) < 4 * np.sqrt(2 / (IMAGES * CHANNELS))

    seen = Population("")
    for x in data:
        seen.add(x)
    of_mean, of_var = (h[0].numpy() for h in seen.half_widths())
    padded = seen.whole.var[0].numpy() + 1e-5
    covered = (np.abs(mean - MEAN) < of_mean).mean(), (np.abs(var - TRUTH) < of_var).mean()
    # 95 % asked for; four deviations of a share among 400, and what skewness costs the interval of a variance.
    slack = 4 * np.sqrt(0.95 * 0.05 / CHANNELS)
    assert 0.95 - slack < covered[0] < 0.95 + slack
    assert 0.95 - slack - 0.02 < covered[1] < 0.95 + slack
    # As if pixels were independent the intervals are several times too narrow.
    naive = 1.96 * np.sqrt(var / seen.count)
    assert (np.abs(mean - MEAN) < naive).mean() < 0.5
    worst = max((of_mean / np.sqrt(padded)).max(), (of_var / (2 * padded)).max())
    assert report["0"].numbers["uncertainty"] == pytest.approx(worst, rel=1e-12)


def test_half_widths_are_those_of_the_reference() -> None:
    data = [torch.randn(n, 3, 4) * (1 + k) for k, n in enumerate((5, 9, 2, 7))]
    seen = Population("")
    for x in data:
        seen.add(x)
    expected = reference.half_widths([x.numpy() for x in data], stats.t.ppf(0.975, 3))
    for found, half_width in zip(seen.half_widths(), expected, strict=True):
        np.testing.assert_allclose(found[0], half_width, rtol=0.02)  # of the quantile


@pytest.mark.parametrize("freedom", [4, 7, 15, 31, 63])
def test_the_quantile_is_students(freedom: int) -> None:
    assert population._student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.02 if freedom < 7 else 2e-3)


def test_units_stay_few_and_are_the_whole() -> None:
    seen = Population("")
    for x in images(1)[:199]:
        seen.add(x)
        assert len(seen.units) <= population.MOST_UNITS
    assert len(seen.units) >= population.MOST_UNITS // 2
    assert sum(float(u.count) for u in seen.units) == seen.count == 199 * SIDE**2


def test_one_batch_says_nothing_about_its_own_error() -> None:
    _, report = batchnorm.recalibrate(nn.Sequential(nn.BatchNorm2d(CHANNELS)).double(), images(4)[:1], report=True)
    assert report["0"].numbers["uncertainty"] == float("inf")


@pytest.mark.parametrize("mode", ["one-pass", "sequential"])
def test_it_stops_when_every_channel_is_known_well_enough(mode: str) -> None:
    taken = 0

    class Counting:
        def __init__(self, data: list[Tensor]) -> None:
            self.data = data

        def __iter__(self) -> Iterator[Tensor]:
            nonlocal taken
            for x in self.data:
                taken += 1
                yield x

    data = images(2)
    model = nn.Sequential(nn.BatchNorm2d(CHANNELS)).double()
    needed = {}
    for tolerance in (1.0, 0.5, 0.4):
        taken = 0
        _, report = batchnorm.recalibrate(model, Counting(data), report=True, tolerance=tolerance, mode=mode)
        assert report["0"].numbers["uncertainty"] <= tolerance
        needed[tolerance] = taken // (1 if mode == "one-pass" else 2)
        _, report = batchnorm.recalibrate(model, data, batches=needed[tolerance] - 1, report=True)
        assert report["0"].numbers["uncertainty"] > tolerance or needed[tolerance] == 8  # not one batch too many
    assert 8 <= needed[1.0] < needed[0.5] < needed[0.4] < len(data)


def test_data_that_do_not_suffice_are_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm2d(CHANNELS)).double()
    before = copy.deepcopy(model.state_dict())
    for options in ({}, {"batches": 10}):
        with pytest.raises(
            ValueError, match=r"tolerance=0.01 was not reached in \d+ batches: the uncertainty is 0\.\d+"
        ):
            batchnorm.recalibrate(model, images(8), inplace=True, tolerance=0.01, **options)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_layer_that_is_never_reached_is_not_waited_for() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    _, report = batchnorm.recalibrate(Skips().double(), images(2), report=True, tolerance=1.0)
    assert report["unused"].done == "left alone"


def test_a_report_prints_what_was_measured() -> None:
    _, report = batchnorm.recalibrate(nn.Sequential(nn.BatchNorm2d(CHANNELS)).double(), images(8), report=True)
    lines = str(report).splitlines()
    assert lines[0].split() == ["name", "done", "values", "uncertainty", "reason"]
    assert lines[1].split()[:3] == ["0", "recalibrated", str(IMAGES * SIDE**2)]
    assert 0.1 < float(lines[1].split()[3]) < 0.5
