"""What is fused, what is not and why; and that models compute the same either way."""

from __future__ import annotations

import builtins
import copy
import cProfile
import pickle
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import batchnorm
from batchnorm.tools.graph.classes import original_class
from tools import zoo
from tools.same import check, image, runs_fused, settle

FUSED = {
    "sequential": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)),
        {"1": "fused relu"},
    ),
    "nested sequential": (
        lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.GELU()),
        {"0.1": "fused gelu"},
    ),
    "resnet": (
        zoo.ResNet,
        {
            "bn1": "fused relu",
            "layer1.0.bn1": "fused relu",
            "layer1.0.bn2": "fused add + relu",
            "layer1.1.bn1": "fused relu",
            "layer1.1.bn2": "fused add + relu",
            "layer1.1.downsample.1": "swapped",
            "layer2.bn1": "fused relu",
            "layer2.bn2": "fused relu",
            "layer2.bn3": "fused add + relu",
        },
    ),
    "densenet": (
        zoo.DenseNet,
        dict.fromkeys(("first.norm1", "first.norm2", "second.norm1", "second.norm2", "norm"), "fused relu"),
    ),
    **{
        f"mobilenet {name}": (
            lambda activation=activation: zoo.InvertedResidual(activation),
            {"body.0.bn": f"fused {name}", "body.1.bn": f"fused {name}", "body.2.bn": "fused add"},
        )
        for name, activation in {
            "hardswish": nn.Hardswish(inplace=True),
            "silu": nn.SiLU(),
            "relu6": nn.ReLU6(inplace=True),
        }.items()
    },
    "hand-made swish": (lambda: zoo.ConvNorm(3, 4, zoo.Swish()), {"bn": "fused silu"}),
    "hand-made hardswish": (lambda: zoo.ConvNorm(3, 4, zoo.HandMadeHardswish()), {"bn": "fused hardswish"}),
    "wrapped silu": (lambda: zoo.ConvNorm(3, 4, zoo.Wraps(F.silu)), {"bn": "fused silu"}),
    "wrapped gelu": (lambda: zoo.ConvNorm(3, 4, zoo.Wraps(F.gelu)), {"bn": "fused gelu"}),
    "dropout of nothing": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.0), nn.ReLU()),
        {"0": "fused relu"},
    ),
    "configuration": (zoo.Configured, {"bn": "fused relu"}),
    "untraceable": (
        zoo.Untraceable,
        {
            "stem.bn": "swapped",
            "blocks.0.bn1": "fused relu",
            "blocks.0.bn2": "fused add + relu",
            "blocks.1.bn1": "fused relu",
            "blocks.1.bn2": "fused add + relu",
        },
    ),
    "shared layer": (zoo.SharedLayer, {"bn": "fused tanh and sigmoid"}),
    "wrapped": (
        lambda: nn.DataParallel(nn.Sequential(nn.BatchNorm2d(3), nn.LeakyReLU())),
        {"module.0": "fused leaky_relu"},
    ),
    "optional": (zoo.Optional, {"bn": "fused relu"}),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", FUSED)
def test_fused_models_compute_the_same(name: str, training: bool) -> None:
    build, expected = FUSED[name]
    model = settle(build()).train(training)
    converted, report = batchnorm.convert(model, report=True)
    if name != "optional":
        assert {row.name: row.done for row in report} == expected
    assert runs_fused(converted) == sum(row.done.count("fused") + row.done.count(" and ") for row in report)
    check(model, converted)
    check(model, batchnorm.revert(converted))


class _Residual(zoo.After):
    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.bn(x), x) * 2


ADDITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "y + x": lambda y, x: y + x,
    "x + y": lambda y, x: x + y,
    "y += x": lambda y, x: y.__iadd__(x),
    "torch.add": lambda y, x: torch.add(y, x),
    "torch.add(x, y)": lambda y, x: torch.add(x, y),
    "add": lambda y, x: y.add(x),
    "add_": lambda y, x: y.add_(x),
}


@pytest.mark.parametrize("form", ADDITIONS)
def test_every_form_of_addition(form: str) -> None:
    model = settle(_Residual(ADDITIONS[form]))
    converted, report = batchnorm.convert(model, report=True)
    assert report["bn"].done == "fused add"
    assert runs_fused(converted) == 1
    check(model, converted)


