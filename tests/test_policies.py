"""Policies by their public names, against the reference: values, buffers, gradients, second derivatives, state."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import batchnorm
import oracle
import regimes
from batchnorm.functional import batch_norm
from batchnorm.kernels import registry
from batchnorm.kernels.interface import Epilogue, Reduction
from batchnorm.reference import renorm
from batchnorm.reference.averages import debiased_factor, momentum_of_half_life
from oracle import Bounds

SHAPE = (9, 4, 5)
LENGTHS = (5, 3, 1, 5, 0, 2, 4, 5, 2)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.fixture(params=registry.BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with registry.use_backend(request.param):
        yield


def _expect_refusal(reduction: Reduction, epilogue: Epilogue) -> None:
    try:
        registry.select(torch.zeros(2, 1, 2), reduction, epilogue)
    except ValueError as error:
        pytest.xfail(str(error))  # a backend that declines says why, and need not pass


@pytest.fixture
def _masks(_backend: None) -> None:
    mask = torch.ones(2, 1, 2, dtype=torch.bool)
    _expect_refusal(Reduction(mask=mask), Epilogue(mask=mask))


@pytest.fixture
def _groups(_backend: None) -> None:
    _expect_refusal(Reduction(group_size=1), Epilogue())


masks = pytest.mark.usefixtures("_masks")
groups = pytest.mark.usefixtures("_groups")


def make(
    values: str = "normal",
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = SHAPE,
    layout: str = "contiguous",
    seed: int = 3,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    lay = regimes.LAYOUTS[layout]
    x = lay(regimes.VALUES[values](shape, generator).to(dtype))
    return {
        "x": x,
        "dy": lay(draw(*shape).to(dtype)),
        "residual": lay(draw(*shape).to(dtype)),
        "weight": draw(shape[1]).to(wide),
        "bias": draw(shape[1]).to(wide),
        "running_mean": (x.double().mean([0, *range(2, x.dim())]) + 0.1).to(wide),
        "running_var": (draw(shape[1]).abs() + 0.5).to(wide),
    }


def valid(lengths: tuple[int, ...] = LENGTHS, positions: int = SHAPE[2]) -> Tensor:
    return (torch.arange(positions) < torch.tensor(lengths).view(-1, 1)).unsqueeze(1)


def check(
    given: dict[str, Tensor],
    expected: dict,
    *,
    training: bool = True,
    momentum: float | None = 0.1,
    activation: str | None = "silu",
    tracked: int = 0,
    batches: int = 1,
    **call,
) -> None:
    """Compare one call of `functional.batch_norm` with the reference: ``expected`` are the options of `oracle.ask`."""
    answers = oracle.ask(
        *(given[name] for name in ("x", "dy")),
        **{name: given[name] for name in ("weight", "bias", "residual")},
        running=(given["running_mean"], given["running_var"]),
        training=training,
        momentum=momentum,
        activation=activation,
        num_batches_tracked=tracked,
        **expected,
    )
    leaves = {name: given[name].clone().requires_grad_() for name in ("x", "weight", "bias", "residual")}
    running_mean, running_var = given["running_mean"].clone(), given["running_var"].clone()
    counter = torch.tensor(tracked)
    y = batch_norm(
        leaves["x"],
        running_mean,
        running_var,
        leaves["weight"],
        leaves["bias"],
        training,
        momentum,
        activation=activation,
        residual=leaves["residual"],
        num_batches_tracked=counter if training else None,
        **call,
    )
    assert y.dtype == given["x"].dtype
    gradients = torch.autograd.grad(y, list(leaves.values()), given["dy"])
    answers["y"].check("y", y)
    for name, gradient in zip(leaves, gradients, strict=True):
        assert gradient.dtype == leaves[name].dtype
        answers[f"d{name}"].check(f"d{name}", gradient)
    kept = expected.get("kept", expected.get("mask"))
    if kept is not None:
        hidden = ~kept.expand_as(y)
        for name, result in (("y", y), ("dx", gradients[0]), ("dresidual", gradients[3])):
            allowed = hidden & ~expected["mask"].expand_as(y) if name == "dx" else hidden
            assert torch.equal(result[allowed], torch.zeros_like(result[allowed])), f"{name} is not exactly 0"
    if training and "running_mean" in answers:
        answers["running_mean"].check("running_mean", running_mean)
        answers["running_var"].check("running_var", running_var)
        assert counter.item() == tracked + batches
    else:
        assert torch.equal(running_mean, given["running_mean"])
        assert torch.equal(running_var, given["running_var"])


def check_second_order(given: dict[str, Tensor], expected: dict, **call) -> None:
    """Compare second derivatives of a call in float64 with differences of the reference's backward."""
    x, weight, bias, dy = (given[name].clone().requires_grad_() for name in ("x", "weight", "bias", "dy"))
    running = given["running_mean"], given["running_var"]
    y = batch_norm(x, *(t.clone() for t in running), weight, bias, True, activation="tanh", **call)
    first = torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True)
    generator = torch.Generator().manual_seed(4)
    cotangents = tuple(torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in first)
    second = torch.autograd.grad(first, (x, weight, dy), cotangents)
    answers = oracle.ask_second_order(
        given["x"], given["dy"], cotangents, weight=given["weight"], bias=given["bias"], running=running,
        activation="tanh", **expected,
    )  # fmt: skip
    for name, got in zip(("x", "weight", "dy"), second, strict=True):
        answers[name].check(f"second derivative by {name}", got)


