"""The loss along the gradient, on surfaces that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchnorm.probes import Step
from batchnorm.probes.landscape import STEPS, Landscape
from probes.networks import batch, convnet, loss_of, momentum, probed


class Point(nn.Module):
    """Weights that are a point of the surface."""

    def __init__(self, at: list[float]) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at, dtype=torch.float64))

    def forward(self, curvature: Tensor) -> Tensor:
        return 0.5 * self.at @ curvature @ self.at


def read(model: Point, curvature: Tensor, lr: float, scale: float = 1.0) -> dict[str, float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return probed(Landscape(model), model, lambda: model(curvature), optimizer, scale).scalars


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_a_quadratic(scale: float) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    curvature, at, lr = root @ root.T, rng.normal(size=4), 0.02
    found = read(Point(at.tolist()), torch.from_numpy(curvature), lr, scale)
    gradient = curvature @ at
    sizes = lr * np.geomspace(0.5, 4, 7)
    losses = [0.5 * p @ curvature @ p for p in (at - s * gradient for s in sizes)]
    change = np.linalg.norm(curvature @ gradient)
    expected = {
        "loss": 0.5 * at @ curvature @ at,
        "loss_low": min(losses),
        "loss_high": max(losses),
        "gradient_change_low": sizes[0] * change,
        "gradient_change_high": sizes[-1] * change,
        "smoothness": change / np.linalg.norm(gradient),
        "distance_low": sizes[0] * np.linalg.norm(gradient),
        "distance_high": sizes[-1] * np.linalg.norm(gradient),
    }
    assert found == {key: pytest.approx(value, rel=1e-9) for key, value in expected.items()}
    # The largest eigenvalue bounds it; a gradient change without the distance would not be a curvature.
    assert found["smoothness"] <= np.linalg.eigvalsh(curvature)[-1]
    assert abs(found["gradient_change_high"] / sizes[-1] / found["smoothness"] - 1) > 0.1


def test_along_an_eigenvector_smoothness_is_the_eigenvalue() -> None:
    found = read(Point([0.0, 2.0]), torch.diag(torch.tensor([100.0, 7.0], dtype=torch.float64)), 0.01)
    assert found["smoothness"] == pytest.approx(7, rel=1e-12)


def test_the_span_is_that_of_the_paper() -> None:
    assert (STEPS[0], STEPS[-1]) == (0.5, pytest.approx(4))
    assert np.allclose(np.diff(np.log(STEPS)), np.log(8) / 6)
    assert any(np.isclose(STEPS, 1))


def test_other_steps() -> None:
    """Deep linear networks are looked at from 1/100 to 30 learning rates away; a quadratic is as smooth everywhere."""
    model = Point([0.0, 2.0])
    curvature = torch.diag(torch.tensor([100.0, 7.0], dtype=torch.float64))
    steps = np.geomspace(0.01, 30, 9)
    probe = Landscape(model, steps=steps.tolist())
    found = probed(probe, model, lambda: model(curvature), torch.optim.SGD(model.parameters(), lr=0.01)).scalars
    assert found["distance_low"] == pytest.approx(0.01 * 0.01 * 14)
    assert found["distance_high"] == pytest.approx(30 * 0.01 * 14)
    assert found["loss_high"] == pytest.approx(0.5 * 7 * (2 - 30 * 0.01 * 14) ** 2)
    assert found["smoothness"] == pytest.approx(7, rel=1e-9)
    for wrong in ((), (1.0, 0.0), (np.nan,), (np.inf,)):
        with pytest.raises(ValueError, match="steps must be positive numbers of learning rates; got"):
            Landscape(model, steps=wrong)


def test_each_group_moves_by_its_own_learning_rate() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[1].weight.fill_(3.0)
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[1].parameters(), "lr": 0.1}]
    )
    x = torch.ones(1, 1, dtype=torch.float64)
    found = probed(Landscape(model), model, lambda: model(x).sum(), optimizer).scalars
    # The loss is a * b: only b moves, by 0.1 * a = 0.2 for a step of 1.
    assert found["loss_high"] == pytest.approx(2 * (3 - 0.1))
    assert found["loss_low"] == pytest.approx(2 * (3 - 0.8))
    assert found["distance_high"] == pytest.approx(0.8)


def test_divergence_and_flat_places() -> None:
    class Wall(Point):
        def forward(self, curvature: Tensor) -> Tensor:
            return self.at.sqrt().sum()

    found = read(Wall([1.0]), torch.eye(1), lr=0.9)
    assert found["loss_high"] == np.inf  # at 1 - 0.9 * 4 / 2
    assert found["loss_low"] == pytest.approx(np.sqrt(1 - 0.9 * 2 / 2))
    flat = read(Point([0.0, 0.0]), torch.eye(2, dtype=torch.float64), lr=0.1)
    assert flat["distance_high"] == 0
    assert np.isnan(flat["smoothness"])


def test_a_step_of_size_one_is_where_plain_descent_goes() -> None:
    """With dropout: the same masks at every point, or the loss at the weights would not be the one at distance 0."""
    model = convnet()
    found = probed(Landscape(model), model, loss_of(model, *batch()), momentum(model, lr=1e-12)).scalars
    assert found["loss_low"] == found["loss"] == found["loss_high"]
    assert found["gradient_change_high"] == 0
    found = probed(Landscape(model), model, loss_of(model, *batch()), momentum(model, lr=0.01)).scalars
    assert found["loss_low"] < found["loss_high"] < found["loss"]


def test_parameters_of_the_optimizer_outside_the_model_are_put_back() -> None:
    model, head = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    before = [p.detach().clone() for p in head.parameters()]
    Landscape(model).measure(Step(model, lambda: head(model(torch.ones(3, 2))).square().sum(), optimizer))
    assert all(torch.equal(p, q) for p, q in zip(head.parameters(), before, strict=True))


def test_points_that_the_weights_cannot_tell_do_not_count() -> None:
    def smoothness(lr: float) -> float:
        torch.manual_seed(0)  # of the dropout
        model, (x, y) = convnet(), batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        return probed(Landscape(model), model, loss_of(model, x, y), optimizer).scalars["smoothness"]

    assert smoothness(1e-6) == pytest.approx(smoothness(1e-4), rel=0.01)
    # A cosine ends near 0: what the weights then do is rounding, and would be given as a smoothness of 95.
    assert np.isnan(smoothness(1e-8))
    assert np.isnan(smoothness(1e-12))
