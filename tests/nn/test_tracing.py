"""``torch.compile(fullgraph=True)`` and ``torch.export`` take the layers, in both modes, with the same results."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

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


def _namespaces(program: torch.export.ExportedProgram | torch.jit.ScriptModule) -> set[str]:
    if isinstance(program, torch.export.ExportedProgram):
        targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
        return {t.namespace for t in targets if isinstance(t, torch._ops.OpOverload)}  # torch's type of these
    return {node.kind().split("::")[0] for node in program.inlined_graph.nodes()}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_exported_and_traced_programs_hold_standard_operators_only(training: bool) -> None:
    """Programs with operators of ours would load only where this package is; activations must not become constants."""
    model = _Block(0.1).train(training)
    exported = torch.export.export(copy.deepcopy(model), (_input(),))
    traced = torch.jit.trace(copy.deepcopy(model), (_input(),), check_trace=False)
    assert _namespaces(exported) == {"aten"}
    assert _namespaces(traced) <= {"aten", "prim"}
    x = _input() * 2 + 1
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(exported.module()(x), expected)
    torch.testing.assert_close(traced(x), expected)
    if not training:
        names = {n.target.name() for n in exported.graph.nodes if n.op == "call_function"}
        assert "aten::batch_norm" in names  # what quantization and folding tools look for


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # no TracerWarning: nothing was read
def test_saved_programs_load_without_this_package(tmp_path: Path) -> None:
    model, x = _Block(0.1).eval(), _input()
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    torch.jit.trace(model, (x,)).save(str(tmp_path / "model.pt"))
    torch.save((x, model(x).detach()), tmp_path / "values.pt")
    code = (
        "import sys, torch; x, y = torch.load('values.pt'); sys.modules['batchnorm'] = None\n"
        "torch.testing.assert_close(torch.export.load('model.pt2').module()(x), y)\n"
        "torch.testing.assert_close(torch.jit.load('model.pt')(x), y)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)


@pytest.mark.filterwarnings("ignore")  # the exporters warn about themselves
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
def test_onnx(dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = _Block(0.1).eval(), _input()
    torch.onnx.export(model, (x,), str(tmp_path / "model.onnx"), dynamo=dynamo)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    (name,) = (i.name for i in session.get_inputs())
    torch.testing.assert_close(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), model(x).detach())
