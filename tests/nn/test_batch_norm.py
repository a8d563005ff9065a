"""The layers: torch's in code and in checkpoints, right where torch's is not."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest
import torch
from torch import nn

import batchnorm
import regimes
import tolerances as tol
from batchnorm.nn.batch_norm import EXTRAS
from batchnorm.reference import statistics as reference

LAYERS = {
    1: (batchnorm.BatchNorm1d, nn.BatchNorm1d),
    2: (batchnorm.BatchNorm2d, nn.BatchNorm2d),
    3: (batchnorm.BatchNorm3d, nn.BatchNorm3d),
}
SHAPES = {1: (6, 3, 5), 2: (6, 3, 5, 2), 3: (3, 3, 2, 5, 2)}


@pytest.fixture(params=[1, 2, 3], ids=["1d", "2d", "3d"])
def rank(request: pytest.FixtureRequest) -> int:
    return request.param


def _input(rank: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPES[rank], generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) + 0.5


# A drop-in for torch's.


def test_same_constructor(rank: int) -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in LAYERS[rank])
    assert list(ours) == [*theirs, *(["bias"] if "bias" not in theirs else []), *EXTRAS]
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default
        assert ours[name].kind == parameter.kind
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in EXTRAS)


OPTIONS = [
    {},
    {"eps": 1e-3, "momentum": 0.3},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
    {"bias": False},
    {"device": "meta"},
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_state_and_repr(rank: int, options: dict[str, object]) -> None:
    ours, theirs = (cls(3, **options) for cls in LAYERS[rank])
    assert isinstance(ours, LAYERS[rank][1])
    assert repr(ours) == repr(theirs)
    states = ours.state_dict(), theirs.state_dict()
    assert list(states[0]) == list(states[1])
    for mine, other in zip(*(s.values() for s in states), strict=True):
        assert (mine.dtype, mine.device, mine.shape) == (other.dtype, other.device, other.shape)
        if not mine.is_meta:
            assert torch.equal(mine, other)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


def test_repr_names_the_activation() -> None:
    assert repr(batchnorm.BatchNorm2d(3, activation="relu")).endswith("activation=relu)")


def test_checkpoints_load_both_ways(rank: int) -> None:
    ours, theirs = (cls(3) for cls in LAYERS[rank])
    for source, target in ((ours, theirs), (theirs, ours)):
        nn.init.normal_(source.weight)
        source(_input(rank, seed=1))
        target.load_state_dict(source.state_dict(), strict=True)
        source.eval()
        target.eval()
        torch.testing.assert_close(source(_input(rank)), target(_input(rank)))
        source.train()
        target.train()


def test_checkpoint_from_before_num_batches_tracked_loads() -> None:
    """pytorch/pytorch#12528: version 1 checkpoints have no such key."""
    state = nn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    assert batchnorm.BatchNorm2d(3).load_state_dict(state, strict=True).missing_keys == []


def test_survives_copy_and_pickle(rank: int) -> None:
    layer = LAYERS[rank][0](3, activation="silu")
    layer(_input(rank))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(other) == repr(layer)
        assert torch.equal(other.eval()(_input(rank)), copy.deepcopy(layer).eval()(_input(rank)))


