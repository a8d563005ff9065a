"""Surfaces of the loss whose shape is known, and the two ways to treat batch normalization on them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm
from batchnorm.probes import LossSurface, Running, Step, filter_normalized
from batchnorm.probes.surface import Surface
from probes.networks import convnet, momentum
from probes.test_no_trace import same, state

rng = np.random.default_rng(0)
ROOT = rng.normal(size=(3, 3))
CURVATURE = ROOT @ ROOT.T + np.eye(3)
MINIMUM = np.array([0.5, -1.0, 2.0])


class Bowl(nn.Module):
    """Weights that are a point of a quadratic with a known minimum."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros(3, dtype=torch.float64))


def bowl_loss(model: nn.Module, batch: Tensor) -> Tensor:
    away = model.at - torch.from_numpy(MINIMUM)
    return 0.5 * (away @ torch.from_numpy(CURVATURE) @ away) + batch


def height(at: np.ndarray) -> np.ndarray:
    away = at - MINIMUM
    return 0.5 * np.einsum("...i,ij,...j", away, CURVATURE, away)


def at(*point: float) -> dict[str, Tensor]:
    return {"at": torch.tensor(point, dtype=torch.float64)}


BATCHES = [torch.tensor([0.25, -0.5], dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64)]  # mean 0
CORNERS = rng.normal(size=(4, 3)) * 3


def bowl() -> LossSurface:
    return LossSurface(Bowl(), BATCHES, bowl_loss)


def expect(surface: Surface, corners: np.ndarray) -> None:
    points = surface.coefficients @ corners
    np.testing.assert_allclose(surface.loss, height(points), rtol=1e-12, atol=1e-12)


def test_a_line_through_a_known_minimum() -> None:
    step = np.array([1.0, 2.0, -1.0])
    start, end = MINIMUM - 0.25 * step, MINIMUM + 0.75 * step
    line = bowl().linear(at(*start), at(*end), points=5)
    assert (line.kind, line.statistics, line.loss.shape, line.coefficients.shape) == ("linear", "batch", (5,), (5, 2))
    expect(line, np.stack([start, end]))
    value, where = line.lowest
    assert value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(where, [0.75, 0.25])
    beyond = bowl().linear(at(*start), at(*end), points=3, span=(-1.0, 2.0))
    np.testing.assert_allclose(beyond.coefficients[:, 1], [-1, 0.5, 2])
    expect(beyond, np.stack([start, end]))


def test_a_triangle_around_a_known_minimum() -> None:
    corners = CORNERS[:3] - CORNERS[:3].mean(0) + MINIMUM  # the minimum is the centroid
    surface = bowl().barycentric(*(at(*corner) for corner in corners), points=7)
    inside = ~np.isnan(surface.loss)
    assert surface.loss.shape == (7, 7)
    assert inside.sum() == 7 * 8 / 2
    assert np.array_equal(inside, ~np.isnan(surface.coefficients).any(-1))
    np.testing.assert_allclose(surface.coefficients[inside].sum(-1), 1)
    assert surface.coefficients[inside].min() == 0
    np.testing.assert_allclose(surface.loss[inside], height(surface.coefficients[inside] @ corners), atol=1e-12)
    for place, corner in (((0, 0), 0), ((6, 0), 1), ((0, 6), 2)):
        assert surface.loss[place] == pytest.approx(height(corners[corner]), rel=1e-12)
    value, where = surface.lowest
    assert value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(where, [1 / 3] * 3)


def test_a_bilinear_patch() -> None:
    surface = bowl().bilinear(*(at(*corner) for corner in CORNERS), points=4)
    assert surface.loss.shape == (4, 4)
    expect(surface, CORNERS)
    for place, corner in (((0, 0), 0), ((3, 0), 1), ((0, 3), 2), ((3, 3), 3)):
        assert surface.loss[place] == pytest.approx(height(CORNERS[corner]), rel=1e-12)
    middle = (CORNERS[0] + CORNERS[1]) / 2
    edge = bowl().bilinear(*(at(*corner) for corner in CORNERS), points=3).loss[1, 0]
    assert edge == pytest.approx(height(middle), rel=1e-12)