NOT_FUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "used twice": (zoo.UsedTwice, "its output is used 2 times"),
    "slope": (lambda: zoo.After(nn.LeakyReLU(0.2)), "leaky_relu with negative_slope=0.2"),
    "slope of a function": (lambda: zoo.After(lambda y: F.leaky_relu(y, 0.3)), "leaky_relu with negative_slope=0.3"),
    "approximation": (lambda: zoo.After(lambda y: F.gelu(y, approximate="tanh")), "gelu with approximate=tanh"),
    "other bounds": (lambda: zoo.After(nn.Hardtanh(0.0, 5.0)), "hardtanh with max_val=5.0, where the kernels have 6"),
    "default bounds": (lambda: zoo.After(F.hardtanh), "hardtanh with min_val=-1.0, where the kernels have 0"),
    "clamp, whose slope at a bound is 1": (lambda: zoo.After(lambda y: y.clamp(0, 6)), "followed by .clamp()"),
    "another activation": (lambda: zoo.After(nn.ELU()), "followed by after (ELU)"),
    "dropout between": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.ReLU()),
        "followed by 1 (Dropout)",
    ),
    "a constant": (lambda: zoo.After(lambda y: y + 1), "the addition of a constant"),
    "alpha": (lambda: _Residual(lambda y, x: torch.add(y, x, alpha=3)), "an addition with options"),
    "itself": (lambda: zoo.After(lambda y: y + y), "its output is added to itself"),
    "randomness": (zoo.StochasticDepth, "it calls rand on no input"),
    "Python's randomness": (zoo.PythonRandom, "it draws random numbers"),
    "NumPy's randomness": (zoo.NumpyRandom, "it draws random numbers"),
    "a counter": (zoo.Counting, "it sets self.calls"),
    "a list": (zoo.Appending, "it changes self.shapes"),
    "its own backward": (zoo.Binarized, "it applies StraightThrough, whose backward pass"),
    "checkpointing": (zoo.Checkpointed, "it applies CheckpointFunction"),
    "no_grad": (zoo.WithoutGradient, "another setting of autograd"),
    "changed input": (zoo.ChangedInput, "its input might be changed by .mul_()"),
    "changed input in place": (zoo.ChangedInputInPlace, "its input might be changed by imul"),
    "added in place": (zoo.AddedInPlace, "it is added in place to another tensor"),
    "a configuration in a condition": (lambda: zoo.Configured(whole=True), "it uses a Configuration"),
    "an object": (lambda: _with(zoo.After(nn.ReLU()), after=_Callable()), "it reads self.after, a _Callable"),
}


class _Callable:
    def __call__(self, y: Tensor) -> Tensor:
        return torch.relu(y)


def _with(module: nn.Module, **attributes: object) -> nn.Module:
    for name, value in attributes.items():
        delattr(module, name)
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("name", NOT_FUSED)
def test_what_must_not_fuse_is_swapped_and_computes_the_same(name: str) -> None:
    build, reason = NOT_FUSED[name]
    model = settle(build())
    converted, report = batchnorm.convert(model, report=True)
    (row,) = report
    assert row.done == "swapped"
    assert reason in row.reason
    if name.startswith("changed input"):
        # Autograd refuses to go back through it, torch's layer or ours.
        with torch.no_grad():
            torch.testing.assert_close(converted(image()), model(image()))
    elif name == "checkpointing":
        # Torch's layer counts the recomputation as a batch, and ours does not (tests/test_transactions.py).
        x = image().requires_grad_()
        torch.testing.assert_close(converted(x), model(x))
    else:
        check(model, converted)


def test_an_addition_that_broadcasts_or_promotes_is_found_in_the_call() -> None:
    broadcast = settle(zoo.Broadcast())
    converted = batchnorm.convert(broadcast)
    assert runs_fused(converted) == 0
    check(broadcast, converted)
    promoted = _Residual(lambda y, x: torch.relu(y + x.double()))
    converted = batchnorm.convert(promoted)
    x = image().float()
    assert runs_fused(converted, x) == 0
    result = converted(x)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, promoted(x), rtol=1e-6, atol=1e-6)
    larger = batchnorm.convert(settle(_Residual(lambda y, x: y.add_(x.expand(2, *x.shape)))))
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        larger(image())


