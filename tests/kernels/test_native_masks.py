"""Masks in the compiled kernels: what they hide is never read into a result, and changes no bit of what they show."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import oracle
import regimes
from batchnorm.kernels import native
from batchnorm.kernels.interface import WHOLE_BATCH, Epilogue, Reduction, Running, Statistics
from cases import Case

pytestmark = pytest.mark.skipif(
    native.refusal(torch.zeros(1, 1)) is not None, reason=str(native.refusal(torch.zeros(1, 1)))
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _lengths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The first places of each sample, none of the second one, all of the third one."""
    positions = math.prod(shape[2:])
    lengths = torch.randint(1, positions + 1, (shape[0], 1), generator=generator)
    lengths[1], lengths[2] = 0, positions
    return (torch.arange(positions) < lengths).view(shape[0], 1, *shape[2:])


def _scattered(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape[0], 1, *shape[2:], generator=generator) < 0.6


def _blocks(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Runs of 1 to 40 places: whole vectors let through or hidden, with ends anywhere."""
    size = shape[0] * math.prod(shape[2:])
    runs = torch.randint(1, 40, (size,), generator=generator)
    return (torch.repeat_interleave(torch.arange(size) % 2, runs)[:size] == 0).view(shape[0], 1, *shape[2:])


MASKS = {"lengths": _lengths, "scattered": _scattered, "blocks": _blocks}

#: Dense rows; small planes; pieces across planes; planes in pieces; more rows than a part has.
SHAPES = [(40, 35), (5, 6, 5, 7), (4, 33, 300), (3, 2, 70, 71), (6, 5, 40, 25)]


def _generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _hidden(x: Tensor, mask: Tensor, value: float = torch.nan) -> Tensor:
    """``x`` with one value at the places that a mask hides, laid out as before."""
    return torch.empty_like(x).copy_(torch.where(mask, x, value))


def _results(x: Tensor, dy: Tensor, reduction: Reduction, epilogue: Epilogue) -> dict[str, Tensor]:
    y, statistics = native.forward(x, reduction, epilogue, 1e-5)
    gradients = native.backward(dy, x, statistics, reduction, epilogue, 1e-5)
    results = {"y": y, **statistics._asdict(), **gradients._asdict()}
    collected = native.collect(x, reduction)
    sums = native.reduce(dy, x, collected, reduction, epilogue, 1e-5)
    dx, dresidual = native.apply(dy, x, collected, sums, reduction, epilogue, 1e-5)
    halves = {"y": native.normalize(x, collected, reduction, epilogue, 1e-5), "dx": dx, "dresidual": dresidual}
    for name, got in {**halves, **collected._asdict()}.items():
        torch.testing.assert_close(got, results[name], rtol=0, atol=0, equal_nan=True)
    return results | sums._asdict()


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
@pytest.mark.parametrize("values", ["normal", "mean_1e5"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_calls_against_the_reference(target: str, dtype: torch.dtype, values: str, layout: str) -> None:
    """NaN at hidden places of x, dy and residual; statistics of what the mask shows; exact zeros elsewhere."""
    if dtype == torch.float16 and values in regimes.NEEDS_WIDE_RANGE:
        pytest.skip("float16 cannot hold these values")
    activations = iter(["silu", None, "relu"] * len(SHAPES))
    for shape in SHAPES:
        for draw in MASKS.values():
            if draw is _lengths and len(shape) == 2:
                continue
            activation = next(activations)
            mask = draw(shape, _generator())
            inputs = Case(values, shape, layout, dtype, activation=activation, residual=activation != "relu").inputs()
            x, dy, residual, weight, bias = (inputs[name] for name in ("x", "dy", "residual", "weight", "bias"))
            answers = oracle.ask(
                x, dy, weight=weight, bias=bias, residual=residual, activation=activation, mask=mask, kept=mask
            )
            x_seen, dy_seen = _hidden(x, mask), _hidden(dy, mask)
            residual_seen = None if residual is None else _hidden(residual, mask, torch.inf)
            epilogue = Epilogue(weight, bias, residual_seen, activation, mask)
            got = _results(x_seen, dy_seen, Reduction(mask=mask), epilogue)
            for name in ("y", "dx", "dresidual", "dweight", "dbias"):
                if got[name] is not None:
                    answers[name].check(name, got[name])
            for name in ("y", "dx", "dresidual"):
                if got[name] is not None:
                    assert not got[name].masked_select(~mask).any()
            for name in ("mean", "var"):
                answers[name].check(name, got[name][0])
            assert got["count"].item() == mask.sum().item()
            if values == "normal":  # zeros that count as data, as without a mask
                padded = native.forward(_hidden(x, mask, 0.0), WHOLE_BATCH, epilogue, 1e-5)[0]
                assert answers["y"].misses(padded)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_statistics_and_outputs_have_masks_of_their_own(target: str, dtype: torch.dtype, layout: str) -> None:
    for shape in SHAPES:
        members, kept = _scattered(shape, _generator(1)), _blocks(shape, _generator(2))
        every = torch.ones_like(kept)
        inputs = Case("normal", shape, layout, dtype, activation="silu", residual=True).inputs()
        x, dy, residual, weight, bias = (inputs[name] for name in ("x", "dy", "residual", "weight", "bias"))
        for mask, keep in ((members, kept), (members, None), (None, kept)):
            answers = oracle.ask(
                *(x, dy),
                weight=weight,
                bias=bias,
                residual=residual,
                activation="silu",
                mask=every if mask is None else mask,
                kept=every if keep is None else keep,
            )
            got = _results(x, dy, Reduction(mask=mask), Epilogue(weight, bias, residual, "silu", keep))
            for name in ("y", "dx", "dresidual", "dweight", "dbias"):
                answers[name].check(name, got[name])
            hidden = ~(every if keep is None else keep)
            assert not got["y"].masked_select(hidden).any()
            untouched = hidden & ~(every if mask is None else mask)
            assert not got["dx"].masked_select(untouched).any()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_padding_changes_no_bit(target: str, dtype: torch.dtype, layout: str) -> None:
    """Also where planes get longer than a piece, and where there are more samples."""
    for shape in ((4, 3, 9), (5, 35, 130), (3, 2, 1500), (2, 33, 20, 20), (3, 5, 60, 61)):
        mask = (_lengths if len(shape) == 3 and shape[0] > 2 else _blocks)(shape, _generator())
        case = Case("mean_1e4", shape, "contiguous", dtype, activation="silu", residual=True)
        inputs = case.inputs()
        found = []
        for more in (0, 1, 13, 700):
            padding = [0, more] if len(shape) == 3 else [0, more % 29, 0, more % 31]
            tensors = [inputs[name] for name in ("x", "dy", "residual")]
            padded = [torch.nn.functional.pad(t, padding, value=torch.nan) for t in tensors]
            shown = torch.nn.functional.pad(mask, padding, value=False)
            if more == 13:  # a sample without a valid value, too
                padded = [torch.cat([t[:1].clone().fill_(torch.inf), t]) for t in padded]
                shown = torch.cat([torch.zeros_like(shown[:1]), shown])
            x, dy, residual = (regimes.LAYOUTS[layout](t) for t in padded)
            epilogue = Epilogue(inputs["weight"], inputs["bias"], residual, "silu", shown)
            got = _results(x, dy, Reduction(mask=shown), epilogue)
            for name in ("y", "dx", "dresidual"):
                got[name] = got[name].movedim(1, -1)[shown.squeeze(1)]
            found.append(got)
        for other in found[1:]:
            _equal(found[0], other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_is_the_same_as_compacted_to_the_bit(target: str, dtype: torch.dtype) -> None:
    """Rows as the (M, C) table of what the mask shows, planes as one sample of M places."""
    for layout in ("contiguous", "channels_last"):
        for shape in ((5, 6, 5, 7), (4, 33, 300), (3, 2, 70, 71), (9, 40, 40, 25)):
            mask = _scattered(shape, _generator())
            inputs = Case("mean_1e4", shape, layout, dtype, residual=True).inputs()
            x, dy, residual = (inputs[name] for name in ("x", "dy", "residual"))
            seen = [_hidden(t, mask) for t in (x, dy, residual)]
            after = (inputs["weight"], inputs["bias"])
            masked = _results(*seen[:2], Reduction(mask=mask), Epilogue(*after, seen[2], "relu", mask))
            tables = [t.movedim(1, -1)[mask.squeeze(1)] for t in (x, dy, residual)]
            if layout == "contiguous":
                tables = [t.movedim(-1, 0).contiguous().unsqueeze(0) for t in tables]
            whole = _results(*tables[:2], WHOLE_BATCH, Epilogue(*after, tables[2], "relu"))
            for name in ("y", "dx", "dresidual"):
                shown = masked[name].movedim(1, -1)[mask.squeeze(1)]
                expected = whole[name].squeeze(0).movedim(0, -1) if layout == "contiguous" else whole[name]
                assert torch.equal(shown, expected), name
                del masked[name]
            _equal(masked, whole)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_each_group_has_its_own_part_of_the_mask(target: str, layout: str) -> None:
    """One call is a loop over chunks, to the bit; a group without a value is 0 and has NaN statistics."""
    for shape in ((7, 5, 6, 6), (7, 40, 90), (7, 2, 50, 50)):
        for dtype in (torch.float32, torch.bfloat16):
            mask = _blocks(shape, _generator())
            mask[4:6] = False
            inputs = Case("normal", shape, layout, dtype, activation="silu", residual=True).inputs()
            x, dy, residual = (_hidden(inputs[name], mask) for name in ("x", "dy", "residual"))
            after = (inputs["weight"], inputs["bias"])
            whole = _results(x, dy, Reduction(2, mask), Epilogue(*after, residual, "silu", mask))
            parts = []
            for begin in (0, 2, 4, 6):
                part = slice(begin, begin + 2)
                epilogue = Epilogue(*after, residual[part], "silu", mask[part])
                parts.append(_results(x[part], dy[part], Reduction(mask=mask[part]), epilogue))
            for name in ("dweight", "dbias"):
                del whole[name]
            _equal(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})
            assert whole["count"][2] == 0
            assert whole["mean"][2].isnan().all()
            assert whole["var"][2].isnan().all()
            for name in ("y", "dx", "dresidual"):
                assert not whole[name][4:6].any()


def test_a_batch_without_a_valid_value_leaves_everything_alone(target: str) -> None:
    for layout in ("contiguous", "channels_last"):
        x, dy = (regimes.LAYOUTS[layout](torch.full((3, 4, 5), torch.nan)) for _ in range(2))
        mask = torch.zeros(3, 1, 5, dtype=torch.bool)
        weight, bias = torch.ones(4), torch.ones(4)
        got = _results(x, dy, Reduction(mask=mask), Epilogue(weight, bias, x, "silu", mask))
        for name in ("y", "dx", "dresidual", "dweight", "dbias", "sum_dy", "sum_dy_xhat", "count"):
            assert not got[name].any(), name
        running = torch.full((4,), 2.0), torch.full((4,), 3.0)
        buffers = Running(*running, torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.long))
        native.update(buffers, Statistics(got["mean"], got["var"], got["count"]), 0.1, False)
        assert buffers.tracked == buffers.skipped == 0
        assert running[0].tolist() == [2] * 4
        assert running[1].tolist() == [3] * 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_stay_in_their_channel(target: str, bad: float) -> None:
    for layout in ("contiguous", "channels_last"):
        shape = (3, 6, 40)
        mask = _scattered(shape, _generator())
        mask[1, 0, 7] = True
        inputs = Case("normal", shape, layout).inputs()
        clean = _results(inputs["x"], inputs["dy"], Reduction(mask=mask), Epilogue(mask=mask))
        inputs["x"][1, 4, 7] = bad
        got = _results(inputs["x"], inputs["dy"], Reduction(mask=mask), Epilogue(mask=mask))
        others = [0, 1, 2, 3, 5]
        assert torch.equal(got["dx"][:, others], clean["dx"][:, others])
        assert torch.equal(got["mean"][0, others], clean["mean"][0, others])
        assert got["var"][0, 4].isnan()
        assert not got["y"].masked_select(~mask).any()
        assert not got["dx"].masked_select(~mask).any()


@pytest.mark.parametrize("shape", [(8, 8, 64, 64), (64, 64, 40), (640, 100), (9, 3, 3000)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_for_any_number_of_threads_and_past_the_caches(shape: tuple[int, ...], layout: str) -> None:
    former_threads, former_size = torch.get_num_threads(), None
    mask = _blocks(shape, _generator())
    inputs = Case("mean_1e4", shape, layout, residual=True).inputs()
    epilogue = Epilogue(inputs["weight"], inputs["bias"], inputs["residual"], "relu", mask)
    try:
        for size in (None, 3):
            results = []
            for threads, streams in ((1, 2**60), (2, 2**60), (3, 0), (8, 2**60)):
                torch.set_num_threads(threads)
                limit = native._native.stream_from(streams)
                former_size = limit if former_size is None else former_size
                results.append(_results(inputs["x"], inputs["dy"], Reduction(size, mask), epilogue))
            for other in results[1:]:
                _equal(results[0], other)
    finally:
        torch.set_num_threads(former_threads)
        if former_size is not None:
            native._native.stream_from(former_size)


def test_what_cannot_be_read_in_place_is_copied() -> None:
    """A mask of any strides; an x that is copied, with a mask that is not."""
    mask = _scattered((4, 1, 6), _generator())
    inputs = Case(shape=(4, 5, 6)).inputs()
    x, dy = inputs["x"], inputs["dy"]
    expected = _results(x, dy, Reduction(mask=mask), Epilogue(mask=mask))
    strided = torch.stack([mask, ~mask], -1)[..., 0]
    assert not strided.is_contiguous()
    _equal(_results(x, dy, Reduction(mask=strided), Epilogue(mask=strided)), expected)
    every_second = regimes.LAYOUTS["every_second"](x)
    assert not native._native.walkable(every_second)
    got = _results(every_second, dy, Reduction(2, mask), Epilogue(mask=strided))
    _equal(got, _results(x, dy, Reduction(2, mask), Epilogue(mask=mask)))
