"""Folding of pairs: weights against the textbook, outputs, and the certificate that no input breaks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.reference import folding
from batchnorm.tools import certificate, linear
from batchnorm.tools.affine import affine
from batchnorm.tools.stand_ins import AddActivation, OfRank

INPUTS = 10_000


@dataclass(frozen=True)
class Pair:
    layer: Callable[[], nn.Module]
    norm: Callable[[], nn.Module]
    shape: tuple[int, ...]


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give the model weights of both signs and some zeros, and variances over five orders of magnitude; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            value = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                value = 10 ** (1.5 * value).clamp(-3, 2)
            elif tensor.dim() == 1 and name.endswith("weight"):
                value[: len(value) // 3] = 0
            tensor.copy_(value)
    return model.eval()


def _pairs() -> dict[str, Pair]:
    found = {}
    norms = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    shapes = {1: (9,), 2: (6, 7), 3: (3, 3, 3)}
    convs: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    transposed: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    for d in (1, 2, 3):
        options: dict[str, dict[str, Any]] = {
            "plain": {},
            "no bias": {"bias": False},
            "groups": {"groups": 2, "padding": 1},
            "depthwise": {"groups": 4, "padding": 1, "bias": False},
            "dilation": {"dilation": 2, "padding": 2, "stride": 2},
            "same": {"padding": "same"},
            **{mode: {"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")},
        }
        for name, kw in options.items():
            if d == 3 and name == "reflect":
                kw = {**kw, "padding": (1, 1, 1)}
            found[f"{d}-D {name}"] = Pair(
                lambda conv=convs[d], kw=kw: conv(4, 8, 3, **kw), lambda norm=norms[d]: norm(8), (4, *shapes[d])
            )
        for name, kw in {
            "transposed": {"stride": 2, "padding": 1, "output_padding": 1},
            "transposed groups": {"groups": 2, "bias": False},
            "transposed dilation": {"dilation": 2, "groups": 4},
        }.items():
            found[f"{d}-D {name}"] = Pair(
                lambda conv=transposed[d], kw=kw: conv(4, 8, 3, **kw), lambda norm=norms[d]: norm(8), (4, *shapes[d])
            )
    found["square transposed"] = Pair(lambda: nn.ConvTranspose2d(8, 8, 2, 2), lambda: nn.BatchNorm2d(8), (8, 5, 5))
    found["not affine"] = Pair(lambda: nn.Conv2d(4, 8, 3), lambda: nn.BatchNorm2d(8, affine=False), (4, 6, 7))
    found["eps"] = Pair(lambda: nn.Conv2d(4, 8, 3), lambda: nn.BatchNorm2d(8, eps=0.3), (4, 6, 7))
    found["linear"] = Pair(lambda: nn.Linear(9, 8), lambda: nn.BatchNorm1d(8), (9,))
    found["linear, no bias"] = Pair(lambda: nn.Linear(9, 8, bias=False), lambda: nn.BatchNorm1d(8), (9,))
    found["ours"] = Pair(lambda: nn.Conv2d(4, 8, 3), lambda: batchnorm.BatchNorm2d(8), (4, 6, 7))
    return found


PAIRS = _pairs()


def _hostile(shape: tuple[int, ...], largest: float, number: int, dtype: torch.dtype) -> Tensor:
    """Random values, signs of one size, and few large among small ones, all up to ``largest``."""
    generator = torch.Generator().manual_seed(1)
    third = (number // 3, *shape)
    uniform = 2 * torch.rand(third, generator=generator, dtype=torch.float64) - 1
    signs = torch.sign(torch.randn(third, generator=generator, dtype=torch.float64))
    rest = (number - 2 * third[0], *shape)
    sparse = torch.sign(torch.randn(rest, generator=generator, dtype=torch.float64))
    sparse *= torch.where(torch.rand(rest, generator=generator) < 0.1, 1.0, 1e-3)
    return (largest * torch.cat([uniform, signs, sparse])).to(dtype).clamp(-largest, largest)


@pytest.mark.parametrize("name", PAIRS)
def test_weights_are_the_textbook_s(name: str) -> None:
    pair = PAIRS[name]
    model = settle(nn.Sequential(pair.layer(), pair.norm())).double()
    before: Any = copy.deepcopy(model)
    folded = batchnorm.fold(model)
    layer, norm = before[0], before[1]
    arrays = [None if t is None else t.detach().numpy() for t in (layer.weight, layer.bias)]
    arrays += [None if t is None else t.detach().numpy() for t in (norm.running_mean, norm.running_var)]
    arrays += [None if t is None else t.detach().numpy() for t in (norm.weight, norm.bias)]
    if linear.is_transposed(layer):
        weight, bias = folding.fold_transposed(*arrays, groups=layer.groups, eps=norm.eps)
    else:
        weight, bias = folding.fold(*arrays, eps=norm.eps)
    np.testing.assert_allclose(folded[0].weight.detach().numpy(), weight, rtol=4e-16 * 8, atol=0)
    np.testing.assert_allclose(folded[0].bias.detach().numpy(), bias, rtol=1e-14, atol=1e-14)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", PAIRS)
def test_no_input_exceeds_the_bound(name: str, dtype: torch.dtype) -> None:
    pair = PAIRS[name]
    model = settle(nn.Sequential(pair.layer(), pair.norm()), seed=len(name)).to(dtype)
    folded, report = batchnorm.fold(model, report=True)
    (row,) = report
    assert row.done == "folded into 0"
    assert 0 <= row.numbers["error"] <= row.numbers["bound"]
    x = _hostile(pair.shape, row.numbers["range"], INPUTS, dtype)
    with torch.no_grad():
        one, other = model(x), folded(x)
    assert (one.double() - other.double()).abs().max() <= row.numbers["bound"]
    # The bound is one: a fold that is wrong in one channel by a thousandth breaks it.
    assert row.numbers["bound"] < 1e-3 * one.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["2-D plain", "2-D groups", "2-D transposed", "1-D no bias", "linear"])
def test_bounds_in_half_precision(name: str, dtype: torch.dtype) -> None:
    pair = PAIRS[name]
    model = settle(nn.Sequential(pair.layer(), pair.norm())).to(dtype)
    model[1].running_var.clamp_(min=0.1)
    folded, report = batchnorm.fold(model, report=True)
    x = _hostile(pair.shape, report["1"].numbers["range"], INPUTS, dtype)
    with torch.no_grad():
        one, other = model(x), folded(x)
    assert (one.double() - other.double()).abs().max() <= report["1"].numbers["bound"]


AFTER = {
    "valid": (lambda: nn.BatchNorm2d(4), lambda: nn.Conv2d(4, 8, 3), (4, 6, 7)),
    "groups": (lambda: nn.BatchNorm2d(4), lambda: nn.Conv2d(4, 8, 3, groups=2, bias=False), (4, 6, 7)),
    "reflect": (lambda: nn.BatchNorm2d(4), lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (4, 6, 7)),
    "circular": (lambda: nn.BatchNorm1d(4), lambda: nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular"), (4, 9)),
    "same, of one tap": (lambda: nn.BatchNorm3d(4), lambda: nn.Conv3d(4, 8, 1, padding="same"), (4, 4, 5, 4)),
    "linear": (lambda: nn.BatchNorm1d(9), lambda: nn.Linear(9, 8), (9,)),
    "not affine": (lambda: nn.BatchNorm1d(9, affine=False), lambda: nn.Linear(9, 8, bias=False), (9,)),
    "ours": (lambda: batchnorm.BatchNorm2d(4), lambda: nn.Conv2d(4, 8, 2, stride=2), (4, 6, 6)),
    "normalization": (lambda: nn.BatchNorm2d(4), lambda: nn.BatchNorm2d(4, affine=False), (4, 5, 5)),
    "normalization of rows": (lambda: nn.BatchNorm1d(4), lambda: batchnorm.BatchNorm1d(4), (4,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", AFTER)
def test_a_normalization_before_a_layer(name: str, dtype: torch.dtype) -> None:
    norm, layer, shape = AFTER[name]
    model = settle(nn.Sequential(norm(), layer())).to(dtype)
    folded, report = batchnorm.fold(model, report=True)
    row = report["0"]
    assert row.done == "folded into 1"
    x = _hostile(shape, row.numbers["range"], INPUTS, dtype)
    with torch.no_grad():
        one, other = model(x), folded(x)
    error = (one.double() - other.double()).abs().max()
    assert error <= row.numbers["bound"]
    assert row.numbers["bound"] < 1e-2 * one.abs().max()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(4, 8, 3, padding="same"),
        nn.ConvTranspose2d(4, 8, 3),
    ],
    ids=["zeros", "same", "transposed"],
)
def test_zero_padding_after_a_normalization_is_refused(layer: nn.Module) -> None:
    model = settle(nn.Sequential(nn.BatchNorm2d(4), layer))
    folded, report = batchnorm.fold(model, report=True)
    assert report["0"].done == "left alone"
    assert "which follows, pads with zeros after it" in report["0"].reason
    # The naive fold, constant at the border, is wrong there by far more than rounding.
    naive = copy.deepcopy(model)
    found = affine(naive[0], 4)
    rows = linear.rows(naive[1])
    with torch.no_grad():
        naive[1].bias += (rows * linear.per_input(naive[1], found.shift)).sum((1, 2))
        naive[1].weight.copy_(linear.weight_of(naive[1], rows * linear.per_input(naive[1], found.scale)))
    naive[0] = nn.Identity()
    x = torch.randn(2, 4, 6, 7)
    assert (naive(x) - model(x)).abs().max() > 0.1
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=0)
    with torch.no_grad():  # without a shift zeros stay zeros
        model[0].bias.zero_()
        model[0].running_mean.zero_()
    folded, report = batchnorm.fold(model, report=True)
    assert report["0"].done == "folded into 1"
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_wrong_fold_would_be_found() -> None:
    """The axis of a transposed convolution: what a popular detector did for three years (ultralytics#25364)."""
    model = settle(nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8)))
    x = torch.randn(4, 8, 5, 5)
    layer, found = model[0], affine(model[1], 4)
    wrong = copy.deepcopy(layer)
    with torch.no_grad():  # diag(scale) @ weight.view(out_channels, -1), as if the output channels came first
        scale = found.scale.float()
        wrong.weight.copy_((torch.diag(scale) @ layer.weight.view(8, -1)).view(layer.weight.shape))
        wrong.bias.copy_((found.bias + (layer.bias.double() - found.mean) * found.scale).float())
    bound = certificate.of_linear_then_affine(layer, found, x.abs().max().item())
    assert (wrong(x) - model(x)).abs().max() > 1000 * bound
    assert (batchnorm.fold(model)(x) - model(x)).abs().max() <= bound