@pytest.mark.parametrize("options", [o for o in OPTIONS if "device" not in o], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_same_values_gradients_and_buffers_as_torch(rank: int, options: dict[str, object], training: bool) -> None:
    """In the regime where torch is right: float64, moderate values."""
    ours, theirs = (cls(3, **options).train() for cls in LAYERS[rank])
    dtype = options.get("dtype", torch.float64)
    tolerance = 2 * tol.storage_eps(dtype) if dtype == torch.bfloat16 else 1e-11
    for layer in (ours, theirs):
        layer.to(dtype)
        layer(_input(rank, 1, dtype))
        layer.train(training)
    results = []
    for layer in (ours, theirs):
        x = _input(rank, 2, dtype).requires_grad_()
        y = layer(x)
        grads = torch.autograd.grad(y, [x, *layer.parameters()], _input(rank, 3, dtype))
        results.append([y, *grads, *layer.state_dict().values()])
    for mine, other in zip(*results, strict=True):
        scale = 1 + other.double().abs().max().item()
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * scale * 4)


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (lambda cls: cls(3), torch.randn(2, 3)),
        (lambda cls: cls(3), torch.randn(3, 4, 4)),
        (lambda cls: cls(3), torch.randn(2, 4, 5, 5)),
        (lambda cls: cls(3).eval(), torch.randn(2, 4, 5, 5)),
        (lambda cls: cls(3, track_running_stats=False), torch.randn(2, 4, 5, 5)),
        (lambda cls: cls(3), torch.ones(2, 3, 5, 5, dtype=torch.int64)),
        (lambda cls: cls(3).eval(), torch.ones(2, 3, 5, 5, dtype=torch.uint8)),
        (lambda cls: cls(3), torch.ones(2, 3, 5, 5, dtype=torch.bool)),
        (lambda cls: cls(3), torch.ones(2, 3, 5, 5, dtype=torch.complex64)),
        (lambda cls: cls(3), torch.randn(2, 3, 5, 5).double()),
        (lambda cls: cls(3).double(), torch.randn(2, 3, 5, 5)),
        (lambda cls: cls(3).bfloat16(), torch.randn(2, 3, 5, 5)),
        (lambda cls: cls(3).bfloat16(), torch.randn(2, 3, 5, 5).half()),
        (lambda cls: cls(3), torch.randn(1, 3, 1, 1)),
        (lambda cls: cls(3), torch.randn(2, 3, 5, 5, device="meta")),
        (lambda cls: cls(3, eps=0.0), torch.randn(2, 3, 5, 5)),
        (lambda cls: cls(3, eps=-1.0).eval(), torch.randn(2, 3, 5, 5)),
    ],
)
def test_same_misuse_same_error_better_message(build: object, x: torch.Tensor) -> None:
    errors = []
    for cls in (batchnorm.BatchNorm2d, nn.BatchNorm2d):
        with pytest.raises(Exception, match=r".") as raised:
            build(cls)(x)
        errors.append(raised.value)
    ours, theirs = errors
    assert isinstance(ours, type(theirs)), f"{type(ours).__mro__} for torch's {type(theirs)}"
    assert isinstance(ours, ValueError | TypeError)
    assert len(str(ours)) > len(str(theirs))


def test_wrong_rank_says_which_layer_takes_it() -> None:
    with pytest.raises(
        ValueError, match=re.escape("expected 4D input (got 2D input): BatchNorm2d takes (N, C, H, W)")
    ) as e:
        batchnorm.BatchNorm2d(3)(torch.randn(5, 3))
    assert "BatchNorm1d takes this rank" in str(e.value)


def test_unknown_activation_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"one of .*'relu'.*got 'swish'"):
        batchnorm.BatchNorm1d(3, activation="swish")


def test_wrong_input_type() -> None:
    with pytest.raises(TypeError, match=r"takes a torch.Tensor; got list"):
        batchnorm.BatchNorm1d(3)([[1.0, 2.0, 3.0]])