def passes_gradient_checks(function: Callable[..., Tensor], *arguments: Tensor) -> bool:
    inputs = tuple(argument.detach().double().requires_grad_() for argument in arguments)
    return gradcheck(function, inputs) and gradgradcheck(function, inputs)


def layer1d(channels: int = SHAPE[1], **options) -> nn.Module:
    """A float64 layer with parameters that are not 1 and 0."""
    layer = batchnorm.BatchNorm1d(channels, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, expected: dict[str, Tensor]) -> None:
    got = module.state_dict()
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


# --- masks ---


@masks
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", ["normal", "mean_1e4", "constant_channels"])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_mask(values: str, dtype: torch.dtype, activation: str | None) -> None:
    check(make(values, dtype), {"mask": valid()}, mask=valid(), activation=activation)


@masks
@pytest.mark.parametrize("values", ["mean_1e6", "scales_1e-12_to_1e12"])
def test_mask_in_hard_regimes(values: str) -> None:
    check(make(values), {"mask": valid()}, mask=valid())


@masks
@pytest.mark.parametrize("layout", regimes.LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 3, 5, 7), (3, 2, 3, 2, 5)], ids=str)
def test_mask_over_space(shape: tuple[int, ...], layout: str) -> None:
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=torch.Generator().manual_seed(1)) < 0.6
    check(make(shape=shape, layout=layout), {"mask": mask}, mask=mask)


@masks
def test_mask_of_samples_broadcasts_and_dense_input() -> None:
    samples = torch.tensor([True, False, True, True, False, True, True, True, False])
    check(make(shape=(9, 4)), {"mask": samples.view(9, 1)}, mask=samples.view(9, 1))
    everywhere = samples.view(9, 1, 1).expand(9, 1, 5)
    check(make(), {"mask": everywhere}, mask=samples.view(9, 1, 1))


@masks
def test_lengths_are_a_mask() -> None:
    check(make(), {"mask": valid()}, mask=torch.tensor(LENGTHS))


@masks
def test_mask_in_evaluation() -> None:
    check(make(), {"mask": valid()}, mask=valid(), training=False)


@masks
def test_padding_changes_no_bit_and_may_hold_anything() -> None:
    given, mask = make(), valid()
    call = functools.partial(
        batch_norm, running_mean=None, running_var=None, weight=given["weight"], bias=given["bias"], training=True
    )
    y = call(given["x"], mask=mask)
    for value in (torch.nan, torch.inf, 1e30):
        assert torch.equal(call(torch.where(mask, given["x"], value), mask=mask), y)
    longer = torch.cat([given["x"], torch.full((9, 4, 6), 1e6)], dim=2)
    y_longer = call(longer, mask=torch.tensor(LENGTHS))
    assert torch.equal(y_longer[..., :5], y)
    assert not y_longer[..., 5:].any()


@masks
def test_upstream_gradient_in_the_padding_goes_nowhere() -> None:
    given, mask = make(), valid()
    x = given["x"].requires_grad_()
    y = batch_norm(x, None, None, given["weight"], given["bias"], True, mask=mask)
    (dx,) = torch.autograd.grad(y, x, given["dy"], retain_graph=True)
    (spoilt,) = torch.autograd.grad(y, x, torch.where(mask, given["dy"], torch.nan))
    assert torch.equal(dx, spoilt)


