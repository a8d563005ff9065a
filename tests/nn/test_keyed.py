"""Layers with statistics per key, against the reference; their state, and what is done to them."""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import batchnorm
import oracle

KEYS = ("source", "target", "unseen")
OF_SAMPLE = ["target", "source", "target", "target", "source", "source", "target", "source"]
GROUPS = torch.tensor([KEYS.index(name) for name in OF_SAMPLE])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(
    affine: str = "shared", cls: type = batchnorm.BatchNorm2d, keys: tuple[str, ...] = KEYS, **options
) -> nn.Module:
    """A layer in which every tensor has values of its own."""
    policy = batchnorm.Keyed(keys, affine, options.pop("each", batchnorm.Batch()))
    layer = cls(3, dtype=torch.float64, statistics=policy, **options)
    with torch.no_grad():
        for seed, (name, tensor) in enumerate(layer.state_dict().items()):
            if tensor.is_floating_point():
                tensor.copy_(draw(3, seed=seed).abs() + 0.5 if "var" in name else draw(3, seed=seed))
    return layer


def of(layer: nn.Module, own: str, key: str) -> Tensor:
    return getattr(layer, own if key == layer.statistics.keys[0] else f"{own}_{key}")


def stacked(layer: nn.Module, own: str) -> Tensor:
    return torch.stack([of(layer, own, key).detach() for key in KEYS])