def test_a_plane_around_a_known_minimum() -> None:
    first, second = CORNERS[:2]
    surface = bowl().plane(at(*MINIMUM), at(*first), at(*second), points=5, span=(-2.0, 2.0))
    expect(surface, np.stack([MINIMUM, first, second]))
    value, where = surface.lowest
    assert value == pytest.approx(0, abs=1e-12)
    np.testing.assert_array_equal(where, [1, 0, 0])
    np.testing.assert_allclose(surface.loss, surface.loss[::-1, ::-1])  # a quadratic about its minimum


def surface_of(values: Any, kind: str = "linear") -> Surface:
    values = np.asarray(values, dtype=float)
    a = np.linspace(0, 1, len(values))
    return Surface(kind, "batch", np.stack([1 - a, a], -1), values)


def test_the_barrier_is_above_the_chord() -> None:
    a = np.linspace(0, 1, 101)
    assert surface_of(2 + 3 * a).barrier == pytest.approx(0, abs=1e-12)
    assert surface_of((a - 0.3) ** 2).barrier == 0  # convex: below the chord
    assert surface_of(1 + a + 5 * a * (1 - a)).barrier == pytest.approx(1.25)
    assert surface_of([0, np.inf, 1]).barrier == np.inf
    with pytest.raises(ValueError, match="a barrier is that of a linear surface; got a bilinear one"):
        _ = surface_of(np.zeros((3, 3)), "bilinear").barrier


def test_the_share_that_is_flat() -> None:
    a = np.linspace(0, 1, 101)
    assert surface_of(np.maximum(a - 0.5, 0)).flat_share() == 50 / 101  # the point at the bend has a steep neighbour
    assert (surface_of(a).flat_share(0.0101), surface_of(a).flat_share(0.0099)) == (1, 0)  # a hundredth per point
    assert surface_of(a**2).flat_share(tolerance=0.001) < 0.1
    assert surface_of(np.ones(7)).flat_share() == 1
    assert surface_of([0, 0, 0, 1, np.inf]).flat_share() == 2 / 5
    assert surface_of([np.inf, np.inf]).flat_share() == 0
    square = np.zeros((4, 4))
    square[3] = 1
    square[0, 1:] = np.nan
    assert surface_of(square, "barycentric").flat_share() == (1 + 4) / 13


X = torch.randn(48, 4, generator=torch.Generator().manual_seed(3)) * 3 + 1
Y = torch.randint(0, 3, (48,), generator=torch.Generator().manual_seed(4))
DATA = [(X[:32], Y[:32]), (X[32:], Y[32:])]


def normalized(make: Any = nn.BatchNorm1d, seed: int = 0, eps: float = 1e-12) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8, bias=False), make(8, eps=eps), nn.Tanh(), nn.Linear(8, 3)).double()


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0].double()), batch[1], reduction="none")