# Running statistics.


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_running_statistics_after_each_batch(rank: int, momentum: float | None) -> None:
    """Pinned at n = 0, 1, 2 and many against the reference."""
    layer = LAYERS[rank][0](3, momentum=momentum)
    mean, var = [0.0] * 3, [1.0] * 3
    for n in range(8):
        assert layer.num_batches_tracked.item() == n
        torch.testing.assert_close(layer.running_mean, torch.tensor(mean, dtype=torch.float32), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(layer.running_var, torch.tensor(var, dtype=torch.float32), rtol=1e-6, atol=1e-6)
        x = _input(rank, seed=n)
        layer(x)
        batch_mean, batch_var, count = reference.batch_statistics(x.numpy())
        factor = reference.averaging_factor(momentum, n + 1)
        mean, var = (a.tolist() for a in reference.update_running(mean, var, batch_mean, batch_var, count, factor))


def test_evaluation_stores_nothing_and_needs_no_batch(rank: int) -> None:
    layer = LAYERS[rank][0](3)
    layer(_input(rank))
    layer.eval()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    whole = layer(_input(rank, 1))
    torch.testing.assert_close(torch.cat([layer(row) for row in _input(rank, 1).split(1)]), whole)
    assert all(torch.equal(v, layer.state_dict()[k]) for k, v in before.items())


def test_without_tracking_both_modes_use_the_batch(rank: int) -> None:
    layer = LAYERS[rank][0](3, track_running_stats=False)
    assert torch.equal(layer(_input(rank)), layer.eval()(_input(rank)))


def test_a_rejected_batch_is_not_counted() -> None:
    layer = batchnorm.BatchNorm1d(3)
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(torch.randn(1, 3))
    assert layer.num_batches_tracked == 0


def test_an_empty_batch_does_not_weigh_in_a_cumulative_average() -> None:
    """Counted as in torch, it would pull the average towards the initial 0 and 1."""
    layer = batchnorm.BatchNorm1d(3, momentum=None)
    layer(torch.empty(0, 3))
    x = torch.randn(8, 3)
    layer(x)
    assert layer.num_batches_tracked == 1
    torch.testing.assert_close(layer.running_mean, x.mean(0))


def test_batch_of_two_differs_by_root_two_between_modes() -> None:
    """The surprise of source 001: the batch is divided by the biased variance, the buffer holds the unbiased one."""
    layer = batchnorm.BatchNorm1d(1, momentum=1.0)
    x = torch.tensor([[39928.2773], [79855.9531]])
    y = layer(x)
    torch.testing.assert_close(y / layer.eval()(x), torch.full((2, 1), 2**0.5), rtol=1e-6, atol=0)


# Residual, activation, precision.


@pytest.mark.parametrize("activation", [a for a in regimes.ACTIVATIONS if a])
def test_activation_and_residual_are_those_of_separate_layers(rank: int, activation: str) -> None:
    fused = LAYERS[rank][0](3, activation=activation).double()
    plain = LAYERS[rank][1](3).double()
    x, residual = _input(rank, 1, torch.float64), _input(rank, 2, torch.float64)
    function = getattr(nn.functional, activation)
    torch.testing.assert_close(fused(x, residual), function(plain(x) + residual), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(fused(x), function(plain(x)), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast_does_what_it_does_for_torch(dtype: torch.dtype, training: bool) -> None:
    """A convolution under autocast gives half precision, the layer keeps it, and its parameters stay float32."""
    models = [nn.Sequential(nn.Conv2d(3, 3, 3), cls(3)).train(training) for cls in LAYERS[2]]
    models[1].load_state_dict(models[0].state_dict())
    results = []
    for model in models:
        x = _input(2).repeat(1, 1, 2, 3).requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            y = model(x)
            inside = model[1](x)
        y.backward(torch.ones_like(y) * torch.arange(y.numel()).view_as(y) / y.numel())
        results.append((y, inside, x.grad, model[1].weight.grad, model[1].bias.grad, model[1].running_var))
    for mine, other in zip(*results, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(
            mine.float(), other.float(), rtol=0.05, atol=0.1 * other.float().abs().max().item() + 1e-6
        )


def test_the_input_may_be_named_as_in_torch() -> None:
    layer = batchnorm.BatchNorm1d(3).eval()
    assert torch.equal(layer(input=_input(1)), layer(_input(1)))


def test_inference_mode() -> None:
    layer = batchnorm.BatchNorm1d(3, activation="relu").eval()
    with torch.inference_mode():
        assert torch.equal(layer(_input(1)), layer(_input(1)).clamp(min=0))
