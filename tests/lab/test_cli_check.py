"""`batchnorm check`: what is printed, and the exit code."""

from pathlib import Path

import pytest

from batchnorm.lab import cli

LEARNERS = Path(__file__).parents[1] / "checker" / "learners"


def test_right_answers_end_with_0(capsys):
    assert cli.main(["check", str(LEARNERS / "adapter.py"), str(LEARNERS / "numpy_layer.py")]) == 0
    printed = capsys.readouterr().out
    assert "adapter.py: 2 functions checked, all right" in printed
    assert "numpy_layer.py: 2 functions checked, all right" in printed


def test_a_mistake_ends_with_1(tmp_path, capsys):
    path = tmp_path / "wrong.py"
    path.write_text((LEARNERS / "adapter.py").read_text().replace("mask / keep_prob", "mask"))
    assert cli.main(["check", str(path)]) == 1
    assert "dropout-not-rescaled" in capsys.readouterr().out


def test_a_file_that_cannot_be_checked_ends_with_2(tmp_path, capsys):
    path = tmp_path / "wrong.py"
    path.write_text("def f(:\n")
    assert cli.main(["check", str(path)]) == 2
    assert "SyntaxError: invalid syntax (line 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.py"], "none.py is not there"),
        ([], "check needs at least one Python file"),
        ([str(LEARNERS / "adapter.py"), "--timeout", "0"], "time limit must be positive"),
        (["--timeout", "soon"], "see batchnorm check --help"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(arguments, message, capsys):
    assert cli.main(["check", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