@masks
def test_a_batch_without_a_valid_value_is_zero_and_leaves_running_statistics_alone() -> None:
    given, nothing = make(), torch.zeros(9, 1, 5, dtype=torch.bool)
    x = given["x"].requires_grad_()
    running = given["running_mean"].clone(), given["running_var"].clone()
    y = batch_norm(x, *running, given["weight"], given["bias"], True, activation="sigmoid", mask=nothing)
    (dx,) = torch.autograd.grad(y, x, given["dy"])
    assert not y.any()
    assert not dx.any()
    assert torch.equal(running[0], given["running_mean"])
    assert torch.equal(running[1], given["running_var"])


@masks
def test_torch_on_zeros_for_padding_misses_where_a_mask_does_not() -> None:
    given, mask = make(), valid()
    answers = oracle.ask(given["x"], given["dy"], mask=mask)
    naive = nn.functional.batch_norm(given["x"] * mask, None, None, training=True) * mask
    assert answers["y"].misses(naive)
    answers["y"].check("y", batch_norm(given["x"], None, None, training=True, mask=mask))


@masks
def test_second_derivatives_under_a_mask() -> None:
    given = make(dtype=torch.float64)
    check_second_order(given, {"mask": valid()}, mask=valid())

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm(x, None, None, weight, bias, True, activation="tanh", mask=mask)

    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]]).unsqueeze(1)
    small = make(dtype=torch.float64, shape=(3, 2, 3))
    assert passes_gradient_checks(function, small["x"], small["weight"], small["bias"])


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.ones(9, 4, 5, dtype=torch.bool), ValueError),  # per channel
        (torch.ones(9, 5, dtype=torch.bool), ValueError),
        (torch.ones(8, 1, 5, dtype=torch.bool), ValueError),
        (torch.ones(9, 1, 5), ValueError),
        (torch.tensor([1, 2]), ValueError),
        ([True] * 9, TypeError),
    ],
)
def test_a_mask_that_does_not_fit(mask: object, error: type[Exception]) -> None:
    given = make()
    running = given["running_mean"].clone(), given["running_var"].clone()
    with pytest.raises(error, match="mask must be"):
        batch_norm(given["x"], *running, training=True, mask=mask)
    assert torch.equal(running[0], given["running_mean"])
    assert torch.equal(running[1], given["running_var"])


@masks
def test_layer_takes_a_mask() -> None:
    given = make(dtype=torch.float64)
    layer = layer1d()
    y = layer(given["x"], mask=valid())
    expected = oracle.ask(
        given["x"], given["dy"], weight=layer.weight, bias=layer.bias, mask=valid(),
        running=(torch.zeros(4).double(), torch.ones(4).double()),
    )  # fmt: skip
    expected["y"].check("y", y)
    expected["running_mean"].check("running_mean", layer.running_mean)
    expected["running_var"].check("running_var", layer.running_var)


@masks
@pytest.mark.parametrize("mask", [valid(), torch.tensor(LENGTHS)], ids=["mask", "lengths"])
def test_masked_model_is_its_layers_with_the_mask(mask: Tensor) -> None:
    given = make(dtype=torch.float64)
    model = nn.Sequential(layer1d(), nn.Tanh(), layer1d())
    twin = copy.deepcopy(model)
    with batchnorm.masked(model, mask):
        y = model(given["x"])
    expected = twin[2](twin[1](twin[0](given["x"], mask=valid())), mask=valid())
    assert torch.equal(y, expected)
    assert_same_state(model, state(twin))
    outside = twin.eval()(given["x"])  # and not a moment longer
    assert torch.equal(model.eval()(given["x"]), outside)


# --- ghost batches ---


