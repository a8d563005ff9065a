"""The command line: exit codes, one-line complaints, and what a pipe gets."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import batchnorm
from batchnorm.lab import cli
from batchnorm.lab.experiments.compare import CompareCommand, plan_of
from batchnorm.lab.training.settings import asked_command

SOURCE = Path(batchnorm.__file__).parents[1]


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "batchnorm", *arguments],
        capture_output=True, text=True, cwd=cwd, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "nowhere is not a run directory"),
        (["report"], "at least one run directory"),
        (["train", "--lr", "fast"], "--lr must be one FLOAT; got 'fast'; see batchnorm train --help"),
        (["compare", "--lr", "-1"], "lr must be a finite number above 0; got -1.0"),
        (["compare", "--lr", "fast"], "--lr"),
        (["compare", "--data", "imagenet"], "data must be one of"),
        (["compare", "--seeds", "0"], "seeds must be at least 1; got 0"),
        (["frobnicate"], "'frobnicate' is no command of batchnorm; the commands are compare, train"),
        (["trian"], "'trian' is no command of batchnorm; did you mean 'train'?"),
        (["train", "--model", "resnet2O"], "got 'resnet2O'; did you mean 'resnet20'?"),
        (["train", "--norm", "bach"], "got 'bach'; did you mean 'batch'?"),
        (
            ["compare", "--norm_momentm", "1"],
            "--norm-momentm is no flag of batchnorm compare; did you mean '--norm-mom",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, arguments, message):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("batchnorm: error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_models_lists_every_network_and_normalization(capsys):
    from batchnorm.lab.models import NORMS, names

    assert cli.main(["models"]) == 0
    said = capsys.readouterr().out
    assert all(f" {name} (" in said for name in (*names(), *NORMS))


def test_version_and_help(tmp_path):
    assert run("--version", cwd=tmp_path).stdout == f"batchnorm {batchnorm.__version__}\n"
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "compare   Train the same network with and without batch normalization" in done.stdout
    assert "  3         done and reported, but a run diverged" in done.stdout


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["models"], ["--version"]])
def test_a_reader_that_leaves_early_is_no_traceback(command):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "batchnorm", *command], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False,
            timeout=120, env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


def test_help_and_parsing_load_neither_torch_nor_matplotlib():
    code = (
        "import sys; from batchnorm.lab import cli; cli.main(['compare', '--help']); "
        "print({'matplotlib', 'torch'} & set(sys.modules) or 'light')"
    )
    before = "import sys, batchnorm; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    if (
        "True"
        in subprocess.run([sys.executable, "-c", before], capture_output=True, text=True, env=env, check=True).stdout
    ):
        code = code.replace(", 'torch'", "")  # the package itself brings it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.splitlines()[-1] == "light"


SMALL = [
    "--data",
    "two_moons",
    "--lr",
    "0.1",
    "1",
    "--seeds",
    "2",
    "--steps",
    "12",
    "--hidden",
    "8",
    "--evaluate-every",
    "4",
]


def test_compare_in_a_pipe_prints_the_tables_and_the_page_and_no_control_codes(tmp_path):
    done = run("compare", *SMALL, "--out", "run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "8 cells (2 seed x 2 lr x 2 norm), 8 to train, into run"
    assert lines[1].startswith("1/8  seed=0,lr=0.1,norm=none  finished, ")
    assert lines[-1] == "report: run/report.html"
    assert (tmp_path / "run/summary.json").is_file()
    again = run("report", "run", cwd=tmp_path)
    assert again.stdout.strip().splitlines()[-8:] == lines[-8:]
    # The same command on the same directory has nothing left to train; another is refused.
    assert run("compare", *SMALL, "--out", "run", cwd=tmp_path).stdout.startswith(
        "8 cells (2 seed x 2 lr x 2 norm), 0 to"
    )
    other = run("compare", *SMALL, "--batch-size", "30", "--out", "run", cwd=tmp_path)
    assert other.returncode == 2
    assert "run holds another plan: batch_size (was 60, now 30)" in other.stderr


def test_a_diverged_cell_is_named_and_exit_3(tmp_path, capsys):
    small = [*SMALL, "--norm", "none", "batch", "--lr", "0.1", "1e30"]
    assert cli.main(["compare", *small, "--out", str(tmp_path / "run")]) == 3
    assert "of 8 cells diverged: no normalization, lr 1e+30" in capsys.readouterr().err
    assert (tmp_path / "run/report.html").is_file()


def test_ctrl_c_keeps_what_was_recorded_makes_the_page_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    real, calls = torch.optim.SGD.step, []

    def step(*arguments, **settings):
        calls.append(1)
        if len(calls) == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **settings)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    out = str(tmp_path / "run")
    assert cli.main(["compare", *SMALL, "--out", out]) == 130
    printed = capsys.readouterr()
    assert f"report: {out}/report.html" in printed.out
    assert "4 cells of the plan did not run yet" in printed.out
    assert printed.err == f"batchnorm: interrupted; go on with batchnorm compare --resume {out}\n"
    assert cli.main(["compare", "--resume", out, "--steps", "3"]) == 2
    assert cli.main(["compare", "--resume", out]) == 0


def test_what_cannot_be_trained_or_written_stops_before_anything_is_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--out", str(tmp_path / "file" / "run")], "cannot write the run to "),
        (["--norm", "none", "batchnorm", "--out", str(tmp_path / "run")], "norm"),
        (["--model", "resnet21", "--out", str(tmp_path / "run")], "model must be"),
        (["--batch-size", "5000", "--out", str(tmp_path / "run")], "batch_size must be at most"),
    ):
        assert cli.main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_of_a_comparison_parses_back_into_the_same_plan(tmp_path):
    command = CompareCommand(
        lr=(0.1, 1e-5), weight_std=0.05, vary=(("norm_momentum", "0.1", "0.2"), ("width", "1", "2"))
    )
    words = shlex.split(asked_command("compare", command))
    assert words[:2] == ["batchnorm", "compare"]
    assert plan_of(cli._parse(words[1:])) == plan_of(command)
