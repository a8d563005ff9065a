"""The checker on right answers of several styles, unknown mistakes, and files that crash, hang or make no sense."""

import re
import time
from pathlib import Path

import pytest

from batchnorm.checker import check, mistakes

LEARNERS = Path(__file__).parent / "learners"


@pytest.fixture
def answer(tmp_path):
    def write(text):
        path = tmp_path / "answer.py"
        path.write_text(text)
        return path

    return write


def edited(old, new, learner="course"):
    text = (LEARNERS / f"{learner}.py").read_text()
    assert old in text
    return text.replace(old, new)


FORWARD = """
import numpy as np

def batchnorm_forward(x, gamma, beta, bn_param):
    {line}
    return x, None
"""


@pytest.mark.parametrize(
    ("learner", "functions"),
    [
        ("course", 18),
        ("torch_static", 10),
        ("numpy_layer", 2),
        ("numpy_layer_own_eps", 2),
        ("torch_module", 2),
        ("adapter", 2),
    ],
)
def test_right_answers_pass(learner, functions):
    report = check(LEARNERS / f"{learner}.py")
    assert report.ok, str(report)
    assert len(report.findings) == functions
    assert not report.remarks


@pytest.mark.parametrize(
    ("learner", "words"),
    [
        (
            "course",
            [
                "the biased variance, as the courses",
                "weight of the old value",
                "probability of dropping",
                "lambda/(2m)",
            ],
        ),
        ("torch_static", ["the biased variance", "gradient 2 lambda W (EECS 498)"]),
        ("numpy_layer", ["the unbiased variance, as torch does", "weight of the new batch, as in torch"]),
        ("numpy_layer_own_eps", ["eps is 1e-06, and a user of the layer cannot change it"]),
        ("adapter", ["weight of the new batch", "keep_prob is the probability of keeping"]),
    ],
)
def test_the_convention_in_use_is_named(learner, words):
    text = " ".join(str(check(LEARNERS / f"{learner}.py")).split())
    for word in words:
        assert word in text


def test_a_declared_convention_is_held_to(answer):
    text = (LEARNERS / "numpy_layer.py").read_text() + '\nCHECK = {"momentum": "old"}\n'
    assert check(answer(text)).mistakes == ("batchnorm-momentum-reversed",)


def test_the_mistake_of_a_published_note_is_named_in_torch(answer):
    """`torch.var(x, unbiased=False)` without `dim=0`, once on a course notes page."""
    path = answer(edited("torch.var(x, dim=0, unbiased=False)", "torch.var(x, unbiased=False)", "torch_static"))
    assert check(path).mistakes == ("batchnorm-var-over-everything",)


def test_a_mistake_in_a_layer_with_state(answer):
    path = answer(edited("self.x_hat * self.dgamma / m", "0", "numpy_layer"))
    report = check(path)
    assert report.mistakes == ("batchnorm-dx-var-term-dropped",)
    assert report.findings[-1].function == "BatchNorm.backward"


def test_float32_answers_are_judged_to_their_digits(answer):
    right = edited(
        "    N, D = x.shape\n    running_mean", "    x = x.astype(np.float32)\n    N, D = x.shape\n    running_mean"
    )
    right = right.replace("dtype=x.dtype", "dtype=np.float32").replace('bn_param["eps"]', 'float(bn_param["eps"])')
    right = right.replace(
        "return out, cache\n\n\ndef batchnorm_backward(",
        "return out.astype(np.float32), cache\n\n\ndef batchnorm_backward(",
    )
    report = check(answer(right))
    assert report.ok, str(report)
    assert "computes in float32" in str(report)
    wrong = right.replace("dgamma = np.sum(dout * x_norm", "dgamma = np.sum(dout * x")
    assert check(answer(wrong)).mistakes == ("batchnorm-dgamma-uses-x",)