def stretched(model: nn.Sequential, factor: float) -> dict[str, Tensor]:
    return {name: factor * value if name == "0.weight" else value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("make", [nn.BatchNorm1d, batchnorm.BatchNorm1d])
def test_normalized_weights_of_other_length_are_the_same_point(make: Any) -> None:
    model = normalized(make)
    batchnorm.recalibrate(model, DATA, inplace=True, forward=cross_entropy)
    for statistics in ("batch", "recalibrated"):
        line = LossSurface(model, DATA, cross_entropy, statistics=statistics).linear(
            stretched(model, 1.0), stretched(model, 3.0), points=5
        )
        assert line.statistics == statistics
        np.testing.assert_allclose(line.loss, line.loss[0], rtol=1e-10)
    # The naive form: running statistics of one end. The same function looks like a slope.
    stale = []
    for factor in (1.0, 3.0):
        model.load_state_dict(stretched(model, 1.0) | {"0.weight": factor * normalized(make)[0].weight})
        with torch.no_grad():
            stale.append(torch.cat([cross_entropy(model.eval(), batch) for batch in DATA]).mean().item())
    assert abs(stale[1] / stale[0] - 1) > 5e-3


@pytest.mark.parametrize("statistics", ["batch", "recalibrated"])
def test_a_point_is_the_network_with_these_weights(statistics: Any) -> None:
    first, second = normalized(), normalized(seed=1)
    line = LossSurface(first, DATA, cross_entropy, statistics=statistics).linear(first, second, points=3)
    for place, a in enumerate((0.0, 0.5, 1.0)):
        model = copy.deepcopy(first)
        with torch.no_grad():
            for parameter, p, q in zip(model.parameters(), first.parameters(), second.parameters(), strict=True):
                parameter.copy_((1 - a) * p + a * q)
        if statistics == "recalibrated":
            batchnorm.recalibrate(model, DATA, inplace=True, forward=cross_entropy)
            model.eval()
        with torch.no_grad():
            expected = torch.cat([cross_entropy(model, batch) for batch in DATA]).mean().item()
        assert line.loss[place] == pytest.approx(expected, rel=1e-14)


def test_the_two_ways_differ_and_calibration_has_its_own_batches() -> None:
    first, second = normalized(), normalized(seed=1)
    lines = {
        name: LossSurface(first, DATA, cross_entropy, **options).linear(first, second, points=4).loss
        for name, options in {
            "batch": {},
            "recalibrated": {"statistics": "recalibrated"},
            "elsewhere": {"statistics": "recalibrated", "calibration": [(X[:8] + 5, Y[:8])]},
        }.items()
    }
    assert abs(lines["batch"] - lines["recalibrated"]).min() > 1e-4
    assert abs(lines["elsewhere"] - lines["recalibrated"]).min() > 1e-4


def test_frozen_layers_keep_their_statistics() -> None:
    model = normalized()
    model[1].eval()
    model[1].running_mean.fill_(0.5)
    surfaces = [LossSurface(model, DATA, cross_entropy, statistics=s) for s in ("batch", "recalibrated")]
    with torch.no_grad():
        expected = torch.cat([cross_entropy(model, batch) for batch in DATA]).mean().item()
    for surface in surfaces:
        assert surface.linear(model, model, points=2).loss[0] == pytest.approx(expected, rel=1e-14)


IMAGES = torch.randn(16, 3, 5, 7, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(16) % 4


def image_loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("statistics", ["batch", "recalibrated"])
def test_everything_is_restored(statistics: Any, converted: bool) -> None:
    model, other = convnet(), convnet(seed=1)
    if converted:
        model = batchnorm.convert(model)
    model[3].eval()  # a mode of its own
    optimizer = momentum(model)
    image_loss(model, (IMAGES, LABELS)).mean().backward()
    optimizer.step()
    before = state(model, optimizer)
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8, shuffle=True)
    surfaces = LossSurface(model, loader, image_loss, statistics=statistics)
    line = surfaces.linear(model, other, points=4)
    assert same(state(model, optimizer), before)
    assert np.isfinite(line.loss).all()
    again = surfaces.linear(model, other, points=4)
    np.testing.assert_array_equal(line.loss, again.loss)  # the same order of batches, no dropout
    calls = 0

    def failing(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return image_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        LossSurface(model, loader, failing, statistics=statistics).linear(model, other, points=4)
    assert same(state(model, optimizer), before)


def test_a_shuffled_loader_draws_the_same_order_at_each_point() -> None:
    """With statistics of batches another order is another loss, and a flat line would be a ragged one."""
    model = normalized()
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    flat = LossSurface(model, loader, cross_entropy).linear(model, model, points=5).loss
    assert len(set(flat)) == 1
    with torch.no_grad():
        naive = {sum(cross_entropy(model, batch).sum().item() for batch in loader) for _ in range(5)}
    assert len(naive) > 1


def test_a_watching_probe_does_not_see_the_surface() -> None:
    readings = []
    for surface in (False, True):
        torch.manual_seed(0)  # of the dropout
        model = convnet()
        probe = Running(model)
        with probe.watch():
            image_loss(model, (IMAGES, LABELS)).mean().backward()
            if surface:
                LossSurface(model, [(IMAGES, LABELS)], image_loss).linear(model, convnet(seed=1), points=3)
        readings.append(probe.measure(Step(model, lambda: torch.zeros(()), momentum(model))))
    assert readings[0] == readings[1]
    assert readings[0].layers


@pytest.mark.parametrize("statistics", ["batch", "recalibrated"])
def test_a_loss_that_is_not_finite_is_infinite(statistics: Any) -> None:
    model = normalized()
    far = {name: torch.full_like(value, torch.inf) for name, value in model.named_parameters()}
    line = LossSurface(model, DATA, cross_entropy, statistics=statistics).linear(model, far, points=3)
    assert np.isfinite(line.loss[0])
    assert line.loss[1:].tolist() == [np.inf, np.inf]


def test_a_network_in_float32_is_exact_at_its_corners() -> None:
    first, second = (normalized(seed=seed).float() for seed in (0, 1))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    line = LossSurface(first, DATA, loss).linear(first, second, points=2)
    with torch.no_grad():
        for corner, found in zip((first, second), line.loss, strict=True):
            assert found == torch.cat([loss(corner, batch).double() for batch in DATA]).mean().item()


def test_filters_of_a_direction_are_as_long_as_those_of_the_weights() -> None:
    model = convnet()
    direction = filter_normalized(model, seed=0)
    assert direction.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.testing.assert_close(direction[name].flatten(1).norm(dim=1), weight.detach().flatten(1).norm(dim=1))
            assert not torch.equal(direction[name], weight)
        else:
            assert direction[name].count_nonzero() == 0
        assert not direction[name].requires_grad
    again, other = filter_normalized(model.state_dict(), seed=0), filter_normalized(model, seed=1)
    assert all(torch.equal(again[name], direction[name]) for name in direction)
    assert not torch.equal(other["0.weight"], direction["0.weight"])


def test_a_plane_is_the_same_for_weights_of_other_length_that_compute_the_same() -> None:
    """What filter normalization is for; plain directions make the longer network look flatter."""
    short = normalized()
    long = normalized()
    long.load_state_dict(stretched(short, 10.0))

    def plane(model: nn.Sequential, directions: list[dict[str, Tensor]]) -> np.ndarray:
        return LossSurface(model, DATA, cross_entropy).plane(model, *directions, points=5).loss

    expected = plane(short, [filter_normalized(short, seed) for seed in (0, 1)])
    np.testing.assert_allclose(plane(long, [filter_normalized(long, seed) for seed in (0, 1)]), expected, rtol=1e-9)
    first = [{n: d if n == "0.weight" else 0 * d for n, d in filter_normalized(short, seed).items()} for seed in (0, 1)]
    assert np.ptp(plane(long, first)) < 0.5 * np.ptp(plane(short, first))


def test_an_empty_filter_stays_where_it_is() -> None:
    direction = filter_normalized({"weight": torch.tensor([[0.0, 0.0], [3.0, 4.0]])}, seed=0)["weight"]
    assert direction[0].tolist() == [0, 0]
    assert direction[1].norm() == pytest.approx(5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"statistics": "running"}, ValueError, "statistics must be one of batch, recalibrated; got 'running'"),
        ({"batches": iter(DATA)}, TypeError, "batches is gone through once for each point; got an iterator; pass a"),
        ({"calibration": iter(DATA)}, TypeError, "calibration is gone through once"),
        ({"batches": []}, ValueError, "batches must hold at least one example; got none"),
        ({"loss": lambda *_: torch.zeros(())}, TypeError, r"one number for each example, .*; got shape \(\)\. Try red"),
        ({"loss": lambda *_: 0.5}, TypeError, "got float"),
        ({"points": 1}, ValueError, "at least 2 points along each axis; got 1"),
        ({"end": {"0.weight": torch.zeros(8, 4)}}, ValueError, "missing 1.weight, 1.bias, 3.weight, 3.bias; pass a"),
        ({"end": stretched(normalized(), 1) | {"3.bias": torch.zeros(4)}}, ValueError, r"3.bias is \(4,\) and must be"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = normalized()
    given = {"batches": DATA, "loss": cross_entropy, "end": model, "points": 3, "statistics": "batch", **arguments}
    with pytest.raises(error, match=message):
        LossSurface(
            model, given["batches"], given["loss"], statistics=given["statistics"],
            calibration=given.get("calibration"),
        ).linear(model, given["end"], points=given["points"])  # fmt: skip
