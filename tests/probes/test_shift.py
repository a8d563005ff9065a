"""Internal covariate shift as in definition 2.1, against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from batchnorm.probes import Step
from batchnorm.probes.replay import stepped
from batchnorm.probes.shift import Shift
from probes.networks import batch, convnet, loss_of, momentum, probed


def linear(lr: float = 0.3, scale: float = 1.0):
    """Two linear layers in float64 after a few steps with momentum: the closed form knows the velocity."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    x, y = torch.randn(10, 3).double(), torch.randn(10, 2).double()
    closure = lambda: 0.5 * (model(x) - y).square().sum() / 10  # noqa: E731
    optimizer = momentum(model, lr)
    for _ in range(3):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
    first, second = (layer.weight.detach().numpy().copy() for layer in model)
    velocity = optimizer.state[model[0].weight]["momentum_buffer"].numpy().copy()
    return model, closure, optimizer, (first, second, velocity, x.numpy(), y.numpy())


@pytest.mark.parametrize("scale", [1.0, 4096.0])
def test_two_linear_layers(scale: float) -> None:
    model, closure, optimizer, (first, second, velocity, x, y) = linear()
    found = probed(Shift(model), model, closure, optimizer, scale).layers

    def gradients(w1: np.ndarray, w2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        residual = x @ w1.T @ w2.T - y
        return w2.T @ residual.T @ x / 10, residual.T @ (x @ w1.T) / 10

    g1, g2 = gradients(first, second)
    moved = first - 0.3 * (0.9 * velocity + g1)
    _, after = gradients(moved, second)
    assert list(found) == ["0", "1"]
    assert found["0"] == {"shift": 0, "cosine": pytest.approx(1), "gradient_norm": pytest.approx(np.linalg.norm(g1))}
    assert found["1"]["shift"] == pytest.approx(np.linalg.norm(after - g2), rel=1e-10)
    assert found["1"]["cosine"] == pytest.approx(
        (after * g2).sum() / np.linalg.norm(after) / np.linalg.norm(g2), rel=1e-10
    )
    assert found["1"]["gradient_norm"] == pytest.approx(np.linalg.norm(g2), rel=1e-10)
    # Wrong, and close enough to be believed: the layer's own weights have moved too, or the step is plain descent's.
    velocity_2 = optimizer.state[model[1].weight]["momentum_buffer"].numpy()
    _, own_too = gradients(moved, second - 0.3 * (0.9 * velocity_2 + g2))
    _, plain = gradients(first - 0.3 * g1, second)
    for naive in (own_too, plain):
        assert abs(np.linalg.norm(naive - g2) / found["1"]["shift"] - 1) > 0.05


def test_a_deep_linear_network() -> None:
    """G and G' of every layer from products of matrices, with the layers before it after their step."""
    depth, lr = 7, 0.02
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(5, 5, bias=False) for _ in range(depth))).double()
    for layer in model:
        nn.init.normal_(layer.weight, std=0.5)
    x, y = torch.randn(40, 5).double(), torch.randn(40, 5).double()
    closure = lambda: 0.5 * (model(x) - y).square().sum() / 40  # noqa: E731
    found = probed(Shift(model), model, closure, torch.optim.SGD(model.parameters(), lr=lr)).layers
    weights = [layer.weight.detach().numpy() for layer in model]

    def gradient(w: list[np.ndarray], i: int) -> np.ndarray:
        into = np.linalg.multi_dot([np.eye(5), np.eye(5), *w[:i][::-1]])
        out = np.linalg.multi_dot([np.eye(5), np.eye(5), *w[i + 1 :][::-1]])
        residual = (out @ w[i] @ into) @ x.numpy().T - y.numpy().T
        return out.T @ residual @ x.numpy() @ into.T / 40

    before = [gradient(weights, i) for i in range(depth)]
    moved = [w - lr * g for w, g in zip(weights, before, strict=True)]
    for i in range(depth):
        after = gradient(moved[:i] + weights[i:], i)
        assert found[str(i)]["shift"] == pytest.approx(np.linalg.norm(after - before[i]), rel=1e-9, abs=1e-15)
        cosine = (after * before[i]).sum() / np.linalg.norm(after) / np.linalg.norm(before[i])
        assert found[str(i)]["cosine"] == pytest.approx(cosine, rel=1e-12)
    all_moved = [np.linalg.norm(gradient(moved, i) - before[i]) for i in range(depth)]
    assert all(abs(naive / found[str(i)]["shift"] - 1) > 0.01 for i, naive in enumerate(all_moved) if i)
    assert found["0"]["shift"] == 0 < all_moved[0]