def test_two_mistakes_together(answer):
    text = edited("np.mean(xmu**2, axis=0)", "np.var(x)").replace(
        "np.sqrt(running_var + eps)", "(np.sqrt(running_var) + eps)"
    )
    report = check(answer(text.split("def spatial")[0]))
    assert report.mistakes == ("batchnorm-var-over-everything", "batchnorm-eps-outside-at-test-time")
    assert "Two mistakes together explain it." in str(report)


def test_a_right_backward_of_a_wrong_forward_is_not_blamed(answer):
    text = edited("np.mean(xmu**2, axis=0)", "np.var(x, axis=0) * 1.0").replace(
        "sqrtvar = np.sqrt(var + eps)", "sqrtvar = np.sqrt(var + 2 * eps)"
    )
    text = text.replace("(var + eps)", "(var + 2 * eps)").split("def spatial")[0]
    kinds = {finding.function: finding.kind for finding in check(answer(text)).findings}
    assert kinds == {
        "batchnorm_forward": "unknown",
        "batchnorm_backward": "follows",
        "batchnorm_backward_alt": "follows",
    }


def test_an_unknown_mistake_shows_the_first_wrong_index(answer):
    text = edited(
        "    return out, cache\n\n\ndef batchnorm_backward(",
        "    out[2, 1] += 0.25\n    return out, cache\n\n\ndef batchnorm_backward(",
    )
    report = check(answer(text.split("def batchnorm_backward")[0]))
    (finding,) = report.findings
    assert (finding.kind, finding.mistakes) == ("unknown", ())
    first = finding.differences[0]
    assert (first.output, first.index, first.wrong) == ("out", (2, 1), 1)
    assert float(first.got) == pytest.approx(float(first.expected) + 0.25, abs=1e-5)
    assert "out[2, 1]" in str(report)
    assert "no known mistake explains it" in str(report)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FORWARD.format(line="raise RuntimeError('boom')"), "RuntimeError: boom (line 5"),
        (FORWARD.format(line="import sys; sys.exit(3)"), "it called sys.exit(3)"),
        (FORWARD.format(line="import os; os._exit(0)"), "ended by itself with exit code 0"),
        (FORWARD.format(line="import os; os.kill(os.getpid(), 11)"), "ended by SIGSEGV"),
        (FORWARD.format(line="return x"), "batchnorm_forward must return 2 values (out, cache), but returned ndarray"),
        (
            FORWARD.format(line="return 1, 2, 3"),
            "batchnorm_forward must return 2 values (out, cache), but returned 3 values",
        ),
        (FORWARD.format(line="return None, None"), "out is None"),
        (FORWARD.format(line="return 'text', None"), "out must be numbers, but is str"),
        (FORWARD.format(line="return {}, None").replace("{}", "[[1], [2, 3]]"), "out must be numbers, but is list"),
        ("def batchnorm_backward(dout, cache):\n    return 1, 2, 3\n", "batchnorm_forward is not"),
        ("def f(:\n", "SyntaxError: invalid syntax (line 1)"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' (line 1"),
        ("import sys\nsys.exit()\n", "it called sys.exit() (line 2"),
        ("import os\nos._exit(4)\n", "the file could not be loaded: the process ended by itself with exit code 4"),
        ("def something_else(): pass\n", "it has no function that is known by name"),
        ("CHECK = 3\n", "CHECK must be a dictionary, but is int"),
        ("CHECK = {'batchnorm': print}\n", "CHECK has the unknown name 'batchnorm'"),
        ("", "it has no function that is known by name"),
    ],
)
def test_what_goes_wrong_gets_one_clear_message(answer, text, message):
    report = check(answer(text))
    assert not report.ok
    assert message in " ".join(str(report).split())


def test_shapes_and_nans_are_shown(answer):
    text = " ".join(str(check(answer(FORWARD.format(line="return x.T, None")))).split())
    assert "out has shape (4, 7), expected shape (7, 4)" in text
    text = str(check(answer(FORWARD.format(line="return x * np.nan, None"))))
    assert "out[0, 0] is nan" in text


