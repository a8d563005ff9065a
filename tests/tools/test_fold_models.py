"""Whole models: what stays and why, the way back, export, and generated networks."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune

import batchnorm
from batchnorm.tools.graph import trace
from tools import zoo
from tools.test_fold import settle


def image(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def mild(model: nn.Module) -> nn.Module:
    """Settle, with variances near 1, so that the errors of many layers do not grow on the way."""
    settle(model)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.clamp_(0.5, 2)
            elif tensor.dim() > 1:
                tensor.div_(tensor[0].numel() ** 0.5)
    return model


def same(model: nn.Module, folded: nn.Module, *args: Any) -> None:
    """Raise unless outputs agree; in float64, where folding is exact up to rounding."""
    args = args or (image(),)
    with torch.no_grad():
        one, other = model(*args), folded(*args)
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * max(1.0, one.abs().max().item()))


class Autoencoder(nn.Module):
    """A detector's parts: strides, transposed convolutions with groups, skip connections, a shared head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.down = zoo.ConvNorm(8, 16, nn.Hardswish(), groups=4)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2, groups=2, bias=False)
        self.up_norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.final = nn.Sequential(nn.Dropout2d(), nn.Conv2d(8, 4, 1), nn.Dropout2d(), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        up = self.up_norm(self.up(F.max_pool2d(self.down(stem), 2)))
        return self.final(self.head(up)) + self.final(self.head(stem))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (zoo.ResNet, 9),
    "detector": (Autoencoder, 5),
    "densenet": (zoo.DenseNet, 2),
    "converted": (lambda: batchnorm.convert(zoo.ResNet()), 9),
    "frozen": (lambda: batchnorm.freeze(zoo.ResNet()), 9),
    "mobilenet": (lambda: zoo.InvertedResidual(nn.Hardswish()), 3),
}


@pytest.mark.parametrize("examples", [False, True], ids=["alone", "with inputs"])
@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same(name: str, examples: bool) -> None:
    build, number = MODELS[name]
    model = mild(build())
    folded, report = batchnorm.fold(model, image() if examples else None, report=True)
    assert sum(row.done.startswith("folded into") for row in report) == number
    assert all(row.reason for row in report if row.done == "left alone")
    assert all(row.numbers["error"] <= row.numbers["bound"] for row in report if row.numbers)
    same(model, folded)


def test_a_part_whose_caller_cannot_be_traced_needs_example_inputs() -> None:
    model = mild(zoo.Untraceable())
    _, report = batchnorm.fold(model, report=True)
    assert {row.done for row in report} == {"left alone"}
    assert all("pass example_inputs" in row.reason for row in report)
    folded, report = batchnorm.fold(model, image(), report=True)
    assert all(row.done.startswith("folded into") for row in report)
    same(model, folded)


class Intruder(nn.Module):
    """Calls the inside of a block, where no trace sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = zoo.ConvNorm(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y + self.block.conv(x) if bool(x.sum() < 1e9) else y


class Thief(Intruder):
    """Takes the weights of a block."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y + F.conv2d(x, self.block.conv.weight, padding=1) if bool(x.sum() < 1e9) else y


def test_a_caller_that_looks_inside_is_found_out() -> None:
    model = mild(Intruder())
    _, report = batchnorm.fold(model, image(), report=True)
    assert "the example inputs show other calls of block.conv" in report["block.bn"].reason
    model = mild(Thief())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="folding this model would change its output"):
        batchnorm.fold(model, image(), inplace=True)
    assert type(model.block.bn) is nn.BatchNorm2d
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Between(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x).mul(2))