# What a fused forward depends on may change.


def _fused() -> tuple[nn.Module, nn.Module]:
    model = settle(zoo.BasicBlock(3, 3))
    return model, batchnorm.convert(model)


def test_a_hook_registered_later_sees_what_it_would_have_seen() -> None:
    model, converted = _fused()
    for name in ("bn2", "relu"):
        seen: list[list[Tensor]] = []
        for one in (model, converted):
            outputs: list[Tensor] = []
            handle = one.get_submodule(name).register_forward_hook(
                lambda m, args, y, outputs=outputs: outputs.append(y.clone())
            )
            one(image())
            handle.remove()
            seen.append(outputs)
        torch.testing.assert_close(*seen)
    assert runs_fused(converted) == 2


def test_hooks_there_before_see_the_same_and_forbid_the_fusion() -> None:
    model = settle(zoo.BasicBlock(3, 3))
    model.bn1.register_forward_hook(lambda m, args, y: y * 2)
    model.relu = nn.ReLU()  # torch allows no backward hook on one that works in place
    model.relu.register_full_backward_hook(lambda m, gin, gout: (gin[0] * 3,))
    converted, report = batchnorm.convert(model, report=True)
    assert report["bn1"].reason == "it has hooks, which see its output"
    assert report["bn2"].done == "fused add"
    check(model, converted)


def test_a_submodule_replaced_later_is_used() -> None:
    model, converted = _fused()
    for one in (model, converted):
        one.relu = nn.Tanh()
        one.conv2 = settle(nn.Conv2d(3, 3, 1))
    check(model, converted)
    for one in (model, converted):
        one.bn1 = settle(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
        one.downsample = settle(nn.Conv2d(3, 3, 1))
    check(model, converted)


def test_a_sequential_can_grow_and_be_sliced() -> None:
    model = settle(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    converted = batchnorm.convert(model)
    check(model[:1], converted[:1])
    for one in (model, converted):
        one.append(nn.Tanh())
    check(model, converted)


def test_attributes_and_arguments_that_a_forward_reads_may_change() -> None:
    model = settle(zoo.Optional())
    converted = batchnorm.convert(model)
    x = image()
    for one in (model, converted):
        one.scale = 3.0
    check(model, converted)
    for arguments in ({"shift": x}, {"shift": None}):
        torch.testing.assert_close(converted(x, **arguments), model(x, **arguments))
    torch.testing.assert_close(converted(x=x), model(x=x))
    with pytest.raises(TypeError, match="unexpected keyword"):
        converted(x, other=1)
    with pytest.raises(TypeError, match="missing"):
        converted()


def test_a_configuration_that_changes_is_seen() -> None:
    model = settle(zoo.Configured())
    converted = batchnorm.convert(model)
    assert runs_fused(converted) == 1
    for one in (model, converted):
        one.config.padding = True
    assert runs_fused(converted) == 0
    check(model, converted)
    for one in (model, converted):
        one.config = zoo.Configuration()
        one.config.label = "another name, which no forward reads"
    assert runs_fused(converted) == 1
    check(model, converted)


def test_a_dropout_that_begins_to_drop() -> None:
    model = settle(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.0), nn.ReLU()))
    converted = batchnorm.convert(model)
    for one in (model, converted):
        one[1].p = 0.5
    assert runs_fused(converted) == 0
    check(model, converted)


def test_attributes_of_the_layer_that_a_forward_asks_for() -> None:
    model = settle(zoo.AsksItsLayer())
    converted = batchnorm.convert(model)
    assert runs_fused(converted) == 1
    check(model, converted)
    check(model.eval(), converted.eval())


def test_a_trace_leaves_no_mark() -> None:
    model = zoo.Appending()
    batchnorm.convert(model, inplace=True)
    assert model.shapes == []


def test_a_trace_changes_nothing_for_other_threads_or_a_profiler() -> None:
    seen: list[object] = []

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            def other() -> None:
                y = torch.ones(2, requires_grad=True)
                seen.append((builtins.isinstance is isinstance_before, zoo.StraightThrough.apply(y).sum().item()))

            if isinstance(x, Tensor):
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
            return torch.relu(self.bn(x))

    isinstance_before = builtins.isinstance
    profile = cProfile.Profile()
    profile.enable()
    try:
        _, report = batchnorm.convert(Asks(), report=True)
        assert sys.getprofile() is profile or sys.version_info >= (3, 12)
    finally:
        profile.disable()
    assert report["bn"].done == "fused relu"
    assert (True, 2.0) in seen