def test_an_endless_loop_ends_and_the_other_functions_are_checked(answer):
    loop = "def sgd(w, dw, config):\n    while True:\n        pass\n\n\n"
    text = loop + (LEARNERS / "course.py").read_text().replace("def sgd(", "def _sgd(")
    start = time.monotonic()
    report = check(answer(text), timeout=1.5)
    assert time.monotonic() - start < 20
    kinds = {finding.function: finding.kind for finding in report.findings}
    assert kinds.pop("sgd") == "error"
    assert "did not end within 1.5 seconds: an endless loop?" in " ".join(str(report).split())
    assert set(kinds.values()) == {"right"}
    assert len(kinds) == 17


def test_an_endless_loop_on_import_ends(answer):
    report = check(answer("while True: pass\n"), timeout=1)
    assert "endless loop" in report.failure


def test_a_grandchild_does_not_keep_the_check_waiting(answer):
    text = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    start = time.monotonic()
    check(answer(text + FORWARD.format(line="pass")))
    assert time.monotonic() - start < 20


def test_prints_warnings_and_input_do_not_matter(answer):
    text = edited(
        "    mode = bn_param", "    print('x' * 100000)\n    import warnings; warnings.warn('w')\n    mode = bn_param"
    )
    assert check(answer(text.split("def spatial")[0])).ok
    assert "EOFError" in str(check(answer(FORWARD.format(line="input()"))))


def test_a_neighbour_can_be_imported_and_the_files_of_the_checker_cannot(answer, tmp_path):
    (tmp_path / "helper.py").write_text((LEARNERS / "course.py").read_text())
    assert check(answer("from helper import sgd\n")).ok
    assert "ModuleNotFoundError" in str(check(answer("import drivers\n")))


def test_what_stopped_late_is_still_diagnosed(answer):
    """Statistics of the wrong axis crash on the second batch; the first has shown what they are."""
    text = edited("mean = np.mean(x, axis=0)", "mean = np.mean(x, axis=1, keepdims=True)").replace(
        "np.mean(xmu**2, axis=0)", "np.mean(xmu**2, axis=1, keepdims=True)"
    )
    report = check(answer(text.split("def batchnorm_backward")[0]))
    assert [finding.kind for finding in report.findings] == ["error", "mistake"]
    assert report.mistakes == ("batchnorm-statistics-per-sample",)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        check(tmp_path / "none.py")
    (tmp_path / "notes.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="must be a Python file"):
        check(tmp_path / "notes.ipynb")
    (tmp_path / "a.py").write_text("")
    with pytest.raises(ValueError, match="time limit must be positive"):
        check(tmp_path / "a.py", timeout=0)


def test_a_declaration_that_is_not_understood_is_said(answer):
    text = (LEARNERS / "numpy_layer.py").read_text() + '\nCHECK = {"momentum": "newest", "gain": "small"}\n'
    report = check(answer(text))
    assert report.ok
    assert [remark.split(";")[1] for remark in report.remarks] == [
        " try one of new, old",
        " known are dropout, eps, fan, momentum, penalty, stored variance, t, tensors, velocity",
    ]


def test_the_guide_shows_what_is_printed(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "checker.md").read_text()
    files = [
        block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if block.startswith("import numpy")
    ]
    printed = re.findall(r"```text\n(.*?)\n```", guide, re.DOTALL)
    assert len(files) == len(printed) == 2
    for text, expected in zip(files, printed, strict=True):
        path = tmp_path / expected.partition(":")[0]
        path.write_text(text)
        assert str(check(path)).replace(str(path), path.name) == expected
    listed = re.findall(r"^\| `([a-z0-9-]+)` \| ([^|`]+) \|$", guide, re.MULTILINE)
    assert dict(listed) == {name: mistake.title for name, mistake in mistakes().items()}


def test_the_candidate_never_runs_here(answer):
    marker = "import builtins\nbuiltins.was_here = True\n"
    rule = "def sgd(w, dw, config):\n    return w - config['learning_rate'] * dw, config\n"
    assert check(answer(marker + rule)).ok
    import builtins

    assert not hasattr(builtins, "was_here")