class Reads(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.bn.eps


class ReadsWeight(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.conv.weight.mean()


class Listed(Branch):
    """Calls its layers from a list, in which a replacement would not be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.order = [self.conv, self.bn]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return x


class AsksDtype(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.to(self.conv.weight.dtype)))


def _with(change: Callable[[Any], object], build: Callable[[], nn.Module] = lambda: zoo.ConvNorm(3, 3)) -> nn.Module:
    model = settle(build())
    change(model)
    return model


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "several consumers": (Branch, "conv (Conv2d), is used 2 times"),
    "something between": (Between, "it follows .mul()"),
    "read": (Reads, "a forward reads its eps"),
    "weight read": (ReadsWeight, "a forward reads the weight of conv"),
    "in a list": (Listed, "a forward takes it from order, where it is not registered"),
    "hooks": (lambda: _with(lambda m: m.bn.register_forward_hook(lambda *_: None)), "it has hooks"),
    "hooks of the layer": (lambda: _with(lambda m: m.conv.register_forward_hook(lambda *_: None)), "has hooks"),
    "training": (lambda: _with(lambda m: m.bn.train()), "it is in training mode"),
    "no statistics": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
                      "it keeps no running statistics"),
    "pruned": (lambda: _with(lambda m: prune.l1_unstructured(m.conv, "weight", 2)), "has hooks"),
    "weight norm": (lambda: _with(lambda m: nn.utils.parametrizations.weight_norm(m.conv)), "by a parametrization"),
    "own forward": (lambda: nn.Sequential(OwnConv(3, 3, 1), nn.BatchNorm2d(3)), "OwnConv has a forward of its own"),
    "replaced": (lambda: _with(lambda m: setattr(m.bn, "forward", lambda x: x)), "a forward of this object"),
    "instance": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3)), "it keeps no running statistics"),
    "lazy": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.LazyBatchNorm2d()), "does not know its number of features"),
    "infinite": (lambda: _with(lambda m: m.bn.weight.data.fill_(float("nan"))), "not finite"),
    "overflow": (lambda: _with(lambda m: m.half().bn.weight.data.fill_(6e4)), "would overflow"),
    "keys": (lambda: _keyed(), "depend on the key"),
    "unused": (lambda: _with(lambda m: setattr(m, "spare", nn.BatchNorm2d(3).eval())), "no forward calls it"),
}  # fmt: skip


def _keyed() -> nn.Module:
    layer = batchnorm.BatchNorm2d(3, statistics=batchnorm.Keyed(("a", "b")))
    return nn.Sequential(nn.Conv2d(3, 3, 1), layer)


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_and_why(name: str) -> None:
    build, reason = REFUSED[name]
    model = build().eval() if name not in ("training",) else build()
    folded, report = batchnorm.fold(model, report=True)
    row = report["spare"] if name == "unused" else next(iter(report))
    assert row.done == "left alone"
    assert reason in row.reason
    if name != "unused":
        assert list(folded.state_dict()) == list(model.state_dict())
        with pytest.warns(UserWarning, match="fold could not fold any of 1 normalizations"):
            batchnorm.fold(model)


def test_asking_for_a_dtype_is_no_obstacle() -> None:
    model = mild(AsksDtype())
    folded, report = batchnorm.fold(model, report=True)
    assert report["bn"].done == "folded into conv"
    same(model, folded)


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"fold takes a torch.nn.Module; got dict"):
        batchnorm.fold({})  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"fold takes a model in eval mode.*Call model.eval\(\) first"):
        batchnorm.fold(zoo.ResNet())
    with pytest.raises(ValueError, match="this Linear has none"):
        batchnorm.fold(nn.Linear(2, 2).eval())
    model = mild(zoo.ResNet())
    with pytest.raises(RuntimeError, match="channels"):
        batchnorm.fold(model, torch.zeros(1, 5, 8, 8), inplace=True)
    assert type(model.bn1) is nn.BatchNorm2d


@pytest.mark.parametrize("build", [zoo.ResNet, Autoencoder, lambda: batchnorm.convert(zoo.ResNet())])
def test_undo_restores_every_bit_and_object(build: Callable[[], nn.Module]) -> None:
    model = mild(build())
    objects = {name: id(value) for name, value in [*model.named_modules(), *model.named_parameters()]}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(image())
    same_object, handle = batchnorm.fold(model, inplace=True, undo=True)
    assert same_object is model
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules() if m is not None)
    handle.restore()
    assert {name: id(value) for name, value in [*model.named_modules(), *model.named_parameters()]} == objects
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(image()), before, rtol=0, atol=0)
    handle.restore()  # a second time: nothing is left to do


def test_tied_weights_and_shared_blocks() -> None:
    model = mild(nn.Sequential(zoo.ConvNorm(3, 3), zoo.ConvNorm(3, 3)))
    model[1].conv.weight = model[0].conv.weight
    folded, report = batchnorm.fold(model, report=True)
    assert [row.done for row in report] == ["folded into 0.conv", "folded into 1.conv"]
    same(model, folded)
    block = zoo.ConvNorm(3, 3)
    model = mild(nn.Sequential(block, nn.ReLU(), block))
    folded, report = batchnorm.fold(model, report=True)
    assert [(row.name, row.aliases, row.done) for row in report] == [("0.bn", ("2.bn",), "folded into 0.conv")]
    assert folded[0] is folded[2]
    same(model, folded)


# Where folded models go.


@pytest.mark.parametrize("name", ["resnet", "detector"])
def test_export_and_compile(name: str) -> None:
    model = mild(MODELS[name][0]())
    folded = batchnorm.fold(model)
    program = torch.export.export(folded, (image(),))
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    same(model, torch.export.load(file).module())
    torch.compiler.reset()
    same(model, torch.compile(folded, fullgraph=True, backend="aot_eager"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", ["resnet", "detector", "residual"])
def test_onnx(name: str, dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    from tools.test_fold import Residual

    model = mild(Residual("silu") if name == "residual" else MODELS[name][0]())
    folded = batchnorm.fold(model)
    path = tmp_path / "model.onnx"
    torch.onnx.export(folded, (image(),), str(path), dynamo=dynamo)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (result,) = session.run(None, {given.name: image().numpy()})
    expected = model(image()).detach().numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4 * max(1.0, np.abs(expected).max()))


# Many networks.


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Chains and branches of whatever folds, and of what does not."""
    channels = draw(st.sampled_from([2, 4, 6]))
    modules: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["conv", "transposed", "norm", "relu", "dropout", "residual", "shared"]))
        groups = draw(st.sampled_from([1, 2]))
        if kind == "conv":
            padding: Any = draw(st.sampled_from([0, 1, "same"]))
            mode = draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"]))
            modules.append(
                nn.Conv2d(
                    channels, channels, 3, padding=padding, padding_mode=mode, groups=groups, bias=draw(st.booleans())
                )
            )
        elif kind == "transposed":
            modules.append(nn.ConvTranspose2d(channels, channels, 3, groups=groups, bias=draw(st.booleans())))
        elif kind == "norm":
            theirs = draw(st.booleans())
            modules.append((nn.BatchNorm2d if theirs else batchnorm.BatchNorm2d)(channels, affine=draw(st.booleans())))
        elif kind == "residual":
            modules.append(_Add(channels))
        elif kind == "shared" and modules:
            modules.append(draw(st.sampled_from(modules)))
        else:
            modules.append(nn.ReLU() if kind == "relu" else nn.Dropout())
    modules.append(nn.BatchNorm2d(channels))
    return nn.Sequential(*modules), torch.randn(1, channels, 17, 17)