@groups
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", ["normal", "mean_1e4", "constant_channels"])
@pytest.mark.parametrize("size", [2, 3, 4, 9])
def test_ghost(size: int, values: str, dtype: torch.dtype) -> None:
    groups = torch.arange(9) // size
    check(make(values, dtype), {"groups": groups}, statistics=batchnorm.Ghost(size), batches=-(-9 // size))


@groups
@pytest.mark.parametrize("layout", regimes.LAYOUTS)
@pytest.mark.parametrize("shape", [(8, 3), (7, 3, 5, 7), (5, 2, 3, 2, 5)], ids=str)
def test_ghost_over_space(shape: tuple[int, ...], layout: str) -> None:
    groups = torch.arange(shape[0]) // 4
    check(make(shape=shape, layout=layout), {"groups": groups}, statistics=batchnorm.Ghost(4), batches=2)


@groups
@pytest.mark.parametrize("values", ["mean_1e6", "scales_1e-12_to_1e12"])
def test_ghost_in_hard_regimes(values: str) -> None:
    check(make(values), {"groups": torch.arange(9) // 4}, statistics=batchnorm.Ghost(4), batches=3)


@groups
@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0, None])
def test_ghost_updates_in_turn(momentum: float | None) -> None:
    given, groups = make(dtype=torch.float64), torch.arange(9) // 2
    check(given, {"groups": groups}, statistics=batchnorm.Ghost(2), momentum=momentum, tracked=7, batches=5)


@groups
@masks
def test_ghost_with_a_mask() -> None:
    lengths = (5, 3, 1, 5, 0, 0, 0, 0, 2)  # the second group has no valid value
    mask = valid(lengths)
    check(make(), {"groups": torch.arange(9) // 4, "mask": mask}, statistics=batchnorm.Ghost(4), mask=mask, batches=2)


def test_ghost_in_evaluation_has_no_groups() -> None:
    check(make(), {}, statistics=batchnorm.Ghost(2), training=False)


@groups
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("masked", [False, True])
def test_permuted_ghost_batches(layout: str, masked: bool) -> None:
    """Those of the samples in the order that torch's generator gives; a group is then not consecutive."""
    torch.manual_seed(5)
    order = torch.randperm(9)
    groups = torch.empty(9, dtype=torch.long).scatter_(0, order, torch.arange(9) // 4)
    assert (groups.diff() < 0).any()
    given, options, call = make(shape=(9, 4, 5), layout=layout), {"groups": groups}, {}
    if masked:
        options["mask"] = call["mask"] = torch.rand(9, 1, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    torch.manual_seed(5)
    check(given, options, statistics=batchnorm.Ghost(4, permuted=True), batches=3, **call)


def test_permuted_ghost_batches_write_where_they_are_told() -> None:
    x, policy = make(shape=(9, 4))["x"][:8], batchnorm.Ghost(4, permuted=True)
    out = torch.empty_like(x)
    torch.manual_seed(0)
    given = batch_norm(x, None, None, training=True, statistics=policy, out=out)
    torch.manual_seed(0)
    torch.testing.assert_close(given, batch_norm(x, None, None, training=True, statistics=policy), rtol=0, atol=0)
    assert given is out
    with pytest.raises(ValueError, match="out must be a tensor of shape"):
        batch_norm(x, None, None, training=True, statistics=policy, out=out[:2])


def test_permuted_ghost_batches_draw_in_training_only() -> None:
    layer = layer1d(statistics=batchnorm.Ghost(4, permuted=True)).eval()
    before = torch.get_rng_state()
    layer(make(dtype=torch.float64)["x"])
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(layer.statistics) == "Ghost(size=4, permuted=True)"


@groups
def test_ghost_group_of_one_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="more than one value per channel"):
        batch_norm(make(shape=(9, 4))["x"], None, None, training=True, statistics=batchnorm.Ghost(4))


@groups
@pytest.mark.parametrize("momentum", [0.1, None])
def test_ghost_layer_is_a_loop_of_torch_layers(momentum: float | None) -> None:
    layer = layer1d(momentum=momentum, statistics=batchnorm.Ghost(4))
    loop = nn.BatchNorm1d(4, momentum=momentum, dtype=torch.float64)
    loop.load_state_dict(layer.state_dict())
    for seed in range(3):
        x = make(dtype=torch.float64, seed=seed)["x"]
        torch.testing.assert_close(layer(x), torch.cat([loop(chunk) for chunk in x.split(4)]), rtol=1e-12, atol=1e-12)
    assert layer.num_batches_tracked == loop.num_batches_tracked == 9
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(layer, name), getattr(loop, name), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.eval()(x), loop.eval()(x), rtol=1e-12, atol=1e-12)


@groups
def test_second_derivatives_of_ghost_batches() -> None:
    check_second_order(make(dtype=torch.float64), {"groups": torch.arange(9) // 4}, statistics=batchnorm.Ghost(4))

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm(x, None, None, weight, bias, True, activation="tanh", statistics=batchnorm.Ghost(2))

    small = make(dtype=torch.float64, shape=(5, 2, 2))
    assert passes_gradient_checks(function, small["x"], small["weight"], small["bias"])


# --- Batch Renormalization ---


def open_renorm(rmax: float, dmax: float, average: str = "variance") -> object:
    """Make a policy whose bounds are final from the first batch on."""
    return batchnorm.Renorm(rmax=rmax, dmax=dmax, start=0, rmax_end=0, dmax_end=0, average=average)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", ["normal", "mean_1e4", "constant_channels"])
@pytest.mark.parametrize("bounds", [(1.0, 0.0), (1.2, 0.3), (1e6, 1e6)], ids=["closed", "clipped", "open"])
@pytest.mark.parametrize("average", ["deviation", "variance"])
def test_renorm(average: str, bounds: tuple[float, float], values: str, dtype: torch.dtype) -> None:
    rmax, dmax = bounds
    expected = {"bounds": Bounds(rmax, dmax, average)}
    check(make(values, dtype), expected, statistics=open_renorm(rmax, dmax, average))


@masks
def test_renorm_with_a_mask() -> None:
    expected = {"bounds": Bounds(1.2, 0.3), "mask": valid()}
    check(make(), expected, statistics=open_renorm(1.2, 0.3), mask=valid())


def test_renorm_in_evaluation_is_the_plain_layer() -> None:
    check(make(), {}, statistics=open_renorm(1.2, 0.3), training=False)


@pytest.mark.parametrize("tracked", [0, 4999, 5000, 5001, 15000, 25000, 40000, 10**6])
def test_renorm_opens_by_the_batches_seen_before(tracked: int) -> None:
    given = make(dtype=torch.float64)
    given["running_var"] = given["running_var"] * 0.01  # so that both bounds are met at every stage
    given["running_mean"] = given["running_mean"] + 3.0
    expected = {"bounds": Bounds(*renorm.bounds(tracked), "deviation")}
    check(given, expected, statistics=batchnorm.Renorm(), momentum=0.01, tracked=tracked)


@masks
@pytest.mark.parametrize("average", ["deviation", "variance"])
def test_renorm_without_a_valid_value_leaves_running_statistics_alone(average: str) -> None:
    given, nothing = make(), torch.zeros(9, 1, 5, dtype=torch.bool)
    running = given["running_mean"].clone(), given["running_var"].clone()
    policy, counter = open_renorm(1.2, 0.3, average), torch.tensor(7)
    y = batch_norm(given["x"], *running, training=True, mask=nothing, statistics=policy, num_batches_tracked=counter)
    assert not y.any()
    assert torch.equal(running[0], given["running_mean"])
    assert torch.equal(running[1], given["running_var"])
    assert counter == 7


def test_second_derivatives_of_renorm_hold_the_correction() -> None:
    policy = open_renorm(1.2, 0.3)
    check_second_order(make(dtype=torch.float64), {"bounds": Bounds(1.2, 0.3)}, statistics=policy)


@pytest.mark.parametrize("average", ["deviation", "variance"])
def test_renorm_with_open_bounds_trains_on_what_evaluation_gives(average: str) -> None:
    layer = layer1d(statistics=open_renorm(1e6, 1e6, average))
    for seed in range(200):  # a correction that grows after its warm-up leaves this within a few batches
        x = make(dtype=torch.float64, seed=seed)["x"] * 2 + 1
        frozen = copy.deepcopy(layer).eval()
        torch.testing.assert_close(layer(x), frozen(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{"rmax": 0.5}, {"dmax": -1.0}, {"rmax": float("nan")}])
def test_renorm_bounds_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        batchnorm.Renorm(**options)


# --- frozen ---


@masks
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", [None, valid()], ids=["alone", "masked"])
def test_frozen_in_training_is_evaluation(mask: Tensor | None, dtype: torch.dtype) -> None:
    given, expected = make(dtype=dtype), {} if mask is None else {"mask": mask}
    leaves = {name: given[name].clone().requires_grad_() for name in ("x", "weight", "bias")}
    running = given["running_mean"].clone(), given["running_var"].clone()
    counter = torch.tensor(5)
    y = batch_norm(
        leaves["x"], *running, leaves["weight"], leaves["bias"], True, activation="silu", mask=mask,
        statistics=batchnorm.Frozen(), num_batches_tracked=counter,
    )  # fmt: skip
    answers = oracle.ask(
        given["x"], given["dy"], weight=given["weight"], bias=given["bias"], activation="silu", training=False,
        running=(given["running_mean"], given["running_var"]), **expected,
    )  # fmt: skip
    answers["y"].check("y", y)
    for name, gradient in zip(leaves, torch.autograd.grad(y, list(leaves.values()), given["dy"]), strict=True):
        answers[f"d{name}"].check(f"d{name}", gradient)
    assert torch.equal(running[0], given["running_mean"])
    assert torch.equal(running[1], given["running_var"])
    assert counter == 5


def test_frozen_layer_takes_one_sample() -> None:
    layer = layer1d(statistics=batchnorm.Frozen()).train()
    x = make(dtype=torch.float64, shape=(1, 4))["x"]
    assert torch.equal(layer(x), copy.deepcopy(layer).eval()(x))


def _network() -> nn.Module:
    shared = layer1d()
    return nn.Sequential(layer1d(momentum=0.3), nn.Conv1d(4, 4, 1).double(), shared, nn.ReLU(), shared)


def test_freeze_and_unfreeze_restore_every_bit() -> None:
    x = make(dtype=torch.float64)["x"]
    model, plain = _network(), None
    model(x)
    plain, before = copy.deepcopy(model), state(model)
    frozen = batchnorm.freeze(model)
    assert_same_state(model, before)
    frozen = copy.deepcopy(frozen).train()
    expected = copy.deepcopy(plain).eval()(x)
    for _ in range(2):
        torch.testing.assert_close(frozen(x), expected, rtol=1e-13, atol=1e-13)
    assert_same_state(frozen, before)
    thawed = batchnorm.unfreeze(frozen).train()
    assert_same_state(thawed, before)
    assert torch.equal(thawed(x), plain(x))  # momentum and counter included: the next update is the same
    assert_same_state(thawed, state(plain))


def test_freeze_reports() -> None:
    _, report = batchnorm.freeze(_network(), report=True)
    assert report


def test_per_sample_gradients_through_frozen_layers() -> None:
    x = make(dtype=torch.float64)["x"]
    model = batchnorm.freeze(nn.Sequential(layer1d())).train()
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (sample.unsqueeze(0),)).pow(2).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(len(x)):
        alone = torch.func.grad(loss)(parameters, x[index])
        for name, gradient in alone.items():
            torch.testing.assert_close(each[name][index], gradient, rtol=1e-12, atol=1e-12)


# --- averages ---


def _batches(count: int) -> list[Tensor]:
    """Two values a channel: means 1 and 7, unbiased variances 2 and 18, then the second for ever."""
    first, second = torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[4.0], [10.0]]).double()
    return [first, *[second] * (count - 1)][:count]


def _pinned(name: str) -> nn.Module:
    policies = {
        "debiased": lambda: {"statistics": batchnorm.Debiased(0.1)},
        "cumulative": lambda: {"statistics": batchnorm.Cumulative()},
        "momentum_none": lambda: {"momentum": None},
    }
    return batchnorm.BatchNorm1d(1, dtype=torch.float64, **policies[name]())


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("debiased", {0: (0, 1), 1: (1, 2), 2: (79 / 19, 198 / 19), 401: (7, 18)}),
        ("cumulative", {0: (0, 1), 1: (1, 2), 2: (4, 10), 401: (7 - 6 / 401, 18 - 16 / 401)}),
        ("momentum_none", {0: (0, 1), 1: (1, 2), 2: (4, 10), 401: (7 - 6 / 401, 18 - 16 / 401)}),
    ],
    ids=["debiased", "cumulative", "momentum_none"],
)  # fmt: skip
def test_running_values_at_0_1_2_and_many_batches(name: str, after: dict[int, tuple[float, float]]) -> None:
    for count, (mean, var) in after.items():
        layer = _pinned(name)
        for batch in _batches(count):
            layer(batch)
        torch.testing.assert_close(layer.running_mean.item(), float(mean), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.running_var.item(), float(var), rtol=1e-12, atol=1e-12)
        assert layer.num_batches_tracked == count


@pytest.mark.parametrize("momentum", [0.01, 0.7, 1.0])
def test_debiased_is_the_reference(momentum: float) -> None:
    layer = layer1d(statistics=batchnorm.Debiased(momentum))
    for n in range(5):
        given = make(dtype=torch.float64, seed=n)
        answers = oracle.ask(
            given["x"], given["dy"], weight=layer.weight, bias=layer.bias, num_batches_tracked=n,
            running=(layer.running_mean.clone(), layer.running_var.clone()),
            factor=functools.partial(debiased_factor, momentum),
        )  # fmt: skip
        answers["y"].check("y", layer(given["x"]))
        answers["running_mean"].check("running_mean", layer.running_mean)
        answers["running_var"].check("running_var", layer.running_var)


@pytest.mark.parametrize("half_life", [0.5, 6.0, 1000.0])
def test_half_life_is_a_momentum(half_life: float) -> None:
    for name in ("Exponential", "Debiased"):
        policy = getattr(batchnorm, name)
        by_half_life = layer1d(statistics=policy(half_life=half_life))
        by_momentum = layer1d(statistics=policy(momentum_of_half_life(half_life)))
        for batch in (make(dtype=torch.float64, seed=seed)["x"] for seed in range(3)):
            by_half_life(batch)
            by_momentum(batch)
        assert_same_state(by_half_life, state(by_momentum))
        with pytest.raises(ValueError, match="half_life"):
            policy(0.1, half_life=half_life)


# --- one value per channel ---


def test_one_value_is_torchs_error_by_default_and_evaluation_by_choice() -> None:
    x = make(dtype=torch.float64, shape=(1, 4))["x"]
    layer = layer1d()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(x)
    layer = layer1d(statistics=batchnorm.Batch(on_single_value="running"))
    layer(make(dtype=torch.float64, shape=(5, 4))["x"])
    before, expected = state(layer), copy.deepcopy(layer).eval()(x)
    assert torch.equal(layer(x), expected)
    assert_same_state(layer, before)


@masks
def test_a_mask_with_one_valid_value_puts_nothing_infinite_into_the_buffers() -> None:
    given, one = make(), torch.zeros(9, 1, 5, dtype=torch.bool)
    one[3, 0, 2] = True
    running = given["running_mean"].clone(), given["running_var"].clone()
    y = batch_norm(given["x"], *running, given["weight"], given["bias"], True, mask=one)
    assert torch.isfinite(y).all()
    assert torch.isfinite(running[0]).all()
    assert torch.isfinite(running[1]).all()


# --- keys ---


@pytest.mark.parametrize("affine", ["shared", "per key"])
def test_keyed_layer_is_a_layer_for_each_key(affine: str) -> None:
    layer = layer1d(statistics=batchnorm.Keyed(("source", "target", "unseen"), affine=affine))
    twins = {}
    for name in ("source", "target"):
        twins[name] = nn.BatchNorm1d(4, dtype=torch.float64)
    if affine == "shared":
        for twin in twins.values():
            twin.weight.data, twin.bias.data = layer.weight.data.clone(), layer.bias.data.clone()
    else:
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.fill_(1.0 if name.startswith("w") else 0.0)
    for seed, name in enumerate(["source", "target", "target"]):
        x = make(dtype=torch.float64, seed=seed)["x"] + 10 * (name == "target")
        with batchnorm.key(name):
            torch.testing.assert_close(layer(x), twins[name](x), rtol=1e-12, atol=1e-12)
    layer.eval()
    for name, twin in twins.items():
        with batchnorm.key(name):
            torch.testing.assert_close(layer(x), twin.eval()(x), rtol=1e-12, atol=1e-12)


def test_a_key_for_each_sample() -> None:
    given = make(dtype=torch.float64)
    keys = ["b", "a", "b", "b", "a", "a", "b", "a", "a"]
    layer = layer1d(statistics=batchnorm.Keyed(("a", "b")))
    x = given["x"].requires_grad_()
    with batchnorm.key(keys):
        y = layer(x)
    answers = oracle.ask(
        given["x"],
        given["dy"],
        weight=layer.weight,
        bias=layer.bias,
        groups=torch.tensor([k == "b" for k in keys]).int(),
    )
    answers["y"].check("y", y)
    gradients = torch.autograd.grad(y, (x, layer.weight, layer.bias), given["dy"])
    for name, gradient in zip(("x", "weight", "bias"), gradients, strict=True):
        answers[f"d{name}"].check(f"d{name}", gradient)


def test_a_key_that_does_not_exist() -> None:
    layer = layer1d(statistics=batchnorm.Keyed(("source", "target")))
    before = state(layer)
    with pytest.raises((ValueError, KeyError), match="source"), batchnorm.key("sauce"):
        layer(make(dtype=torch.float64)["x"])
    with pytest.raises((ValueError, KeyError), match="source"):
        layer(make(dtype=torch.float64)["x"])  # without any key
    assert_same_state(layer, before)


# --- all of them, as layers ---

POLICIES = {
    "batch": batchnorm.Batch,
    "ghost": lambda: batchnorm.Ghost(4),
    "renorm": lambda: open_renorm(1.5, 0.5),
    "frozen": batchnorm.Frozen,
    "debiased": lambda: batchnorm.Debiased(0.1),
    "cumulative": batchnorm.Cumulative,
    "exponential": lambda: batchnorm.Exponential(half_life=3.0),
}
EACH = [pytest.param(policy, id=name) for name, policy in POLICIES.items()]


def made(policy: Callable) -> object:
    """Make the policy; expect the backend's refusal if it declines what the policy reduces over."""
    one = policy()
    reduction = one.reduction(torch.zeros(9, 4, 5), None)
    if reduction is not None:
        _expect_refusal(reduction, Epilogue())
    return one


@pytest.mark.parametrize("policy", EACH)
def test_state_is_that_of_torchs_layer_and_loads_both_ways(policy: Callable) -> None:
    x = make(dtype=torch.float64)["x"]
    layer, plain = layer1d(statistics=made(policy)), nn.BatchNorm1d(4, dtype=torch.float64)
    plain(x)
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)
    layer.train()(x)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", EACH)
