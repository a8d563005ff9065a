"""The derivation: its numbers are in order over all chapters, and every equation is a line of code or a tested law."""

import re
from pathlib import Path

import batchnorm.reference

FOLDER = Path(batchnorm.reference.__file__).parent
#: By name they are in order: DERIVATION.md, DERIVATION_2_..., and so on.
CHAPTERS = sorted(FOLDER.glob("DERIVATION*.md"), key=lambda path: path.stem)
EQUATIONS = range(1, 189)


def equations(path):
    text = path.read_text(encoding="utf-8")
    return [int(n) for n in re.findall(r"(?:\\qquad |^\| )\((\d+)\)(?: \$\$| \|)", text, re.MULTILINE)]


def cited(paths):
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines() if "#" in line]
    return {int(n) for line in lines for n in re.findall(r"(?<!\w)\((\d+)\)", line.split("#", 1)[1])}


def test_numbers_go_on_from_chapter_to_chapter_without_a_gap():
    assert [number for path in CHAPTERS for number in equations(path)] == list(EQUATIONS)


def test_the_first_page_says_what_is_where():
    first = CHAPTERS[0].read_text(encoding="utf-8")
    for path in CHAPTERS:
        numbers = equations(path)
        row = next(line for line in first.splitlines() if line.startswith("|") and f"({numbers[0]}) to" in line)
        assert row.endswith(f"({numbers[0]}) to ({numbers[-1]}) |")
        assert path == CHAPTERS[0] or f"({path.name})" in row


def test_what_the_code_cites_exists():
    assert cited(FOLDER.glob("*.py")) <= set(EQUATIONS)


def test_every_equation_is_a_line_of_code_or_a_law_that_a_test_names():
    tests = Path(__file__).parent.glob("test_*.py")
    missing = set(EQUATIONS) - cited(FOLDER.glob("*.py")) - cited(tests)
    assert not missing
