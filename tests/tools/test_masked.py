"""`masked`: a model that knows nothing of padding computes as if there were none."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.nn.batch_norm import ATTACHED
from tools import same

LENGTHS = torch.tensor([16, 9, 1, 12])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padded(length: int, fill: float = 0.0, lengths: Tensor = LENGTHS, channels: int = 6) -> Tensor:
    x = torch.full((len(lengths), channels, length), fill, dtype=torch.float64)
    for sample, valid in enumerate(lengths.tolist()):
        x[sample, :, :valid] = draw(channels, valid, seed=sample) * 2 + 1
    return x


def valid(lengths: Tensor, length: int) -> Tensor:
    return (torch.arange(length) < lengths.view(-1, 1)).unsqueeze(1)


class ConvolutionModule(nn.Module):
    """The convolution module of a Conformer (arXiv 2005.08100, figure 2), with padding set to 0 before it is read."""

    def __init__(self, channels: int = 6, kernel: int = 7) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.pointwise = nn.Conv1d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.bn = nn.BatchNorm1d(channels)
        self.activation = nn.SiLU()
        self.out = nn.Conv1d(channels, channels, 1)
        self.padding: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.transpose(1, 2)).transpose(1, 2)
        y = nn.functional.glu(self.pointwise(y), dim=1)
        if self.padding is not None:
            y = y * self.padding
        return x + self.out(self.activation(self.bn(self.depthwise(y))))


class Conformer(nn.Sequential):
    """Two of these modules; their layers are called without arguments."""

    def __init__(self) -> None:
        super().__init__(ConvolutionModule(), ConvolutionModule())

    def pad(self, lengths: Tensor | None, length: int = 0) -> None:
        for module in self:
            module.padding = None if lengths is None else valid(lengths, length).double()


def conformer() -> Conformer:
    return batchnorm.convert(same.settle(Conformer()))


def run(model: Conformer, length: int, fill: float = 0.0) -> Tensor:
    model.pad(LENGTHS, length)
    with batchnorm.masked(model, LENGTHS, length=length):
        return model(padded(length, fill))


def test_a_conformer_evaluates_each_sequence_as_if_it_were_alone() -> None:
    model = conformer().train()
    run(model, 16)
    model.eval()
    y = run(model, 16)
    model.pad(None)
    for sample, length in enumerate(LENGTHS.tolist()):
        alone = model(padded(16)[sample : sample + 1, :, :length])
        torch.testing.assert_close(y[sample : sample + 1, :, :length], alone, rtol=1e-12, atol=1e-12)


def test_a_conformer_trains_on_the_valid_values_alone() -> None:
    model, x = conformer().train(), padded(16)
    before = copy.deepcopy(model)
    seen: list[Tensor] = []
    with model[0].bn.observe(lambda layer, x, residual, activation: seen.append(x.detach())):
        run(model, 16)
    values = torch.cat([seen[0][sample, :, :length] for sample, length in enumerate(LENGTHS.tolist())], dim=1)
    torch.testing.assert_close(model[0].bn.running_mean, 0.9 * before[0].bn.running_mean + 0.1 * values.mean(1))
    torch.testing.assert_close(model[0].bn.running_var, 0.9 * before[0].bn.running_var + 0.1 * values.var(1))
    before.pad(LENGTHS, 16)
    before(x)  # without the block padding is data
    assert (before[0].bn.running_mean - model[0].bn.running_mean).abs().max() > 1e-3


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_more_padding_of_any_value_changes_no_bit(training: bool) -> None:
    model = conformer().train(training)
    longer, results = copy.deepcopy(model), []
    for one, length, fill in ((model, 16, 0.0), (longer, 48, 7.0)):
        y = run(one, length, fill)
        results.append([y[sample, :, :n] for sample, n in enumerate(LENGTHS.tolist())])
        torch.autograd.backward(results[-1], [draw(6, n, seed=n) for n in LENGTHS.tolist()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    for (name, tensor), other in zip(model.state_dict().items(), longer.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(longer.get_parameter(name).grad, parameter.grad, rtol=1e-11, atol=1e-12, msg=name)


def test_fused_paths_stay_fused() -> None:
    plain = nn.Sequential(nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6), nn.SiLU()).double()
    model, calls = batchnorm.convert(plain), []
    with (
        batchnorm.masked(model, LENGTHS, length=16),
        model[1].observe(lambda layer, x, residual, activation: calls.append(activation)),
    ):
        y = model(padded(16))
    assert calls == ["silu"]
    assert not y.masked_select(~valid(LENGTHS, 16)).any()
    layer = copy.deepcopy(model)
    torch.testing.assert_close(y, nn.functional.silu(layer[1](layer[0](padded(16)), mask=LENGTHS)))


# --- at other lengths than that of the input ---


def _layer_after(*before: nn.Module) -> nn.Module:
    return nn.Sequential(*before, batchnorm.BatchNorm1d(6)).double()


def expected(model: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    twin = copy.deepcopy(model)
    return twin[-1](twin[:-1](x), mask=lengths)


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
@pytest.mark.parametrize("length", [17, 18, 19, 24])
@pytest.mark.parametrize("as_mask", [False, True], ids=["lengths", "mask"])
def test_strided_convolutions_with_same_padding(stride: int, length: int, as_mask: bool) -> None:
    """Length by length: a convolution sees the first padded position only where its centre is behind the last one."""
    conv = nn.Conv1d(6, 6, 2 * stride - 1, stride=stride, padding=stride - 1, bias=False).double()
    model = _layer_after(conv)
    each = [conv(draw(1, 6, n)).shape[2] for n in LENGTHS.tolist()]  # what a sequence alone would have
    x = padded(length)
    mask = {"mask": valid(LENGTHS, length)} if as_mask else {"mask": LENGTHS, "length": length}
    known = expected(model, x, torch.tensor(each))
    strides = [k for k in range(1, length + 1) if math.ceil(length / k) == known.shape[2]]
    with batchnorm.masked(model, **mask):
        if length % known.shape[2] and len(strides) > 1:
            with pytest.raises(ValueError, match="several strides"):
                model(x)
        else:
            assert torch.equal(model(x), known)


def test_the_proportional_rule_would_miss_where_the_stride_does_not_divide() -> None:
    seen = math.ceil(17 / 2)
    assert math.ceil(9 * seen / 17) == math.ceil(9 / 2) == 5
    assert math.ceil(16 * seen / 17) == 9 != math.ceil(16 / 2)  # ceil(length * L' / L) counts one position too many


def test_strides_in_a_row_and_upsampling() -> None:
    down = nn.Conv1d(6, 6, 3, stride=2, padding=1)
    model = nn.Sequential(down, batchnorm.BatchNorm1d(6), down, batchnorm.BatchNorm1d(6), nn.Upsample(scale_factor=8),
                          batchnorm.BatchNorm1d(6)).double()  # fmt: skip
    seen: dict[int, Tensor] = {}
    with batchnorm.masked(model, LENGTHS, length=16):
        for index in (1, 3, 5):
            model[index].register_forward_hook(lambda m, a, y, index=index: seen.__setitem__(index, y.ne(0).any(1)))
        model(padded(16))
    for index, length, lengths in ((1, 8, [8, 5, 1, 6]), (3, 4, [4, 3, 1, 3]), (5, 32, [32, 18, 2, 24])):
        assert torch.equal(seen[index], valid(torch.tensor(lengths), length)[:, 0])


def test_a_rule_for_convolutions_without_padding() -> None:
    model = _layer_after(nn.Conv1d(6, 6, 3, dilation=2))
    with batchnorm.masked(model, LENGTHS, length=16), pytest.raises(ValueError, match=r"'1'.*no stride and no upsamp"):
        model(padded(16))

    def rule(lengths: Tensor, length: int, seen: int) -> Tensor:
        return (lengths - (length - seen)).clamp(min=0)

    with batchnorm.masked(model, LENGTHS, length=16, rule=rule):
        y = model(padded(16, 99.0))
    other = copy.deepcopy(model)
    assert torch.equal(y, other[1](other[0](padded(16, 99.0)), mask=torch.tensor([12, 5, 0, 8])))


@pytest.mark.parametrize("dim", [-1, -2])
def test_images_with_time_in_a_dimension(dim: int) -> None:
    x, time = draw(4, 3, 8, 16), [8, 16][dim]
    lengths = (LENGTHS * time) // 16
    model = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1), batchnorm.BatchNorm2d(3)).double()
    half = valid((lengths + 1) // 2, time // 2)
    mask = half.unsqueeze(2) if dim == -1 else half.unsqueeze(3)
    twin = copy.deepcopy(model)
    with batchnorm.masked(model, lengths, length=time, dim=dim):
        assert torch.equal(model(x), twin[1](twin[0](x), mask=mask))


def test_a_mask_over_space_and_samples() -> None:
    mask = draw(4, 1, 8, 16) > 0
    model = nn.Sequential(batchnorm.BatchNorm2d(3), nn.MaxPool2d(2), batchnorm.BatchNorm2d(3)).double()
    twin, x = copy.deepcopy(model), draw(4, 3, 8, 16)
    with batchnorm.masked(model, mask):
        y = model(x)
    assert torch.equal(y, twin[2](twin[1](twin[0](x, mask=mask)), mask=mask[:, :, ::2, ::2]))
    head = batchnorm.BatchNorm1d(3).double()
    with batchnorm.masked(head, torch.tensor([2, 0, 1, 3])):
        assert torch.equal(head(x[:, :, 0, 0])[1], torch.zeros(3).double())


# --- the block ---


def _state_of(model: nn.Module) -> list[dict[str, object]]:
    return [{name: v for name, v in m.__dict__.items() if name not in ATTACHED} for m in model.modules()]


def test_blocks_nest_end_with_an_exception_and_leave_copies_alone() -> None:
    model, x = _layer_after(), padded(16)
    plain, half, former = copy.deepcopy(model), torch.full((4,), 8), _state_of(model)
    outer, inner = copy.deepcopy(model), copy.deepcopy(model)
    with batchnorm.masked(model, LENGTHS):
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(x), copy.deepcopy(plain)(x))
        with batchnorm.masked(model, half, length=16):
            assert torch.equal(model(x), inner[0](x, mask=half))
        with pytest.raises(ValueError, match="expected"), batchnorm.masked(model, half, length=16):
            model(x.unsqueeze(0))
        model.load_state_dict(plain.state_dict())
        assert torch.equal(model(x), outer[0](x, mask=LENGTHS))
        assert torch.equal(model[0](x, mask=half), outer[0](x, mask=half))  # given in the call
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(x), plain(x))
    assert _state_of(model) == former


def _checkpointed(body: nn.Module, reentrant: bool, **options) -> Callable[[Tensor], Tensor]:
    return lambda x: checkpoint(body, x, use_reentrant=reentrant, **options)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    model, dy = nn.Sequential(batchnorm.BatchNorm1d(6), nn.Tanh(), batchnorm.BatchNorm1d(6)).double(), draw(4, 6, 16)
    gradients = []
    for call in (model, _checkpointed(model, reentrant)):
        x = padded(16).requires_grad_()
        with batchnorm.masked(model, LENGTHS):
            y = call(x)
            gradients.append(torch.autograd.grad(y, x, dy)[0] if not reentrant else _grad(y, x, dy))
    assert torch.equal(*gradients)


def _grad(y: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    y.backward(dy)  # reentrant checkpoints know no other way
    return x.grad


def test_a_recomputation_after_the_block_is_refused_or_given_its_mask() -> None:
    model, dy, x = _layer_after(), draw(4, 6, 16), padded(16).requires_grad_()
    with batchnorm.masked(model, LENGTHS):
        y = _checkpointed(model, False)(x)
    with pytest.raises(RuntimeError, match=r"backward\(\) inside the block, or pass the checkpoint context_fn"):
        torch.autograd.grad(y, x, dy)
    with batchnorm.masked(model, LENGTHS):
        (known,) = torch.autograd.grad(model(x), x, dy)
        y = _checkpointed(model, False, context_fn=lambda: (nullcontext(), batchnorm.masked(model, LENGTHS)))(x)
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], known)
    model(x).sum().backward()  # anything else goes on


def test_compiled() -> None:
    torch.compiler.reset()
    model = nn.Sequential(batchnorm.BatchNorm1d(6), nn.Tanh(), batchnorm.BatchNorm1d(6)).double()
    twin, x = copy.deepcopy(model), padded(16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for lengths in (LENGTHS, LENGTHS.flip(0)):
        with batchnorm.masked(model, lengths):
            y = compiled(x)
        with batchnorm.masked(twin, lengths):
            torch.testing.assert_close(y, twin(x))
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


# --- what does not fit ---


@pytest.mark.parametrize(
    ("mask", "options", "error", "match"),
    [
        (torch.ones(4, 16), {}, TypeError, "bool or integers; got torch.float32"),
        ([3, 4], {}, TypeError, "got list"),
        (torch.ones(4, dtype=torch.bool), {}, ValueError, r"must have shape \(N, L\)"),
        (torch.ones(4, 6, 16, dtype=torch.bool), {}, ValueError, r"must have shape \(N, L\)"),
        (torch.ones(4, 16, dtype=torch.bool), {"length": 16}, ValueError, "belong to integer lengths"),
        (LENGTHS, {"length": 15}, ValueError, r"from 0 to 15.*\[16, 9, 1, 12\]"),
        (-LENGTHS, {}, ValueError, "from 0 to"),
        (LENGTHS.view(4, 1), {}, ValueError, r"lengths must have shape \(N,\)"),
        (LENGTHS, {"dim": 2}, ValueError, "dim must be negative"),
    ],
)
def test_masks_that_make_no_sense(mask: object, options: dict, error: type[Exception], match: str) -> None:
    model = _layer_after()
    with pytest.raises(error, match=match), batchnorm.masked(model, mask, **options):
        pass


@pytest.mark.parametrize(
    ("mask", "options", "x", "match"),
    [
        (LENGTHS[:3], {}, padded(16), "of 3 samples and the layer sees 4"),
        (LENGTHS, {}, padded(20), "Pass length="),
        (LENGTHS, {"length": 20}, padded(16), "no stride and no upsampling leads from 20 positions to 16"),
        (LENGTHS, {"length": 16}, padded(24), "from 16 positions to 24"),
        (LENGTHS, {"dim": -2}, padded(16), "no dimension -2"),
        (torch.ones(4, 1, 2, 16, dtype=torch.bool), {}, padded(16), "another rank"),
    ],
)
def test_layers_that_the_mask_does_not_reach_are_named(mask: Tensor, options: dict, x: Tensor, match: str) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(batchnorm.BatchNorm1d(6))).double()
    before = copy.deepcopy(model.state_dict())
    with batchnorm.masked(model, mask, **options), pytest.raises(ValueError, match=f"layer '1.0', .*{match}"):
        model(x)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_models_that_cannot_be_masked() -> None:
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) of 2 would count padding.*batchnorm\.convert"):
        batchnorm.masked(nn.Sequential(batchnorm.BatchNorm1d(6), nn.BatchNorm1d(6)), LENGTHS).__enter__()
    with pytest.raises(ValueError, match="has none"):
        batchnorm.masked(nn.Linear(2, 2), LENGTHS).__enter__()
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        batchnorm.masked(None, LENGTHS).__enter__()


def test_revert_leaves_nothing_behind() -> None:
    model = _layer_after()
    with batchnorm.masked(model, LENGTHS):
        pass
    assert not set(ATTACHED) & set(batchnorm.revert(model)[0].__dict__)
