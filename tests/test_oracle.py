"""The oracle's answers about policies, against torch's autograd on a composition: right forms pass, naive ones fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import oracle
import regimes
from oracle import Bounds

SHAPE = (9, 4, 5)
LENGTHS = (5, 3, 1, 5, 0, 2, 4, 5, 2)


def _inputs(values: str = "normal", dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SHAPE) -> dict:
    generator = torch.Generator().manual_seed(3)
    x = regimes.VALUES[values](shape, generator).to(dtype)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    mean = x.double().mean([0, *range(2, x.dim())]) + 0.1
    return {
        "x": x,
        "dy": draw(*shape),
        "weight": draw(shape[1]),
        "bias": draw(shape[1]),
        "residual": draw(*shape),
        "running": (mean.to(dtype), draw(shape[1]).abs() + 0.5),
    }


def _valid() -> Tensor:
    return (torch.arange(SHAPE[2]) < torch.tensor(LENGTHS).view(-1, 1)).unsqueeze(1)


CALLS = {
    "padding": {"mask": _valid()},
    "first_half": {
        "mask": (torch.arange(9) < 5).view(9, 1, 1).expand(9, 1, 5),
        "kept": torch.ones(9, 1, 5, dtype=bool),
    },
    "ghost": {"groups": torch.arange(9) // 4},
    "ghost_and_padding": {"groups": torch.arange(9) // 4, "mask": _valid()},
    "keys": {"groups": torch.tensor([2, 0, 2, 2, 0, 0, 2, 0, 0])},
    "renorm": {"bounds": Bounds(1.2, 0.3)},
    "renorm_open": {"bounds": Bounds(1e6, 1e6)},
    "renorm_and_padding": {"bounds": Bounds(1.2, 0.3), "mask": _valid()},
}


def compose(
    x, weight, bias, residual, *, running=None, mask=None, kept=None, groups=None, bounds=None, eps=1e-5, stopped=True
):
    """Each policy in torch operations, for autograd: weighted sums over masks, statistics in float64."""
    everything = torch.ones(x.shape[0], 1, *x.shape[2:], dtype=torch.bool)
    mask = everything if mask is None else mask
    kept = mask if kept is None else kept
    groups = torch.zeros(len(x), dtype=torch.int64) if groups is None else groups
    axes = (0, *range(2, x.dim()))
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    y = torch.zeros_like(x)
    for group in range(int(groups.max()) + 1):
        inside = (groups == group).view(-1, *(1,) * (x.dim() - 1))
        counted = (mask & inside).double()
        if counted.sum() == 0:
            continue
        total = counted.sum()
        mean = (x.double() * counted).sum(axes, keepdim=True) / total
        centred = (x.double() - mean) * (counted.bool() | (kept & inside))
        var = (centred**2 * counted).sum(axes, keepdim=True) / total
        x_hat = centred * (var + eps).rsqrt()
        if bounds is not None:
            sigma = (running[1].double() + eps).sqrt().view(per_channel)
            factor = ((var + eps).sqrt() / sigma).clamp(1 / bounds.rmax, bounds.rmax)
            summand = ((mean - running[0].double().view(per_channel)) / sigma).clamp(-bounds.dmax, bounds.dmax)
            if stopped:
                factor, summand = factor.detach(), summand.detach()
            x_hat = x_hat * factor + summand
        z = x_hat * weight.view(per_channel) + bias.view(per_channel) + residual
        y = y + torch.where(kept & inside, torch.tanh(z), 0).to(x.dtype)
    return y


def _ask(given: dict, call: dict) -> dict[str, oracle.Answer]:
    return oracle.ask(**given, **call, activation="tanh")


def _composed(given: dict, call: dict) -> dict[str, Tensor]:
    leaves = {name: given[name].clone().requires_grad_() for name in ("x", "weight", "bias", "residual")}
    y = compose(**leaves, running=given["running"], **call)
    gradients = torch.autograd.grad(y, list(leaves.values()), given["dy"])
    return {"y": y} | {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("values", ["normal", "mean_1e5", "constant_channels"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_composition_of_each_policy_passes(call: dict, values: str, dtype: torch.dtype) -> None:
    given = _inputs(values, dtype)
    answers = _ask(given, call)
    for name, got in _composed(given, call).items():
        answers[name].check(name, got)


def _without(call: dict, *names: str) -> dict:
    return {name: value for name, value in call.items() if name not in names}


NAIVE = {
    "padding_counted": ("padding", lambda call: {"kept": call["mask"]}),
    "other_half_counted": ("first_half", lambda call: {}),
    "groups_ignored": ("ghost", lambda call: {}),
    "last_group_dropped_into_the_one_before": ("ghost", lambda call: {"groups": call["groups"].clamp(max=1)}),
    "padding_counted_in_groups": ("ghost_and_padding", lambda call: _without(call, "mask") | {"kept": call["mask"]}),
    "keys_shared": ("keys", lambda call: {}),
    "not_corrected": ("renorm", lambda call: {}),
    "not_clipped": ("renorm", lambda call: {"bounds": Bounds(1e6, 1e6)}),
    "gradient_through_the_correction": ("renorm", lambda call: call | {"stopped": False}),
    "clipped_at_once": ("renorm_open", lambda call: {"bounds": Bounds(1.0, 0.0)}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "wrong"), NAIVE.values(), ids=NAIVE)
def test_a_naive_form_of_each_policy_fails(name: str, wrong, dtype: torch.dtype) -> None:
    given = _inputs(dtype=dtype)
    answers, naive = _ask(given, CALLS[name]), _composed(given, wrong(CALLS[name]))
    for result in ("dx",) if "stopped" in wrong(CALLS[name]) else ("y", "dx", "dweight"):
        assert answers[result].misses(naive[result]), result


@pytest.mark.parametrize("name", ["padding", "first_half", "ghost", "renorm", "renorm_open"])
def test_second_derivatives_are_those_of_a_composition(name: str) -> None:
    given = _inputs(shape=SHAPE) | {"running": _inputs()["running"]}
    generator = torch.Generator().manual_seed(4)
    x, weight, dy = (given[key].clone().requires_grad_() for key in ("x", "weight", "dy"))
    bias = given["bias"].clone().requires_grad_()
    y = compose(x, weight, bias, given["residual"], running=given["running"], **CALLS[name])
    first = torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True)
    cotangents = tuple(torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in first)
    second = torch.autograd.grad(first, (x, weight, dy), cotangents)
    answers = oracle.ask_second_order(
        given["x"],
        given["dy"],
        cotangents,
        weight=given["weight"],
        bias=given["bias"],
        residual=given["residual"],
        running=given["running"],
        activation="tanh",
        **CALLS[name],
    )
    for key, got in zip(("x", "weight", "dy"), second, strict=True):
        answers[key].check(f"second derivative by {key}", got)
    assert answers["x"].misses(second[0] * (1 + 1e-5))