# What torch's own tools get wrong.


def test_torch_s_fold_of_a_grouped_transposed_convolution_fails() -> None:
    model = settle(nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)))
    x = torch.randn(2, 4, 5, 5)
    with pytest.raises(RuntimeError):
        nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1], transpose=True)(x)
    torch.testing.assert_close(batchnorm.fold(model)(x), model(x), rtol=1e-4, atol=1e-3)


def test_torch_s_fold_of_a_dense_layer_without_affine_fails() -> None:
    model = settle(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False)))
    x = torch.randn(2, 4)
    with pytest.raises(TypeError):
        nn.utils.fusion.fuse_linear_bn_eval(model[0], model[1])
    torch.testing.assert_close(batchnorm.fold(model)(x), model(x), rtol=1e-4, atol=1e-3)


class SharedHead(nn.Module):
    """One convolution and one normalization for several levels, as detectors have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(torch.relu(self.bn(self.conv(x)))))


class SharedConvolution(SharedHead):
    """One convolution, with a normalization for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.conv(torch.relu(self.bn(self.conv(x)))))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
@pytest.mark.parametrize("build", [SharedHead, SharedConvolution])
def test_torch_s_fold_of_a_convolution_that_is_used_twice_is_wrong(build: type[nn.Module]) -> None:
    from torch.fx.experimental import optimization

    model = settle(build())
    x = torch.randn(2, 3, 5, 5)
    theirs = optimization.fuse(copy.deepcopy(model))
    assert (theirs(x) - model(x)).abs().max() > 0.1 * model(x).abs().max()
    folded, report = batchnorm.fold(model, report=True)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-3)
    if build is SharedHead:
        assert report["bn"].done == "folded into conv"
        assert type(folded.bn) is nn.Identity
    else:
        assert [row.done for row in report] == ["left alone"] * 2
        assert "conv is called elsewhere too" in report["bn"].reason


