"""The compiled targets, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchnorm.kernels import native, use_backend


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in native.targets():
        pytest.skip(f"this processor does not run {request.param}")
    former = native.target()
    native.set_target(request.param)
    with use_backend("native"):
        yield request.param
    native.set_target(former)
