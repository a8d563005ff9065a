"""Which backend runs: chosen, forced, refused, explained."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import batchnorm
from batchnorm.kernels import eager, native, registry, use_backend


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite may run with BATCHNORM_BACKEND set; these tests are about the choice itself."""
    monkeypatch.setattr(registry, "_forced", None)


def test_explain_names_the_backend_and_the_tensor() -> None:
    explanation = batchnorm.explain(torch.zeros(2, 3, device="meta"))
    assert explanation.backend == "eager"
    assert not explanation.forced
    assert explanation.passed_over == {"native": "it computes on CPUs; the tensor is on meta"}
    assert str(explanation).splitlines() == [
        "(2, 3) torch.float32 on meta: backend 'eager' (the fastest that can)",
        "  not 'native': it computes on CPUs; the tensor is on meta",
    ]


def test_explain_says_target_threads_and_what_is_copied_first() -> None:
    if reason := native.refusal(torch.zeros(1, 1)):
        pytest.skip(reason)
    x = torch.zeros(4, 6, 5, 7)
    whole = batchnorm.explain(x)
    assert (whole.target, whole.threads, whole.copied) == (native.target(), torch.get_num_threads(), None)
    strided = batchnorm.explain(x.transpose(0, 3))
    assert strided.backend == "native"
    assert "contiguous planes" in strided.copied
    assert f"target {native.target()}" in str(strided)
    assert "copied first: " in str(strided)


def test_forced_backend_runs_and_the_former_choice_returns() -> None:
    x = torch.zeros(2, 3)
    with use_backend("eager"):
        assert batchnorm.explain(x).forced
        assert "asked for by name" in str(batchnorm.explain(x))
        assert registry.select(x) is eager
    assert not batchnorm.explain(x).forced


def test_unknown_backend_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"one of \['native', 'eager'\]; 'cudnn' is not"), use_backend("cudnn"):
        pass


def test_forced_backend_that_cannot_compute_raises_and_automatic_choice_falls_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Picky:
        target, copied = eager.target, eager.copied

        @staticmethod
        def refusal(x: torch.Tensor, *_: object) -> str | None:
            return "it wants four dimensions" if x.dim() != 4 else None

    monkeypatch.setattr(registry, "BACKENDS", ("picky", "eager"))
    monkeypatch.setitem(registry._loaded, "picky", Picky)
    x = torch.zeros(2, 3)
    assert registry.select(x) is eager
    assert batchnorm.explain(x).passed_over == {"picky": "it wants four dimensions"}
    assert "not 'picky': it wants four dimensions" in str(batchnorm.explain(x))
    assert batchnorm.explain(torch.zeros(1, 1, 1, 1)).backend == "picky"
    with use_backend("picky"), pytest.raises(ValueError, match=r"four dimensions.*Ask for another"):
        registry.select(x)


@pytest.mark.parametrize(("name", "code"), [("eager", 0), ("cudnn", 1)])
def test_environment_variable_forces_a_backend(name: str, code: int) -> None:
    program = "import torch, batchnorm; batchnorm.BatchNorm1d(3)(torch.randn(4, 3)); print('ran')"
    environment = {**os.environ, "BATCHNORM_BACKEND": name}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    if code:
        assert "must be one of ['native', 'eager']; 'cudnn' is not. Set BATCHNORM_BACKEND" in done.stderr
    else:
        assert done.stdout == "ran\n"