def test_layers_in_another_mode_than_their_block() -> None:
    model = settle(zoo.BasicBlock(3, 3))
    model.bn1.eval()
    converted = batchnorm.convert(model)
    x = image()
    torch.testing.assert_close(converted(x), model(x))
    assert not converted.bn1.training
    assert converted.bn1.num_batches_tracked == 0


def test_an_activation_with_an_option_changed_later() -> None:
    model = settle(zoo.After(nn.LeakyReLU()))
    converted = batchnorm.convert(model)
    for one in (model, converted):
        one.after.negative_slope = 0.5
    check(model, converted)


# What users do with a model.


def test_a_block_stays_what_it_was() -> None:
    model, converted = _fused()
    assert isinstance(converted, zoo.BasicBlock)
    assert type(converted).__name__ == "BasicBlock"
    assert converted.channels() == 3
    assert repr(converted) == repr(model)
    assert [name for name, _ in converted.named_modules()] == [name for name, _ in model.named_modules()]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy])
def test_copies_are_fused_and_independent(again: Callable[[nn.Module], nn.Module]) -> None:
    model = settle(zoo.ResNet())
    converted = again(batchnorm.convert(model))
    assert runs_fused(converted) == 8
    check(model, converted)
    check(model, batchnorm.revert(converted))


def test_state_dicts_go_both_ways() -> None:
    model = settle(zoo.ResNet())
    converted = batchnorm.convert(zoo.ResNet().double())
    converted.load_state_dict(model.state_dict())
    check(model, converted)
    other = zoo.ResNet().double()
    other.load_state_dict(converted.state_dict())
    check(other, converted)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile_keeps_the_fusion_and_export_holds_standard_operators(training: bool) -> None:
    model = settle(zoo.ResNet()).train(training)
    converted = batchnorm.convert(model)
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(copy.deepcopy(converted), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(image()), model(image()))
    program = torch.export.export(copy.deepcopy(converted), (image(),))
    torch.testing.assert_close(program.module()(image()), copy.deepcopy(converted)(image()))
    (graph,) = graphs
    names = [str(node.target) for node in graph.graph.nodes]
    assert sum("batchnorm" in name for name in names) == 9
    assert not any("relu" in name for name in names)
    exported = [str(node.target) for node in program.graph.nodes]
    assert not any("batchnorm" in name for name in exported)
    assert training or sum("batch_norm" in name for name in exported) == 9


def test_a_converted_model_can_be_traced_again() -> None:
    converted = batchnorm.convert(settle(zoo.ResNet()))
    graph = torch.fx.symbolic_trace(converted)
    assert sum(node.op == "call_module" and "bn" in node.target for node in graph.graph.nodes) == 8
    torch.testing.assert_close(graph(image()), copy.deepcopy(converted)(image()))


def test_converting_again_changes_nothing() -> None:
    model = settle(zoo.ResNet())
    once, first = batchnorm.convert(model, report=True)
    twice, second = batchnorm.convert(once, report=True)
    assert first == second
    check(model, twice)
    check(model, batchnorm.revert(twice))
    assert all(original_class(m) is type(m) for m in batchnorm.revert(twice).modules())


def test_autocast() -> None:
    model = settle(zoo.ResNet()).float()
    converted = batchnorm.convert(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, other = (m(image().float()) for m in (model, converted))
    assert one.dtype == other.dtype
    # Nine layers; the fused call rounds to bfloat16 once where torch rounds up to three times.
    torch.testing.assert_close(other, one, rtol=0.1, atol=0.1)


class _FusedInput(nn.Module):
    """The residual is what an earlier layer of the same forward has been fused into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.bn1(self.conv1(x)))
        second = F.relu(self.bn2(self.conv2(first)) + first)
        return F.relu(self.bn3(self.conv3(second)) + first + second)


def test_a_residual_that_was_fused_itself() -> None:
    model = settle(_FusedInput())
    converted, report = batchnorm.convert(model, report=True)
    assert [row.done for row in report.rows] == ["fused relu", "fused add + relu", "fused add"]
    check(model, converted)