def test_copies_go_on_alike(policy: Callable) -> None:
    x = make(dtype=torch.float64)["x"]
    layer = layer1d(statistics=made(policy))
    layer(x)
    copied, pickled = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = layer1d(statistics=policy())
    loaded.load_state_dict(torch.load(file))
    y = layer(2 * x)
    for other in (copied, loaded, pickled):
        assert other.statistics == layer.statistics
        assert torch.equal(other(2 * x), y)
        assert_same_state(other, state(layer))


@pytest.mark.parametrize("policy", EACH)
def test_repr_says_the_policy(policy: Callable) -> None:
    layer = layer1d(statistics=policy())
    assert (repr(policy()) in repr(layer)) == (layer.statistics != batchnorm.Batch())


@pytest.mark.parametrize("policy", EACH)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled_in_one_graph(policy: Callable, training: bool) -> None:
    torch.compiler.reset()
    eager = layer1d(statistics=made(policy), activation="silu").train(training)
    inside = copy.deepcopy(eager)
    compiled = torch.compile(inside, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        given, results = make(dtype=torch.float64, seed=seed), []
        for run in (eager, compiled):
            x = given["x"].clone().requires_grad_()
            y = run(x, given["residual"])
            results.append(
                (y, *torch.autograd.grad(y, (x, eager.weight if run is eager else inside.weight), given["dy"]))
            )
        torch.testing.assert_close(*results)
    torch.testing.assert_close(dict(inside.state_dict()), dict(eager.state_dict()))


@pytest.mark.parametrize("policy", EACH)
def test_exported_in_evaluation(policy: Callable) -> None:
    layer = layer1d(statistics=policy())
    layer.load_state_dict(make_state())
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(layer.eval(), (make(dtype=torch.float64)["x"],), dynamic_shapes=shapes).module()
    x = make(dtype=torch.float64, shape=(4, 4, 5))["x"]
    torch.testing.assert_close(program(x), layer(x))


def make_state() -> dict[str, Tensor]:
    """The state of torch's layer after two batches."""
    plain = nn.BatchNorm1d(4, dtype=torch.float64)
    for seed in range(2):
        plain(make(dtype=torch.float64, seed=seed)["x"])
    return plain.state_dict()


@pytest.mark.parametrize("policy", [one for one in EACH if one.id != "renorm"])  # it holds its correction: see above
def test_second_derivatives_of_a_layer(policy: Callable) -> None:
    layer = layer1d(2, statistics=made(policy), activation="tanh")

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(copy.deepcopy(layer), {"weight": weight, "bias": bias}, (x,))

    small = make(dtype=torch.float64, shape=(5, 2, 2))
    assert passes_gradient_checks(function, small["x"], small["weight"], small["bias"])


@pytest.mark.parametrize("policy", EACH)
def test_convert_and_revert_keep_the_policy_or_say_why_not(policy: Callable) -> None:
    model = nn.Sequential(layer1d(statistics=policy()), nn.ReLU())
    converted, report = batchnorm.convert(model, report=True)
    assert converted[0].statistics == policy()
    assert report["0"].done == "fused relu"
    reverted, report = batchnorm.revert(converted, report=True)
    if policy() == batchnorm.Batch():
        assert type(reverted[0]) is nn.BatchNorm1d
    else:
        assert reverted[0].statistics == policy()
        assert f"statistics={policy()!r}" in report["0"].reason


@masks
@pytest.mark.parametrize("policy", EACH)
def test_residual_activation_and_mask_go_together_in_a_layer(policy: Callable) -> None:
    given = make(dtype=torch.float64)
    layer = layer1d(statistics=policy(), activation="relu")
    twin = layer1d(statistics=policy())
    y = layer(given["x"], given["residual"], mask=valid())
    expected = torch.relu(twin(given["x"], mask=valid()) + torch.where(valid(), given["residual"], 0.0))
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    assert_same_state(layer, state(twin))