# Our own layers, and frozen ones.


@pytest.mark.parametrize("activation", sorted(batchnorm.kernels.activations.ACTIVATIONS))
def test_an_activation_of_ours_is_kept(activation: str) -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), batchnorm.BatchNorm2d(4, activation=activation)))
    folded, report = batchnorm.fold(model, report=True)
    assert report["1"].done == "folded into 0"
    assert type(folded[1]).__module__ == "torch.nn.modules.activation"
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-3)


class Residual(nn.Module):
    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = batchnorm.BatchNorm2d(3, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x), residual=x)


class ItsOwnResidual(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y, y)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_residual_of_ours_is_kept(activation: str | None) -> None:
    model = settle(Residual(activation))
    folded, report = batchnorm.fold(model, report=True)
    assert report["bn"].done == "folded into conv"
    assert repr(folded.bn) == f"AddActivation(activation={activation!r})"
    assert isinstance(folded.bn, AddActivation)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    _, report = batchnorm.fold(settle(ItsOwnResidual(activation)), report=True)
    assert "its input, conv (Conv2d), is used 2 times" in report["bn"].reason


class Buffers(nn.Module):
    """Torchvision's and detectron2's: four buffers, folded to a scale and a shift in each call."""

    def __init__(self, channels: int, eps: float | None = 1e-3) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        if eps is not None:
            self.eps = eps
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + getattr(self, "eps", 1e-5)).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class FrozenBatchNormAct2d(Buffers):
    """Timm's: the same, then dropout and an activation that belong to it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Impostor(Buffers):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3


@pytest.mark.parametrize("build", [Buffers, lambda n: Buffers(n, None), FrozenBatchNormAct2d])
def test_frozen_ones_are_recognized_by_behaviour(build: Callable[[int], nn.Module]) -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), build(4)))
    folded, report = batchnorm.fold(model, report=True)
    assert report["1"].done == "folded into 0"
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-3)


def test_what_only_looks_like_one_is_left_alone() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), Impostor(4)))
    _, report = batchnorm.fold(model, report=True)
    assert report["1"].done == "left alone"
    assert "computes something else than stored statistics say" in report["1"].reason


# Ranks: the same sizes on another axis.


def test_a_dense_layer_s_channels_on_another_axis_are_not_taken_for_its_own() -> None:
    model = settle(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)))
    rows, sequences = torch.randn(3, 4), torch.randn(2, 5, 4)  # of a sequence of 5, position is on axis 1
    folded = batchnorm.fold(model)
    assert isinstance(folded[1], OfRank)
    torch.testing.assert_close(folded(rows), model(rows), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="folded for inputs of rank 2; got rank 3"):
        folded(sequences)
    assert type(batchnorm.fold(model, rows)[1]) is nn.Identity
    kept, report = batchnorm.fold(model, sequences, report=True)
    assert "inputs have rank [3]" in report["1"].reason
    torch.testing.assert_close(kept(sequences), model(sequences), rtol=0, atol=0)


def test_through_dropout_and_identity() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(), nn.Identity(), nn.BatchNorm2d(4)))
    assert batchnorm.fold(model, report=True)[1]["3"].done == "folded into 0"
    model[1].train()
    assert "it follows 1 (Dropout2d)" in batchnorm.fold(model, report=True)[1]["3"].reason


def test_three_in_a_row() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), *(nn.BatchNorm2d(4) for _ in range(3))))
    folded, report = batchnorm.fold(model, report=True)
    assert [row.done for row in report] == ["folded into 0"] * 3
    x = torch.randn(2, 3, 6, 6)
    expected = copy.deepcopy(model).double()(x.double())
    assert (folded(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("weight", "bias"), list(itertools.product((True, False), repeat=2)))
def test_layouts_and_flags_stay(weight: bool, bias: bool) -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4))).to(
        memory_format=torch.channels_last
    )
    model[0].weight.requires_grad_(weight)
    folded = batchnorm.fold(model)
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert folded[0].weight.requires_grad == folded[0].bias.requires_grad == weight
    assert list(folded.state_dict()) == ["0.weight", "0.bias"]
