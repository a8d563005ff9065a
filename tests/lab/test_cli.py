"""The command line: exit codes, one-line complaints, and what a pipe gets."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import batchnorm.lab.compare
from batchnorm.lab import cli
from batchnorm.lab.compare.artefacts import read_run
from batchnorm.lab.compare.config import CompareConfig
from batchnorm.lab.compare.terminal import training_bar
from lab.compare.synthetic import ENVIRONMENT, config, write_run, write_trial

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
        (["compare", "--data", "imagenet"], "invalid choice 'imagenet' for argument '--data'"),
        (["compare", "--seeds", "0"], "seeds must be at least 1; got 0"),
        (["frobnicate"], "frobnicate"),
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
    assert "Exit codes: 0 done; 1" in done.stdout


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


def test_report_in_a_pipe_prints_the_tables_and_the_page_and_no_control_codes(tmp_path):
    path = write_run(tmp_path / "run", evaluations=5)
    done = run("report", str(path), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "Every arm at every learning rate" in done.stdout
    assert done.stdout.splitlines()[-1] == f"report: {path / 'report.html'}"
    assert (path / "summary.json").is_file()


@pytest.fixture
def training(monkeypatch):
    """Replace the training side: ``compare`` then writes what the test wants, without torch."""
    side = SimpleNamespace(act=lambda _writer: None)

    def compare(_config, _dataset, writer, on_event):
        on_event(SimpleNamespace(trials_done=0, trials=2, step=5, steps=10, lr=0.1, seed=0, accuracy={"none": 0.5}))
        side.act(writer)
        writer.finish("finished")

    described = {key: value for key, value in config().items() if key != "command"}
    fakes = {
        "data": SimpleNamespace(load=lambda _name, _data_dir: None),
        "environment": SimpleNamespace(environment=lambda _threads: ENVIRONMENT),
        "trainer": SimpleNamespace(compare=compare, describe=lambda _config, _dataset: described),
    }  # fmt: skip
    for name, fake in fakes.items():
        room = batchnorm.lab.compare if name == "trainer" else batchnorm.lab
        monkeypatch.setitem(sys.modules, f"{room.__name__}.{name}", fake)
        monkeypatch.setattr(room, name, fake, raising=False)
    return side


def test_compare_ends_with_the_report_and_exit_0(tmp_path, training, capsys):
    def act(writer):
        write_trial(writer, "none", [0.4, 0.8])
        write_trial(writer, "batch", [0.8, 0.9])

    training.act = act
    out = tmp_path / "run"
    assert cli.main(["compare", "--lr", "0.1", "--seeds", "1", "--steps", "20", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("2 trials (2 arms x 1 learning rate x 1 seed), 20 steps each, into ")
    assert printed.out.endswith(f"report: {out / 'report.html'}\n")
    assert "2.0 times fewer steps" in printed.out
    assert printed.err == ""
    command = read_run(out).config["command"]
    assert command.startswith(
        "batchnorm compare --data digits --model mlp --norm none batch --lr 0.1 --seeds 1 --steps 20"
    )
    assert "--out" not in command


def test_a_diverged_arm_is_named_and_exit_3(tmp_path, training, capsys):
    def act(writer):
        write_trial(writer, "none", [0.4], status="diverged")
        write_trial(writer, "batch", [0.8])

    training.act = act
    assert cli.main(["compare", "--out", str(tmp_path / "run")]) == 3
    assert capsys.readouterr().err == (
        "batchnorm: diverged: without BN at learning rate 0.1, 1 of 1 trial (seed 0: for the test: diverged)\n"
    )
    assert (tmp_path / "run/report.html").is_file()


def test_ctrl_c_keeps_what_was_recorded_and_exit_130(tmp_path, training, capsys):
    def act(writer):
        write_trial(writer, "none", [0.4], status="interrupted")
        raise KeyboardInterrupt

    training.act = act
    assert cli.main(["compare", "--out", str(tmp_path / "run")]) == 130
    printed = capsys.readouterr()
    assert f"report: {tmp_path / 'run/report.html'}" in printed.out
    assert printed.err == "batchnorm: interrupted; the report is made from what was recorded\n"


def test_an_unwritable_directory_stops_before_training(tmp_path, training, capsys):
    training.act = lambda _writer: pytest.fail("trained")
    (tmp_path / "file").write_text("")
    assert cli.main(["compare", "--out", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err.startswith("batchnorm: error: cannot write the run to ")


def test_the_recorded_command_parses_back_into_the_same_settings():
    settings = CompareConfig(lr=(0.1, 1e-5), weight_std=0.05, data_dir=Path("with space"), threads=2).resolved()
    words = shlex.split(cli.command_line(settings))
    assert words[0] == "batchnorm"
    assert cli._parse(words[1:]) == settings


def test_the_bar_counts_steps_of_all_trials_on_a_terminal():
    file = io.StringIO()
    seen = []
    with training_bar(Console(file=file, force_terminal=True, width=100)) as advance:
        for done, step, seed in [(0, 0, 0), (0, 5, 0), (1, 7, 0), (2, 10, 0), (2, 0, 1), (2, 5, 1), (4, 10, 1)]:
            accuracy = {"none": 0.5, "batch": 0.75}
            advance(
                SimpleNamespace(trials_done=done, trials=4, step=step, steps=10, lr=0.1, seed=seed, accuracy=accuracy)
            )
            (bar,) = [cell.cell_contents for cell in advance.__closure__ if hasattr(cell.cell_contents, "tasks")]
            seen.append(bar.tasks[0].completed)
    assert seen == [0, 10, 17, 20, 20, 30, 40]
    assert "batch 75.0%" in file.getvalue()
