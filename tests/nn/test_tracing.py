"""``torch.compile(fullgraph=True)`` and ``torch.export`` take the layers, in both modes, with the same results."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import batchnorm


class _Block(nn.Module):
    """Two layers as a model uses them: with a residual and an activation, and alone."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.first = batchnorm.BatchNorm2d(3, momentum=momentum, activation="relu")
        self.second = batchnorm.BatchNorm2d(3, momentum=momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x, x) * 2)


def _input(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, 5, 5, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile_fullgraph(momentum: float | None, training: bool) -> None:
    torch.compiler.reset()
    eager = _Block(momentum).train(training)
    compiled_model = copy.deepcopy(eager)
    compiled = torch.compile(compiled_model, fullgraph=True, backend="aot_eager")
    for batch in (4, 4, 7):
        results = []
        for run in (eager, compiled):
            x = _input(batch).requires_grad_()
            y = run(x)
            y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
            results.append((y, x.grad))
        torch.testing.assert_close(*results)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled_model.state_dict()[name], value)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_export_with_a_dynamic_batch(momentum: float | None, training: bool) -> None:
    model = _Block(momentum).train(training)
    exported = torch.export.export(
        copy.deepcopy(model), (_input(),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)
    )
    program = exported.module()
    for batch in (4, 9):
        torch.testing.assert_close(program(_input(batch)), model(_input(batch)))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(program.state_dict()[name], value)
