"""The registered operators: derivatives of every order, saved statistics, and what tracing sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import oracle
import regimes
import tolerances as tol
from batchnorm import autograd
from batchnorm.functional import batch_norm
from batchnorm.kernels import composite
from batchnorm.kernels.interface import WHOLE_BATCH, Epilogue, Reduction, Statistics

SHAPES = [(5, 2), (4, 2, 3), (3, 2, 2, 2), (2, 2, 2, 1, 2)]


def _double(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def _function(training: bool, activation: str | None, channels: int = 2) -> Callable[..., Tensor]:
    stored = (
        (None, None) if training else (_double(channels, seed=7, grad=False), _double(channels, seed=8).detach() ** 2)
    )

    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        return batch_norm(x, *stored, weight, bias, training, activation=activation, residual=residual)

    return function


def _arguments(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return (_double(*shape, seed=1), _double(shape[1], seed=2), _double(shape[1], seed=3), _double(*shape, seed=4))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", regimes.ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_first_and_second_derivatives_match_differences(
    shape: tuple[int, ...], activation: str | None, training: bool
) -> None:
    function, arguments = _function(training, activation), _arguments(shape)
    for given in (arguments, arguments[:3]):
        assert gradcheck(function, given, check_undefined_grad=False)
        assert gradgradcheck(function, given, check_undefined_grad=False)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_first_derivative_matches_central_differences_of_our_own(training: bool) -> None:
    """Independent of torch's checker: (f(x + h) - f(x - h)) / 2h along random directions."""
    function, arguments = _function(training, "silu"), _arguments((4, 2, 3))
    dy = _double(4, 2, 3, seed=9, grad=False)
    grads = torch.autograd.grad(function(*arguments), arguments, dy)
    h = 1e-5
    for i, grad in enumerate(grads):
        direction = torch.randn(arguments[i].shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = [a.detach() + sign * h * direction if j == i else a.detach() for j, a in enumerate(arguments)]
            ends.append((function(*moved) * dy).sum())
        difference = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close((grad * direction).sum(), difference, rtol=tol.CENTRAL_DIFFERENCE, atol=1e-9)


@pytest.mark.parametrize("activation", [None, "silu", "tanh"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_third_derivative_is_that_of_the_formula(activation: str | None, training: bool) -> None:
    """Where torch's own layer is silently wrong from the third order on (pytorch/pytorch#186256)."""
    x, weight, bias, residual = _arguments((5, 2))
    stored = None if training else Statistics(_double(2, seed=7, grad=False), _double(2, seed=8).detach() ** 2)

    def third(y: Tensor) -> Tensor:
        first = torch.autograd.grad((y * _double(5, 2, seed=5, grad=False)).sum(), x, create_graph=True)[0]
        second = torch.autograd.grad((first * _double(5, 2, seed=6, grad=False)).sum(), x, create_graph=True)[0]
        return torch.autograd.grad((second**2).sum(), x, allow_unused=not second.requires_grad)[0]

    if not training and activation is None:
        pytest.skip("linear in x: there is no second derivative to differentiate")
    ours = third(_function(training, activation)(x, weight, bias, residual))
    used, reduction = (composite.collect(x, WHOLE_BATCH), WHOLE_BATCH) if stored is None else (stored, None)
    formula = third(composite.normalize(x, used, reduction, Epilogue(weight, bias, residual, activation), 1e-5))
    assert formula.abs().max() > 1e-3
    torch.testing.assert_close(ours, formula, rtol=1e-9, atol=1e-10)


def test_x_as_its_own_residual() -> None:
    """The same tensor in two places: each use has its own gradient, in the first and second derivative."""

    def function(x: Tensor) -> Tensor:
        return batch_norm(x, None, None, training=True, residual=x, activation="silu")

    x = _double(5, 2)
    assert gradcheck(function, x)
    assert gradgradcheck(function, x)


def test_unneeded_gradients_are_none() -> None:
    x, weight, bias, residual = _arguments((5, 2))
    y = batch_norm(x.detach(), None, None, weight, bias.detach(), True, residual=residual.detach())
    assert torch.autograd.grad(y, weight, torch.ones_like(y), retain_graph=True)[0].shape == (2,)
    y.backward(torch.ones_like(y))
    assert x.grad is None
    assert bias.grad is None


@pytest.mark.parametrize("values", regimes.VALUES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_saved_statistics(values: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = regimes.VALUES[values]((16, 5, 7), generator).to(dtype)
    _, (mean, var, _) = autograd.forward(x, WHOLE_BATCH, Epilogue(), 1e-5, direct=True)
    assert mean.dtype == var.dtype == torch.float64
    answers = oracle.ask(x, torch.ones_like(x))
    answers["mean"].check("mean", mean[0])
    answers["var"].check("var", var[0])
    assert (var >= 0).all()


def test_saved_for_backward_is_what_the_documentation_says() -> None:
    x, weight, bias, residual = _arguments((5, 2))
    y = batch_norm(x, None, None, weight, bias, True, residual=residual)
    saved = [t for t in y.grad_fn.saved_tensors if t is not None]
    assert sorted(t.numel() for t in saved) == [2, 2, 10]  # weight, bias; x, and no residual
    statistics, *settings = y.grad_fn.constants
    assert [t.numel() for t in statistics] == [2, 2, 1]
    assert settings == [WHOLE_BATCH, None, 1e-5]


def test_running_statistics_may_change_before_backward() -> None:
    """A later training step must not reach into a backward pass still to come (torch raises here)."""
    x, mean, var = _double(5, 2), torch.zeros(2).double(), torch.ones(2).double()
    y = batch_norm(x, mean, var, training=False)
    expected = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0]
    batch_norm(x * 3, mean, var, training=True)
    assert torch.equal(torch.autograd.grad(y, x, torch.ones_like(y))[0], expected)


# Tracing.


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("among", ["whole", "groups", "mask"])
def test_operators_pass_torchs_own_checks(activation: str | None, layout: str, among: str) -> None:
    """Schema, registration, fake tensors (shapes, strides, dtypes agree with the real ones), symbolic shapes."""
    x, residual, dy = (regimes.LAYOUTS[layout](_double(4, 3, 2, 5, seed=s).detach().float()) for s in (1, 2, 3))
    mask = torch.rand(4, 1, 2, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    reduction = {"whole": Reduction(), "groups": Reduction(3), "mask": Reduction(None, mask)}[among]
    weight, bias = (torch.randn(3, requires_grad=True) for _ in range(2))
    epilogue = Epilogue(weight, bias, residual, activation, reduction.mask)
    detached = Epilogue(weight.detach(), bias.detach(), *epilogue[2:])
    statistics = Statistics(*torch.ops.batchnorm.collect(x, *reduction))
    sums = torch.ops.batchnorm.reduce(dy, x, *statistics, *reduction, *detached, 1e-5)
    leaf = x.detach().requires_grad_()
    running = torch.zeros(3), torch.ones(3), torch.tensor(0)
    ops = torch.ops.batchnorm
    for operator, arguments in (
        (ops.collect, (x, *reduction)),
        (ops.forward, (leaf, *reduction, *epilogue, 1e-5)),
        (ops.normalize, (leaf, *statistics, *reduction, *epilogue, 1e-5)),
        (ops.normalize, (leaf, running[0], running[1], None, None, None, *epilogue, 1e-5)),
        (ops.reduce, (dy, x, *statistics, *reduction, *detached, 1e-5)),
        (ops.apply, (dy, x, *statistics, *sums, *reduction, *detached, 1e-5)),
        (ops.backward, (dy, x, *statistics, *reduction, *detached, 1e-5)),
        (ops.snapshot, (running[0],)),
        (ops.remember, (*running, torch.tensor(0), *statistics, 0.1, True)),
    ):
        torch.library.opcheck(operator.default, arguments)


def test_modes_and_profilers_see_the_operators() -> None:
    """The direct way to the kernel is taken only where nobody looks."""
    x = torch.randn(4, 3, requires_grad=True)

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    with Seen():
        batch_norm(x, None, None, training=True).backward(torch.ones(4, 3))
    assert "batchnorm.forward.default" in names
    assert "batchnorm.backward.default" in names
    with torch.profiler.profile() as profile:
        batch_norm(x, None, None, training=True).backward(torch.ones(4, 3))
    assert {"batchnorm::forward", "batchnorm::backward"} <= {e.key for e in profile.key_averages()}


def test_meta_tensors_give_shapes_without_computing() -> None:
    x = torch.empty(2, 3, 4, 4, device="meta").to(memory_format=torch.channels_last)
    y = batch_norm(x, None, None, training=True, activation="relu")
    assert y.is_meta
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
