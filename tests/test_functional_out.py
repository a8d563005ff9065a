"""`batch_norm(..., out=)`: the same values in memory that is there, and no surprise for who needs what was in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import regimes
from batchnorm.functional import batch_norm
from batchnorm.kernels import native, use_backend
from cases import Case

BACKENDS = ["eager", "native"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and (refusal := native.refusal(torch.zeros(1, 1))):
        pytest.skip(refusal)
    return str(request.param)


def _arguments(case: Case) -> dict[str, torch.Tensor]:
    names = ("x", "residual", "running_mean", "running_var", "weight", "bias")
    return {name: tensor.detach().clone() for name, tensor in case.inputs().items() if name in names}


def _clone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("layout", regimes.LAYOUTS)
@pytest.mark.parametrize("where", ["x", "residual", "elsewhere", "another layout"])
@pytest.mark.parametrize("training", [False, True])
def test_the_same_values_wherever_they_go(backend: str, layout: str, where: str, training: bool) -> None:
    given = _arguments(Case(shape=(3, 35, 5, 7), layout=layout, residual=True))
    options = {"training": training, "activation": "relu"}
    with use_backend(backend):
        expected = batch_norm(**_clone(given), **options)
        tensors = given
        elsewhere = torch.full_like(expected, torch.nan)
        out = {
            "x": tensors["x"], "residual": tensors["residual"], "elsewhere": elsewhere,
            "another layout": torch.full(expected.shape[::-1], torch.nan).permute(3, 2, 1, 0),
        }[where]  # fmt: skip
        y = batch_norm(**tensors, **options, out=out)
    assert y is out
    assert torch.equal(y, expected)


def test_nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    if refusal := native.refusal(torch.zeros(1, 1)):
        pytest.skip(refusal)
    given = _arguments(Case(shape=(4, 8, 5, 5), residual=True))
    monkeypatch.setattr(native._native, "normalize", lambda *_: pytest.fail("a new tensor was made"))
    with use_backend("native"):
        batch_norm(**given, out=given["residual"])


@pytest.mark.parametrize("shift", [1, 8])
def test_views_that_overlap_in_part(backend: str, shift: int) -> None:
    memory = torch.randn(40 + shift, 6)
    x, out = memory[:40], memory[shift:]
    statistics = torch.randn(6), torch.rand(6) + 0.5
    with use_backend(backend):
        expected = batch_norm(x.clone(), *statistics)
        batch_norm(x, *statistics, out=out)
    assert torch.equal(out, expected)


def test_a_graph_that_has_saved_the_tensor_notices(backend: str) -> None:
    w = torch.randn(4, 3, requires_grad=True)
    x = w.exp()  # its derivative is its value
    with torch.no_grad(), use_backend(backend):
        batch_norm(x, torch.zeros(3), torch.ones(3), out=x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_traced_it_is_a_copy() -> None:
    x, statistics = torch.randn(4, 3, 5), (torch.randn(3), torch.rand(3) + 0.5)

    def call(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return batch_norm(x, *statistics, activation="relu", out=out)

    out = torch.empty_like(x)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, out), batch_norm(x, *statistics, activation="relu"))
    assert torch.equal(out, batch_norm(x, *statistics, activation="relu"))


def test_bad_input_is_one_clear_error() -> None:
    x, statistics = torch.randn(4, 3, 5), (torch.zeros(3), torch.ones(3))
    for out in (torch.empty(4, 3, 6), torch.empty(4, 3, 5).double(), torch.empty(4, 3, 5, device="meta")):
        with pytest.raises(ValueError, match=r"out must be a tensor of shape \(4, 3, 5\)"):
            batch_norm(x, *statistics, out=out)
    with pytest.raises(TypeError, match=r"out must be a torch\.Tensor; got ndarray"):
        batch_norm(x, *statistics, out=x.numpy())
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="where a gradient is needed"):
        batch_norm(x, *statistics, weight, out=x)
    with pytest.raises(RuntimeError):  # torch's own words
        batch_norm(x, *statistics, out=torch.empty(1, 3, 5).expand(4, 3, 5))


@pytest.mark.parametrize("name", ["x", "residual"])
@pytest.mark.parametrize("shift", [-64, -1, 0, 1, 64, 2 * 64 * 40])
def test_out_may_share_memory_without_sharing_a_storage(backend: str, name: str, shift: int) -> None:
    """Two NumPy views of one buffer become two storages; only addresses show that ``out`` reaches into an input."""
    size = 64 * 40
    buffer = np.random.default_rng(0).standard_normal(5 * size).astype(np.float32)
    given = _arguments(Case(shape=(64, 8, 5), residual=True))
    given[name] = torch.from_numpy(buffer[2 * size : 3 * size]).view(64, 8, 5)
    out = torch.from_numpy(buffer[2 * size + shift : 3 * size + shift]).view(64, 8, 5)
    assert out.untyped_storage().data_ptr() != given[name].untyped_storage().data_ptr() or shift == 0
    with use_backend(backend):
        expected = batch_norm(**_clone(given))
        assert torch.equal(batch_norm(**given, out=out), expected)
