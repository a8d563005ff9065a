"""The exchange of classes: everything about a layer stays but what computes it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import batchnorm
from batchnorm.tools import fuse
from tools import zoo
from tools.same import check, image, settle

TORCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OURS = (batchnorm.BatchNorm1d, batchnorm.BatchNorm2d, batchnorm.BatchNorm3d)


class OwnForward(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class FrozenBatchNorm2d(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(("theirs", "ours"), [*zip(TORCH, OURS, strict=True)])
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"momentum": 0.3, "eps": 1e-2}],
    ids=str,
)
def test_layers_of_every_kind_and_back(theirs: type, ours: type, options: dict[str, Any]) -> None:
    shape = {nn.BatchNorm1d: (5, 3), nn.BatchNorm2d: (5, 3, 4, 4), nn.BatchNorm3d: (5, 3, 2, 2, 2)}[theirs]

    def make(seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1

    for training in (True, False):
        model = settle(theirs(3, **options)).train(training)
        converted = batchnorm.convert(model)
        assert type(converted) is ours
        check(model, converted, make)
        reverted = batchnorm.revert(converted)
        assert type(reverted) is theirs
        assert vars(reverted).keys() == vars(model).keys()
        check(model, reverted, make)


def test_a_new_model_leaves_the_old_one_alone() -> None:
    model = settle(zoo.ResNet())
    before = copy.deepcopy(model.state_dict())
    converted = batchnorm.convert(model)
    converted(image())
    assert {type(m) for m in model.modules()} >= {nn.BatchNorm2d, zoo.BasicBlock}
    assert not any(isinstance(m, OURS) for m in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_in_place_an_optimizer_goes_on() -> None:
    model, other = settle(zoo.ResNet()), settle(zoo.ResNet())
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, other)]
    for step in range(4):
        if step == 2:
            tensors = model.state_dict(keep_vars=True)
            modules = list(model.modules())
            assert batchnorm.convert(model, inplace=True) is model
            after = model.state_dict(keep_vars=True)
            assert all(a is b for a, b in zip(tensors.values(), after.values(), strict=True))
            assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
        for m, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            m(image(seed=step)).square().mean().backward()
            optimizer.step()
    for name, value in other.state_dict().items():
        # Adam divides by the root of small squares: the differences of 1e-13 or so of two orders of summation grow.
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-7, atol=1e-7)


LEFT_ALONE = {
    "its own forward": (lambda: OwnForward(3), "OwnForward is not exactly torch.nn's class"),
    "synchronized": (lambda: nn.SyncBatchNorm(3), "SyncBatchNorm shares its statistics"),
    "lazy": (nn.LazyBatchNorm2d, "LazyBatchNorm2d does not know its number of features yet"),
    "instance": (lambda: nn.InstanceNorm2d(3), "InstanceNorm2d is not batch normalization"),
    "quantized": (lambda: torch.ao.nn.quantized.BatchNorm2d(3), "BatchNorm2d is not exactly torch.nn's class"),
    "by name": (FrozenBatchNorm2d, "FrozenBatchNorm2d is not exactly"),
    "replaced forward": (lambda: _replaced(nn.BatchNorm2d(3)), "its forward was replaced"),
    "attribute": (lambda: _attribute(nn.BatchNorm2d(3)), "an attribute 'activation' of its own"),
}


def _replaced(layer: nn.Module) -> nn.Module:
    layer.forward = torch.relu
    return layer


def _attribute(layer: nn.Module) -> nn.Module:
    layer.activation = nn.ReLU()
    return layer


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_others_are_left_alone_and_say_why(name: str) -> None:
    build, reason = LEFT_ALONE[name]
    model = nn.Sequential(nn.Conv2d(3, 3, 1), build(), nn.ReLU())
    former = type(model[1])
    converted, report = batchnorm.convert(model, inplace=True, report=True)  # torch cannot copy a lazy layer
    (row,) = report
    assert (row.name, row.done) == ("1", "left alone")
    assert row.reason.startswith(reason) or reason in row.reason
    assert type(converted[1]) is former


def test_a_scripted_model_is_left_alone() -> None:
    with pytest.warns(DeprecationWarning, match="jit.script"):
        model = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    _, report = batchnorm.convert(model, inplace=True, report=True)
    assert report["0"].reason == "BatchNorm2d is compiled by TorchScript"


def test_hooks_attributes_and_flags_stay() -> None:
    model = settle(nn.Sequential(nn.BatchNorm2d(3)))
    layer = model[0]
    calls: list[str] = []
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: calls.append("state_dict"))
    layer.note = "mine"
    layer.bias.requires_grad_(False)
    converted = batchnorm.convert(model.eval())
    converted(image().requires_grad_()).sum().backward()
    converted.state_dict()
    assert calls == ["before", "after", "backward", "state_dict"]
    assert (converted[0].note, converted[0].training, converted[0].bias.requires_grad) == ("mine", False, False)
    assert type(converted[0]) is batchnorm.BatchNorm2d


def test_parametrized_layers() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.softplus(x)

    model = settle(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    parametrize.register_parametrization(model[0], "weight", Positive())
    converted, report = batchnorm.convert(model, report=True)
    assert isinstance(converted[0], batchnorm.BatchNorm2d)
    assert parametrize.is_parametrized(converted[0], "weight")
    assert report["0"].done == "fused relu"
    check(model, converted)
    check(model, batchnorm.revert(converted))
    parametrize.remove_parametrizations(converted[0], "weight")
    assert type(converted[0]) is batchnorm.BatchNorm2d
    conv = parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    model = settle(nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU()))
    check(model, batchnorm.convert(model))


def test_shared_layers_stay_shared() -> None:
    model = settle(zoo.SharedLayer())
    converted, report = batchnorm.convert(model, report=True)
    assert converted.bn is converted.again
    assert [row.name for row in report] == ["bn"]
    assert (report["bn"].aliases, report["bn"].reason) == (("again",), "")
    assert "also again" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtype_and_memory_format(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    model = settle(zoo.ResNet()).to(dtype=dtype, memory_format=memory_format)
    converted = batchnorm.convert(model)
    for one, other in zip(model.state_dict().values(), converted.state_dict().values(), strict=True):
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
    x = image().to(dtype).contiguous(memory_format=memory_format)
    result, expected = converted.eval()(x), model.eval()(x)
    assert (result.dtype, result.stride()) == (expected.dtype, expected.stride())
    # Eleven convolutions and layers in a row, each rounded on its own.
    error = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(result, expected, rtol=error, atol=error * expected.abs().max().item())


def test_our_own_layers_fuse_too_and_keep_their_activation() -> None:
    model = nn.Sequential(batchnorm.BatchNorm2d(3), nn.ReLU(), batchnorm.BatchNorm2d(3, activation="relu"), nn.Tanh())
    model = settle(model)
    converted, report = batchnorm.convert(model, report=True)
    assert [(row.done, row.reason) for row in report] == [
        ("fused relu", ""),
        ("swapped", "it has an activation already"),
    ]
    check(model, converted)
    reverted, report = batchnorm.revert(converted, report=True)
    assert (report["0"].done, report["2"].done) == ("swapped", "left alone")
    assert "torch's layer has no activation" in report["2"].reason
    check(model, reverted)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m])
def test_a_subclass_without_a_forward_of_its_own(again: Any) -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), zoo.WithDefaults(4), nn.ReLU()))
    converted, report = batchnorm.convert(model, report=True)
    assert report["1"].done == "fused relu"
    converted = again(converted)
    layer: Any = converted[1]
    assert isinstance(layer, zoo.WithDefaults)
    assert isinstance(layer, batchnorm.BatchNorm2d)
    assert (type(layer).__name__, layer.channels(), layer.tag) == ("WithDefaults", 4, "mine")
    check(model, converted)
    reverted = batchnorm.revert(converted)
    assert type(reverted[1]) is zoo.WithDefaults
    check(model, reverted)


def test_an_exception_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plain = batchnorm.convert(settle(zoo.ResNet())), settle(zoo.ResNet())
    for model in (fused, plain):
        before = [(type(m), dict(vars(m))) for m in model.modules()]
        with monkeypatch.context() as patch:
            patch.setattr(fuse, "summary", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                batchnorm.convert(model, inplace=True)
        assert [(type(m), dict(vars(m))) for m in model.modules()] == before


@pytest.mark.parametrize("tool", [batchnorm.convert, batchnorm.revert])
def test_what_is_not_a_module(tool: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module; got dict. Pass the model itself"):
        tool({})


def test_a_model_without_batch_normalization() -> None:
    model, report = batchnorm.convert(nn.Linear(2, 2), report=True)
    assert len(report) == 0
    assert str(report) == "name  done  reason"
    assert type(model) is nn.Linear


def test_the_report_is_a_table() -> None:
    _, report = batchnorm.convert(settle(zoo.ResNet()), report=True)
    lines = str(report).splitlines()
    assert lines[0] == "name                   done              reason"
    assert lines[6] == "layer1.1.downsample.1  swapped           it is the residual of bn2"
    with pytest.raises(KeyError, match="no batch normalization named 'head'"):
        report["head"]
    assert pickle.loads(pickle.dumps(report)) == report