class _Add(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = batchnorm.BatchNorm2d(channels, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x), x)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(networks(), st.integers(0, 3))
def test_generated_networks(network: tuple[nn.Module, Tensor], seed: int) -> None:
    model, x = network
    settle(model, seed).double()
    x = x.double()
    folded, report, handle = batchnorm.fold(model, report=True, undo=True)
    with torch.no_grad():
        one, other = model(x), folded(x)
    assert (one - other).abs().max() <= 1e-9 * max(1.0, one.abs().max().item())
    for row in report:
        assert row.reason if row.done == "left alone" else row.numbers["error"] <= row.numbers["bound"]
    handle.restore()
    state = model.state_dict()
    assert list(folded.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in folded.state_dict().items())


@pytest.mark.parametrize("tool", [batchnorm.convert, batchnorm.fold])
def test_work_grows_with_the_number_of_layers(tool: Callable[[nn.Module], nn.Module], monkeypatch: Any) -> None:
    """Count the nodes that traces record, and the modules that they look up; no clock."""

    def work(blocks: int) -> int:
        counted = 0
        create, lookup = trace._Tracer.create_node, nn.Module.get_submodule

        def count(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal counted
                counted += 1
                return original(*args, **kwargs)

            return call

        model = nn.Sequential(*(zoo.ConvNorm(2, 2, nn.ReLU()) for _ in range(blocks))).eval()
        with monkeypatch.context() as patch:
            patch.setattr(trace._Tracer, "create_node", count(create))
            patch.setattr(nn.Module, "get_submodule", count(lookup))
            tool(model)
        return counted

    small, large = work(50), work(200)
    assert large <= 4.2 * small


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_copies_of_lazy_and_pruned_models() -> None:
    pruned: Any = zoo.ConvNorm(3, 3)
    prune.l1_unstructured(pruned.conv, "weight", 2)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(pruned)
    converted = batchnorm.convert(pruned)
    torch.testing.assert_close(converted.eval()(image()), pruned.eval()(image()))
    assert converted.conv.weight is not pruned.conv.weight
    with torch.no_grad():
        converted.conv.weight_orig.zero_()
    assert pruned(image()).abs().max() > 0
    lazy = batchnorm.convert(nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d(), nn.BatchNorm2d(4)))
    assert lazy(image()).shape == (2, 4, 8, 8)
