"""``batchnorm diagnose`` on the command line: exit codes, files, one message for each bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from batchnorm.lab.cli import main

NETWORK = """
from torch import nn

def make(input_shape=(1, 8, 8), classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))

def needs(width):
    return nn.Linear(width, width)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "diagnosed_network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    from batchnorm.lab.data import load

    data = load("digits")
    x, y = data.train.fetch(torch.arange(len(data.train))), data.train.targets
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for i in range(0, len(x) - 63, 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[i : i + 64]), y[i : i + 64]).backward()
            optimizer.step()
    state = model.state_dict()
    save_file(state, "good.safetensors")
    torch.save(dict(model.named_parameters()), "parameters.pt")
    save_file({name: t for name, t in state.items() if name != "1.weight"}, "short.safetensors")
    return tmp_path


def test_a_good_checkpoint(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["diagnose", "diagnosed_network:make", "--weights", "good.safetensors", "--data", "digits"]
    assert main([*command, "--out", "good"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Batch normalization is not the cause")
    assert "good/diagnosis.html" in out
    assert json.loads(Path("good/diagnosis.json").read_text())["verdict"] == "not batch normalization"


def test_a_checkpoint_without_buffers_and_its_page_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["diagnose", "diagnosed_network:make", "--weights", "parameters.pt", "--data", "digits"]
    assert main([*command, "--out", "lost"]) == 1
    assert "the checkpoint lacks 2 buffers" in capsys.readouterr().out
    page = Path("lost/diagnosis.html")
    former = page.read_bytes()
    page.unlink()
    assert main(["report", "lost"]) == 0
    assert page.read_bytes() == former


def test_without_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "diagnosed_network:make", "--out", "static"]) == 0
    assert "pass a loader" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet20"], "give --data"),
        (["diagnosed_network:nothing"], "has no 'nothing'"),
        (["diagnosed_network:needs"], "it was called with nothing"),
        (["diagnosed_network:make", "--weights", "none.pt"], "cannot be read as a checkpoint"),
        (["diagnosed_network:make", "--weights", "diagnosed_network.py"], "must hold a state_dict"),
        (["diagnosed_network:make", "--weights", "short.safetensors"], "it lacks 1.weight"),
        (["diagnosed_network:make", "--data", "nothing"], "data must be one of"),
        (["diagnosed_network:make", "--data", "digits", "--split", "validation"], "have no validation part"),
        (["diagnosed_network:make", "--data", "digits", "--batch-size", "0"], "batch_size must be at least 1"),
        (["diagnosed_network:make", "--data", "digits", "--batches", "0"], "batches must be a positive integer"),
    ],
)
def test_bad_input_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["diagnose", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("batchnorm: error: ")
    assert error.count("\n") == 1
    assert words in error
