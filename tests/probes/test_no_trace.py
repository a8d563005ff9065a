"""A probe changes nothing: the whole state, and the numbers of the step itself."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import batchnorm
from batchnorm.probes import DEFAULT, PROBES, Step, make_probes
from batchnorm.tools import swap
from batchnorm.tools.preserve import uncompiled
from probes.networks import batch, convnet, loss_of, momentum, probed

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
}


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Identity and value of everything that a step works with."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        [(n, id(t), t.data_ptr(), t.detach().clone(), _version(t), t.stride()) for n, t in tensors],
        [(n, None if p.grad is None else (id(p.grad), p.grad.clone())) for n, p in model.named_parameters()],
        [(id(t), copy.deepcopy(state)) for t, state in optimizer.state.items()],
        [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        sorted(vars(optimizer)),
        [(n, type(m), m.training, sorted(vars(m)), _hooks(m)) for n, m in model.named_modules()],
        [torch.get_rng_state(), random.getstate(), str(np.random.get_state())],  # noqa: NPY002  # what users draw from
        torch.is_grad_enabled(),
    ]


def _hooks(module: nn.Module) -> list[Any]:
    return [list(v.items()) for k, v in vars(module).items() if "hooks" in k]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _version(tensor: Tensor) -> int:
    """Parameters are not written to. Buffers are, and put back."""
    return tensor._version if isinstance(tensor, nn.Parameter) else 0


def take_steps(names: list[str], optimizer: str, converted: bool, inside: bool, steps: int = 3) -> list[Any]:
    """Train with probes, ``measure`` inside or behind the watched block; return the losses and the last state."""
    torch.manual_seed(7)
    model = batchnorm.convert(convnet()) if converted else convnet()
    updates = OPTIMIZERS[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(updates, 1, 0.9)
    probes = make_probes(names, model)
    losses = []
    for k in range(steps):
        closure = loss_of(model, *batch(k))
        updates.zero_grad()
        with ExitStack() as stack:
            for probe in probes:
                stack.enter_context(probe.watch())
            loss = closure()
            loss.backward()
            if inside:
                for probe in probes:
                    probe.measure(Step(model, closure, updates))
        if not inside:
            before = state(model, updates)
            for probe in probes:
                probe.measure(Step(model, closure, updates))
            assert same(state(model, updates), before)
        updates.step()
        scheduler.step()
        losses.append(loss.item())
    values = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    return [losses, values, torch.get_rng_state()]


@settings(max_examples=12, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(PROBES)), unique=True, min_size=1),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    converted=st.booleans(),
    inside=st.booleans(),
)
def test_training_is_the_same_bit_for_bit(names: list[str], optimizer: str, converted: bool, inside: bool) -> None:
    assert same(take_steps(names, optimizer, converted, inside), take_steps([], optimizer, converted, inside))


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", sorted(PROBES))
def test_each_probe_leaves_everything_as_it_was(name: str, converted: bool) -> None:
    with_it = take_steps([name], "adam", converted, inside=False)
    assert same(with_it, take_steps([], "adam", converted, inside=False))


def test_a_probe_that_measures_first_is_not_seen_by_the_others() -> None:
    readings = []
    for names in (["input_shift", "shift", "landscape", *DEFAULT], DEFAULT):
        torch.manual_seed(7)
        model = convnet()
        closure, updates = loss_of(model, *batch()), momentum(model)
        probes = make_probes(names, model)
        with ExitStack() as stack:
            for probe in probes:
                stack.enter_context(probe.watch())
            closure().backward()
            found = [probe.measure(Step(model, closure, updates)) for probe in probes]
        readings.append(found[-3:])
    assert readings[0] == readings[1]
    assert all(reading.layers for reading in readings[0])


@pytest.mark.parametrize("name", ["input_shift", "shift", "landscape"])
def test_an_exception_in_the_middle_puts_everything_back(name: str) -> None:
    model = convnet()
    x, y = batch()
    updates = momentum(model)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return loss_of(model, x, y)()

    probe = PROBES[name](model)
    with probe.watch():
        closure().backward()
    before = state(model, updates)
    with pytest.raises(KeyboardInterrupt):
        probe.measure(Step(model, closure, updates))
    assert same(state(model, updates), before)


def test_an_exception_in_the_step_ends_the_watching() -> None:
    model = batchnorm.convert(convnet())
    before = state(model, momentum(model))
    probes = make_probes(list(PROBES), model)

    def failing_step() -> None:
        with ExitStack() as stack:
            for probe in probes:
                stack.enter_context(probe.watch())
            model(torch.zeros(2, 3, 9, 9))

    with pytest.raises(RuntimeError):
        failing_step()
    after = state(model, momentum(model))
    assert [entry[:2] for entry in after[5]] == [entry[:2] for entry in before[5]]
    assert same(after[5], before[5])


def test_watching_may_end_in_any_order() -> None:
    model = batchnorm.convert(convnet())
    before = [sorted(vars(m)) for m in model.modules()]
    one, other = (make_probes(["running"], model)[0] for _ in range(2))
    first, second = one.watch(), other.watch()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    model(batch()[0])
    second.__exit__(None, None, None)
    step = Step(model, lambda: torch.zeros(()), momentum(model))
    assert one.measure(step).layers == {}
    assert set(other.measure(step).layers) == {"1", "2.bn1", "2.bn2", "6"}
    assert [sorted(vars(m)) for m in model.modules()] == before


def test_what_is_compiled_runs_compiled_again_after_blocks_that_end_in_any_order() -> None:
    """Each block that put back what it had found left the compiler switched off for the process."""
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: x + 1, backend=backend)
    first, second = uncompiled(), uncompiled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    compiled(torch.zeros(2))
    assert not graphs
    second.__exit__(None, None, None)
    compiled(torch.zeros(2))
    assert len(graphs) == 1


def test_fused_paths_stay_fused_while_they_are_watched() -> None:
    fused: list[str | None] = []

    def spy(_layer: nn.Module, _x: Tensor, _residual: Tensor | None, activation: str | None) -> None:
        fused.append(activation)

    model = batchnorm.convert(convnet())
    with ExitStack() as stack:
        for layer in filter(swap.is_ours, model.modules()):
            stack.enter_context(layer.observe(spy))
        probe, *others = make_probes(list(PROBES), model)
        for other in others:
            probed(other, model, loss_of(model, *batch()), momentum(model))
        fused.clear()
        reading = probed(probe, model, loss_of(model, *batch()), momentum(model))
    assert fused == ["silu", "relu", "relu", "sigmoid"]
    assert list(reading.layers) == ["1", "2.bn1", "2.bn2", "6"]


def test_gradients_are_put_back_where_there_were_none() -> None:
    model = convnet()
    updates = momentum(model)
    for name in ("input_shift", "shift", "landscape"):
        PROBES[name](model).measure(Step(model, loss_of(model, *batch()), updates))
    assert all(p.grad is None for p in model.parameters())
    assert not updates.state


def test_unknown_names_are_named() -> None:
    with pytest.raises(
        ValueError, match="one of activations, gradients, running, input_shift, shift, landscape; got icsl"
    ):
        make_probes(["running", "icsl"], nn.Linear(1, 1))
    assert [p.name for p in make_probes(["running", "running"], nn.Linear(1, 1))] == ["running"]


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    closure = lambda: model(torch.ones(2, 3)).sum()  # noqa: E731
    with pytest.raises(TypeError, match=r"step.. takes no closure; LBFGS raised"):
        probed(PROBES["shift"](model), model, closure, torch.optim.LBFGS(model.parameters()))