def test_dropout_masks_are_the_same_before_and_after() -> None:
    """With a learning rate of 0 nothing moves, so nothing may shift; other masks would change every gradient."""
    model = convnet()
    found = probed(Shift(model), model, loss_of(model, *batch()), momentum(model, lr=0.0)).layers
    assert list(found) == ["0", "2.conv1", "2.conv2", "5", "9"]
    for layer in found.values():
        assert layer["shift"] == 0
        assert layer["gradient_norm"] > 0
    again = [torch.autograd.grad(loss_of(model, *batch())(), model[5].weight)[0] for _ in range(2)]
    assert not torch.equal(*again)


def test_normalization_between_moves_with_the_layers_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(12, 3).double(), torch.randint(0, 2, (12,))
    closure = loss_of(model, x, y)
    found = probed(Shift(model), model, closure, torch.optim.SGD(model.parameters(), lr=0.5)).layers
    assert list(found) == ["0", "3"]

    def last(moved: list[nn.Module]) -> Tensor:
        former = [(p, p.detach().clone()) for layer in moved for p in layer.parameters()]
        with torch.no_grad():
            for p, _ in former:
                p -= 0.5 * p.grad
        found = torch.autograd.grad(closure(), list(model[3].parameters()))
        with torch.no_grad():
            for p, value in former:
                p.copy_(value)
        return torch.cat([g.flatten() for g in found])

    before, after = last([]), last([model[0], model[1]])
    assert found["3"]["shift"] == pytest.approx((after - before).norm().item(), rel=1e-10)
    without = last([model[0]])
    assert abs((without - before).norm().item() / found["3"]["shift"] - 1) > 0.01


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_optimizer_may_be_wrapped_by_fabric(precision: Any) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    wrapped, optimizer = fabric.setup(model, momentum(model))
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))

    def closure() -> Tensor:
        with fabric.autocast():
            return loss_of(model, x, y)()

    for _ in range(2):
        optimizer.zero_grad()
        fabric.backward(loss_of(wrapped, x, y)())
        step = Step(model, closure, optimizer)
        before, foreseen = [p.detach().clone() for p in model.parameters()], stepped(step)
        assert set(Shift(model).measure(step).layers) == {"0", "2"}
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        optimizer.step()
        assert all(torch.equal(foreseen[p], p) for p in model.parameters())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "Rprop"])
def test_the_copy_steps_as_the_optimizer_does(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]
    optimizer = getattr(torch.optim, name)(groups, lr=0.01)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    called: list[int] = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, x, y)().backward()
        foreseen = stepped(Step(model, loss_of(model, x, y), optimizer))
        optimizer.step()
        for parameter in model.parameters():
            assert torch.equal(foreseen[parameter], parameter)
    assert len(called) == 3


def test_a_forward_that_depends_on_buffers_finds_them_unchanged() -> None:
    """Spectral normalization goes on with its power iteration in each forward: at the same weights, other gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.Tanh(), spectral_norm(nn.Linear(4, 2)))
    closure = loss_of(model, torch.randn(6, 4), torch.randint(0, 2, (6,)))
    found = probed(Shift(model), model, closure, momentum(model, lr=0.0)).layers
    assert len(found) == 2
    assert [layer["shift"] for layer in found.values()] == [0, 0]
    weight = model[2].parametrizations.weight.original
    again = [torch.autograd.grad(closure(), weight)[0] for _ in range(2)]
    assert not torch.equal(*again)