@pytest.mark.parametrize("affine", ["shared", "per key"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_a_key_for_each_sample_is_the_reference(affine: str, training: bool, masked: bool) -> None:
    layer = make(affine, activation="silu").train(training)
    x, dy, residual = draw(8, 3, 4, 5, seed=10) + 3, draw(8, 3, 4, 5, seed=11), draw(8, 3, 4, 5, seed=12)
    x[GROUPS == 1] *= 5
    mask = draw(8, 1, 4, 5, seed=13) > -0.5 if masked else None
    per_key = affine == "per key"
    weight, bias = (stacked(layer, own)[:2] if per_key else getattr(layer, own).detach() for own in ("weight", "bias"))
    running = stacked(layer, "running_mean")[:2], stacked(layer, "running_var")[:2]
    answers = oracle.ask(
        x, dy, weight=weight, bias=bias, residual=residual, activation="silu", groups=GROUPS, running=running,
        training=training, mask=mask,
    )  # fmt: skip
    before = copy.deepcopy(layer.state_dict())
    leaves = [x.requires_grad_(), residual.requires_grad_()]
    with batchnorm.key(OF_SAMPLE):
        y = layer(*leaves, mask=mask)
    y.backward(dy)
    answers["y"].check("y", y)
    answers["dx"].check("dx", x.grad)
    answers["dresidual"].check("dresidual", residual.grad)
    for own in ("weight", "bias"):
        if per_key:
            assert of(layer, own, "unseen").grad is None
            got = torch.stack([of(layer, own, key).grad for key in KEYS[:2]])
        else:
            got = getattr(layer, own).grad
        answers[f"d{own}"].check(f"d{own}", got)
    if not training:
        assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
        return
    for name in ("running_mean", "running_var"):
        answers[name].check(name, stacked(layer, name)[:2])
    assert [of(layer, "num_batches_tracked", key).item() for key in KEYS] == [1, 1, 0]
    for own in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(of(layer, own, "unseen"), before[f"{own}_unseen"])


def test_the_statistics_of_the_whole_batch_would_miss() -> None:
    x, dy = draw(8, 3, 4, 5), draw(8, 3, 4, 5, seed=1)
    x[GROUPS == 1] += 10
    answers = oracle.ask(x, dy, groups=GROUPS)
    assert answers["y"].misses(batchnorm.functional.batch_norm(x, None, None, training=True))
    layer = batchnorm.BatchNorm2d(3, affine=False, statistics=batchnorm.Keyed(KEYS)).double()
    with batchnorm.key(GROUPS):
        answers["y"].check("y", layer(x))


@pytest.mark.parametrize(
    "each", [batchnorm.Batch(), batchnorm.Ghost(2), batchnorm.Debiased(0.1), batchnorm.Cumulative()]
)
@pytest.mark.parametrize("affine", ["shared", "per key"])
def test_it_is_a_layer_for_each_key(each: object, affine: str) -> None:
    layer, names = make(affine, each=each), ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")
    twins = {}
    for key in KEYS:
        twins[key] = batchnorm.BatchNorm2d(3, dtype=torch.float64, statistics=each)
        held = names if affine == "per key" else names[:3]
        twins[key].load_state_dict({n: of(layer, n, key) if n in held else getattr(layer, n) for n in names})
    for seed, key in enumerate(["source", "target", "target", "source"]):
        x = draw(5, 3, 2, 2, seed=seed)
        with batchnorm.key(key):
            assert torch.equal(layer(x), twins[key](x))
    x = draw(8, 3, 2, 2, seed=9)
    with batchnorm.key(OF_SAMPLE):
        y = layer(x)
    for index, key in enumerate(KEYS[:2]):
        assert torch.equal(y[index == GROUPS], twins[key](x[index == GROUPS]))
    for key, twin in twins.items():
        for name in names[:3]:
            assert torch.equal(of(layer, name, key), getattr(twin, name)), (key, name)


def test_keys_by_name_by_index_and_alike() -> None:
    x, results = draw(8, 3, 4, 5), []
    for given in (OF_SAMPLE, tuple(OF_SAMPLE), GROUPS, GROUPS.int()):
        layer = make()
        with batchnorm.key(given):
            results.append((layer(x), *layer.state_dict().values()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    one, each = make(), make()
    with batchnorm.key("target"):
        y = one(x)
    with batchnorm.key(["target"] * 8):
        assert torch.equal(each(x), y)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format_dtype_and_an_empty_batch(layout: torch.memory_format) -> None:
    layer = make().to(torch.float32)
    x = draw(8, 3, 4, 5).to(torch.bfloat16).contiguous(memory_format=layout)
    before = copy.deepcopy(layer.state_dict())
    with batchnorm.key(OF_SAMPLE):
        y = layer(x)
    assert (y.dtype, y.stride()) == (x.dtype, x.stride())
    layer.load_state_dict(before)
    with batchnorm.key([]):
        assert layer(x[:0]).shape == (0, 3, 4, 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


# --- state ---


def test_names_of_the_state() -> None:
    names = ["running_mean", "running_var", "num_batches_tracked"]
    plain = list(nn.BatchNorm2d(3).state_dict())
    shared = batchnorm.BatchNorm2d(3, statistics=batchnorm.Keyed(["a", "b"]))
    assert set(shared.state_dict()) == {*plain, *(f"{name}_b" for name in names)}
    per_key = batchnorm.BatchNorm2d(3, statistics=batchnorm.Keyed(["a", "b"], "per key"))
    assert set(per_key.state_dict()) == {*plain, *(f"{name}_b" for name in plain)}
    assert {name for name, _ in per_key.named_parameters()} == {"weight", "bias", "weight_b", "bias_b"}
    bare = batchnorm.BatchNorm2d(3, affine=False, track_running_stats=False, statistics=per_key.statistics)
    assert not bare.state_dict()


@pytest.mark.parametrize("affine", ["shared", "per key"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_torchs_layer_is_where_each_key_begins(affine: str, assign: bool) -> None:
    plain = nn.BatchNorm2d(3, dtype=torch.float64)
    plain(draw(4, 3, 2, 2) + 1)
    model = nn.Sequential(make(affine))
    model.load_state_dict(nn.Sequential(plain).state_dict(), assign=assign)
    for key in KEYS:
        for own, tensor in plain.state_dict().items():
            if affine == "per key" or own not in ("weight", "bias"):
                assert torch.equal(of(model[0], own, key), tensor), (own, key)
    with batchnorm.key("target"):
        model(draw(4, 3, 2, 2) - 7)
    assert torch.equal(model[0].running_mean, plain.running_mean)  # no memory is shared
    assert not torch.equal(model[0].running_mean_target, plain.running_mean)
    plain.load_state_dict(model[0].state_dict(), strict=False)  # the first key, back in torch's layer


def test_state_goes_round() -> None:
    layer, other = (
        make("per key"),
        batchnorm.BatchNorm2d(3, dtype=torch.float64, statistics=batchnorm.Keyed(KEYS, "per key")),
    )
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    for one in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert one.statistics == layer.statistics
        for name, tensor in layer.state_dict().items():
            assert torch.equal(one.state_dict()[name], tensor)
    fewer = make("per key", keys=("source", "target"))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*running_mean_unseen"):
        fewer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*running_mean_unseen"):
        layer.load_state_dict(fewer.state_dict())


def test_a_policy_set_later_brings_its_tensors_and_takes_them_away() -> None:
    layer = batchnorm.convert(nn.BatchNorm2d(3, dtype=torch.float64))
    layer(draw(4, 3, 2, 2))
    layer.weight.requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    layer.statistics = batchnorm.Keyed(("a", "b"), "per key")
    assert (layer.weight_b.requires_grad, layer.bias_b.requires_grad) == (False, True)
    for name, tensor in before.items():
        assert torch.equal(getattr(layer, f"{name}_b"), tensor)
    with batchnorm.key("b"):
        layer(draw(4, 3, 2, 2, seed=1))
    kept = layer.running_mean_b
    layer.statistics = batchnorm.Keyed(("a", "b", "c"))
    assert layer.running_mean_b is kept
    assert torch.equal(layer.running_mean_c, before["running_mean"])
    assert not hasattr(layer, "weight_b")
    layer.statistics = batchnorm.Batch()
    assert list(layer.state_dict()) == list(before)
    with pytest.raises(TypeError, match="statistics must be a policy; got 'keyed'"):
        layer.statistics = "keyed"


def test_reset() -> None:
    layer = make("per key")
    layer.reset_parameters()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, torch.full_like(tensor, name.startswith(("running_var", "weight")))), name


# --- what does not fit ---


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"keys": ()}, ValueError, "distinct names"),
        ({"keys": "source"}, ValueError, "distinct names.*'source'"),
        ({"keys": ("a", "a")}, ValueError, "distinct names"),
        ({"keys": ("a.b",)}, ValueError, "without dots"),
        ({"keys": (1, 2)}, ValueError, "distinct names"),
        ({"keys": ("a",), "affine": "none"}, ValueError, "'shared' or 'per key'; got 'none'"),
        ({"keys": ("a",), "each": "ghost"}, TypeError, "policy without keys"),
        ({"keys": ("a",), "each": batchnorm.Keyed(("b",))}, TypeError, "policy without keys"),
    ],
)
def test_keyed_that_makes_no_sense(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        batchnorm.Keyed(**options)


@pytest.mark.parametrize("given", [None, 3, 1.5, torch.ones(3), torch.ones(2, 2).int(), torch.tensor([True]), ["a", 1]])
def test_keys_of_the_wrong_type(given: object) -> None:
    with pytest.raises(TypeError, match=r"a key must be a name.*batchnorm\.key\('source'\)"), batchnorm.key(given):
        pass


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("sauce", r"unknown key 'sauce'; the keys of this layer are \['source', 'target', 'unseen'\]"),
        (["source"] * 7 + ["sauce"], "unknown key 'sauce'"),
        (torch.tensor([0] * 7 + [3]), "unknown key 3"),
        (torch.tensor([0] * 7 + [-1]), "unknown key -1"),
        (["source"] * 7, "each of the 8 samples; got 7"),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_keys_that_do_not_fit_change_nothing(given: object, match: str, training: bool) -> None:
    layer = make().train(training)
    before = copy.deepcopy(layer.state_dict())
    with batchnorm.key(given), pytest.raises(ValueError, match=match):
        layer(draw(8, 3, 4, 5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_blocks_nest_and_end_with_an_exception() -> None:
    layer, x = make(), draw(8, 3, 4, 5)
    with batchnorm.key("source"):
        with pytest.raises(ValueError, match="unknown"), batchnorm.key("sauce"):
            layer(x)
        with batchnorm.key("target"):
            layer(x)
        layer(x)
    with pytest.raises(ValueError, match=r"must be called with a key; it has \['source'.*with batchnorm\.key"):
        layer(x)
    assert [of(layer, "num_batches_tracked", key).item() for key in KEYS] == [1, 1, 0]


def test_the_function_has_no_keys_and_one_value_is_as_each_says() -> None:
    with pytest.raises(ValueError, match="belong to a layer"):
        batchnorm.functional.batch_norm(draw(4, 3), None, None, training=True, statistics=batchnorm.Keyed(KEYS))
    x = draw(3, 3)
    with batchnorm.key(["source", "source", "target"]):
        with pytest.raises(ValueError, match="more than 1 value"):
            make(cls=batchnorm.BatchNorm1d)(x)
        policy = batchnorm.Keyed(KEYS, on_single_value="running")
        layer = batchnorm.BatchNorm1d(3, dtype=torch.float64, statistics=policy)
        torch.testing.assert_close(layer(x)[2], x[2] / (1 + 1e-5) ** 0.5)
    assert (layer.num_batches_tracked, layer.num_batches_tracked_target) == (1, 0)


# --- with other tools ---


@pytest.mark.parametrize("affine", ["shared", "per key"])
def test_freeze_and_unfreeze(affine: str) -> None:
    layer, x = make(affine), draw(8, 3, 4, 5)
    before = copy.deepcopy(layer.state_dict())
    frozen = batchnorm.freeze(layer, affine=True).train()
    assert not any(p.requires_grad for p in frozen.parameters())
    with batchnorm.key(OF_SAMPLE):
        assert torch.equal(frozen(x), copy.deepcopy(layer).eval()(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    thawed = batchnorm.unfreeze(frozen)
    assert thawed.statistics == layer.statistics
    assert all(p.requires_grad for p in thawed.parameters())
    with batchnorm.key(OF_SAMPLE):
        assert torch.equal(thawed(x), layer(x))


def test_tools_that_know_no_keys_say_so() -> None:
    model = nn.Sequential(make())
    _, report = batchnorm.revert(model, report=True)
    assert "statistics=Keyed(keys=('source', 'target', 'unseen'))" in report["0"].reason
    with batchnorm.key("source"):
        _, report = batchnorm.recalibrate(model, [draw(8, 3, 4, 5)], report=True)
    assert "statistics per key" in report["0"].reason
    assert repr(model[0].statistics) in repr(model)


def test_converted_blocks_stay_fused_and_masks_are_divided() -> None:
    model, seen = batchnorm.convert(nn.Sequential(make(cls=batchnorm.BatchNorm1d), nn.ReLU())), []
    x, lengths = draw(8, 3, 6), torch.tensor([6, 3, 2, 6, 5, 1, 4, 6])
    twin = copy.deepcopy(model[0])
    with (
        batchnorm.key(OF_SAMPLE),
        batchnorm.masked(model, lengths),
        model[0].observe(lambda layer, x, residual, activation: seen.append(activation)),
    ):
        y = model(x)
    assert seen == ["relu"]
    mask = torch.arange(6) < lengths.view(-1, 1, 1)
    for index, key in enumerate(KEYS[:2]):
        chosen = index == GROUPS
        with batchnorm.key(key):
            assert torch.equal(y[chosen], twin(x[chosen], mask=mask[chosen]).relu())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile_and_export(training: bool) -> None:
    torch.compiler.reset()
    layer = make("per key").train(training)
    compiled_layer, x = copy.deepcopy(layer), draw(8, 3, 4, 5)
    compiled = torch.compile(compiled_layer, fullgraph=True, backend="aot_eager")
    for given in ("target", OF_SAMPLE, "source"):
        results = []
        for run in (layer, compiled):
            leaf = x.clone().requires_grad_()
            with batchnorm.key(given):
                y = run(leaf)
            results.append((y, *torch.autograd.grad(y, leaf, draw(*y.shape, seed=5))))
        torch.testing.assert_close(*results)
    torch.testing.assert_close(dict(layer.state_dict()), dict(compiled_layer.state_dict()))
    if not training:
        with batchnorm.key("target"):
            program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)).module()
            known = layer(x[:3])
        torch.testing.assert_close(program(x[:3]), known)  # the key is part of the program


@pytest.mark.parametrize("inside", [True, False])
def test_checkpointing(inside: bool) -> None:
    layer, x, dy = make(), draw(8, 3, 4, 5).requires_grad_(), draw(8, 3, 4, 5, seed=1)
    with batchnorm.key("target"):
        (known,) = torch.autograd.grad(copy.deepcopy(layer)(x), x, dy)
        if inside:
            (dx,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False), x, dy)
        else:
            contexts = lambda: (nullcontext(), batchnorm.key("target"))  # noqa: E731
            y = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
    if not inside:
        with batchnorm.key("source"):
            (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(dx, known)


def test_second_order() -> None:
    layer, keys = make("per key", cls=batchnorm.BatchNorm1d), ["source", "target", "source", "target", "source"]
    names = ("weight", "bias", "weight_target")

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        with batchnorm.key(keys):
            return torch.func.functional_call(copy.deepcopy(layer), dict(zip(names, parameters, strict=True)), (x,))

    arguments = (draw(5, 3).requires_grad_(), *(draw(3, seed=s).requires_grad_() for s in (1, 2, 3)))
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)
