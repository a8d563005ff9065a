"""`batchnorm fold`: what is written, and that no file runs code."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import batchnorm
from batchnorm.lab import cli
from batchnorm.tools.program import load_program

FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2),
                         nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 144, 5), nn.BatchNorm1d(5))

def number():
    return 3

def broken():
    raise OSError("no such weights")

def plain():
    return nn.Linear(2, 2)
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A factory on the path, and the model that it makes with other weights."""
    name = f"factory_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace = {}
    exec(FACTORY, namespace)
    built = namespace["build"]()
    torch.manual_seed(1)
    for tensor in built.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    yield name, built.eval()
    sys.modules.pop(name, None)


X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_in_and_out(model, suffix, capsys):
    name, built = model
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(built.state_dict(), f"in{suffix}")
    assert cli.main(["fold", f"{name}:build", "--weights", f"in{suffix}", "--out", f"folded{suffix}"]) == 0
    printed = capsys.readouterr().out
    assert "folded into 3" in printed
    assert printed.endswith(f"folded: folded{suffix}\n")
    load = safetensors.torch.load_file if suffix == ".safetensors" else torch.load
    folded = batchnorm.fold(sys.modules[name].build().eval())
    folded.load_state_dict(load(f"folded{suffix}"))
    torch.testing.assert_close(folded(X), built(X), rtol=1e-4, atol=1e-4)
    assert not list(Path().glob("tmp*"))


def test_programs_in_and_out(model, capsys):
    name, built = model
    torch.save(built.state_dict(), "in.pt")
    arguments = ["--weights", "in.pt", "--shape", "2", "3", "8", "8"]
    assert cli.main(["fold", f"{name}:build", *arguments, "--out", "folded.pt2"]) == 0
    torch.testing.assert_close(load_program("folded.pt2").module()(X), built(X), rtol=1e-4, atol=1e-4)
    batch = torch.export.Dim("batch", min=2)
    torch.export.save(torch.export.export(built, (X,), dynamic_shapes=({0: batch},)), "in.pt2")
    assert cli.main(["fold", "in.pt2", "--out", "out.pt2"]) == 0
    assert "folded into 6" in capsys.readouterr().out
    program = load_program("out.pt2")
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(x), built(x), rtol=1e-4, atol=1e-4)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def _evil_program(built):
    """An exported program whose example inputs run code when torch.export.load reads them."""
    torch.export.save(torch.export.export(built, (X,)), "good.pt2")
    with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("evil.pt2", "w") as evil:
        for name in good.namelist():
            content = good.read(name)
            if "sample_inputs" in name:
                torch.save(((Evil(),), {}), "inputs.pt")
                content = Path("inputs.pt").read_bytes()
            evil.writestr(name, content)


def test_no_file_runs_code(model, capsys):
    name, built = model
    torch.save({"state_dict": built.state_dict(), "optimizer": Evil()}, "evil.pt")
    Path("evil.pth").write_bytes(pickle.dumps(Evil()))
    for weights in ("evil.pt", "evil.pth"):
        assert cli.main(["fold", f"{name}:build", "--weights", weights, "--out", "folded.pt"]) == 2
        assert "holds no tensors that can be read without running code" in capsys.readouterr().err
    _evil_program(built)
    assert cli.main(["fold", "evil.pt2", "--out", "folded.pt2"]) == 2
    assert "without running code" in capsys.readouterr().err
    assert not Path("ran").exists()
    assert name not in sys.modules  # the weights are read before any code of the model runs
    # The danger is real: torch itself runs it.
    subprocess.run(
        [sys.executable, "-c", "import torch; torch.export.load('evil.pt2')"], capture_output=True, check=False
    )
    assert Path("ran").exists()


def test_bad_input_is_one_line_and_nothing_is_written(model, capsys, monkeypatch):
    name, _ = model
    torch.save(nn.Linear(2, 2).state_dict(), "other.pt")
    torch.save([1, 2], "list.pt")
    Path("text.safetensors").write_text("no tensors")
    Path("text.pt2").write_text("no archive")
    before = sorted(path.name for path in Path().iterdir())
    for arguments, message in [
        ([f"{name}:build", "--weights", "other.pt"], "is of another architecture than"),
        ([f"{name}:build", "--weights", "other.pt"], "it lacks 0.weight, 1.bias, 1.num_batches_tracked and 17 more"),
        ([f"{name}:build", "--weights", "list.pt"], "must hold a state_dict, tensors by name; it holds list"),
        ([f"{name}:build", "--weights", "text.safetensors"], "holds no tensors that can be read"),
        ([f"{name}:build", "--weights", "none.pt"], "none.pt, which is not there"),
        ([f"{name}:build", "--weights", "weights.bin"], "must end in .safetensors, .pt, .pth"),
        ([f"{name}:buidl"], "did you mean 'build'?"),
        (["nowhere_at_all:build"], "No module named 'nowhere_at_all'"),
        (["build"], "must be package.module:factory or a .pt2 file; got 'build'"),
        ([f"{name}:number"], "must give a torch.nn.Module; it gave int"),
        ([f"{name}:broken"], "cannot be made: OSError: no such weights"),
        ([f"{name}:plain"], "this Linear has none"),
        ([f"{name}:build", "--shape", "2", "4", "8", "8"], "could not be folded"),
        ([f"{name}:build", "--shape", "0"], "--shape must be positive numbers"),
        (["text.pt2", "--out", "x.pt2"], "is no exported program"),
        (["none.pt2", "--out", "x.pt2"], "none.pt2 is not there"),
        (["text.pt2"], "pass --out only"),
        ([f"{name}:build", "--out", "folded.onnx"], "--out must end in"),
        ([f"{name}:build", "--out", "nowhere/folded.pt"], "which is no directory"),
        ([f"{name}:build", "--out", "folded.pt2"], "Try --shape 1 3 224 224"),
    ]:
        out = [] if "--out" in arguments else ["--out", "folded.pt"]
        assert cli.main(["fold", *arguments, *out]) == 2, arguments
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err
        assert printed.err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir() if path.name != "__pycache__") == before
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert cli.main(["fold", f"{name}:build", "--out", "folded.safetensors"]) == 2
    assert "pip install 'batchnorm[safetensors]'" in capsys.readouterr().err
