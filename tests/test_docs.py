"""Documentation is checked like code: docstrings are whole, their examples run, links in pages lead somewhere."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
from numpydoc.validate import validate

import batchnorm

ROOT = Path(__file__).parents[1]

#: What numpydoc asks for and we do not, with the reason.
IGNORED = {
    "ES01",  # an extended summary where one sentence says it all would be padding
    "SA01",  # "See Also" everywhere says nothing; the text links where it helps
    "EX01",  # examples where they teach something; those that are there run (below)
    "RT02",  # a named pair is clearer than its type alone
    "RT03",  # a type whose name says it needs no second sentence
    "RT04",  # a value may be described by a symbol, in lower case
}
#: Records list their fields under Attributes; numpydoc looks for the same names under Parameters.
IGNORED_IN_RECORDS = {"PR01"}
#: A piece inside the package may say all in one sentence. What a user calls (SURFACE) may not, and a docstring that
#: has sections must have them whole.
IGNORED_IN_ONE_SENTENCE = {"PR01", "RT01"}
SURFACE = {
    "batchnorm.functional.batch_norm",
    "batchnorm.kernels.registry.explain",
    "batchnorm.kernels.registry.use_backend",
    "batchnorm.nn.batch_norm.BatchNorm1d",
    "batchnorm.nn.batch_norm.BatchNorm2d",
    "batchnorm.nn.batch_norm.BatchNorm3d",
    "batchnorm.reference.batch_norm.backward",
    "batchnorm.reference.batch_norm.forward_test",
    "batchnorm.reference.batch_norm.forward_train",
    "batchnorm.reference.statistics.averaging_factor",
    "batchnorm.reference.statistics.batch_statistics",
    "batchnorm.reference.statistics.exact_population",
    "batchnorm.reference.statistics.merge",
    "batchnorm.reference.statistics.population_statistics",
    "batchnorm.reference.statistics.update_running",
    "batchnorm.tools.convert.convert",
    "batchnorm.tools.convert.revert",
}


def _modules() -> list[ModuleType]:
    names = [m.name for m in pkgutil.walk_packages(batchnorm.__path__, "batchnorm.") if not m.name.endswith("__main__")]
    return [batchnorm, *map(importlib.import_module, names)]


def _public_objects() -> dict[str, object]:
    return {
        f"{module.__name__}.{name}": value
        for module in _modules()
        for name, value in sorted(vars(module).items())
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isfunction(value) or inspect.isclass(value))
    }


PUBLIC = _public_objects()


def test_the_surface_exists() -> None:
    assert set(PUBLIC) >= SURFACE


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring(name: str) -> None:
    value = PUBLIC[name]
    ignored = set(IGNORED)
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        ignored |= IGNORED_IN_RECORDS
    docstring = value.__doc__ or ""
    if name not in SURFACE and "\n    ---" not in docstring:
        ignored |= IGNORED_IN_ONE_SENTENCE
    errors = [f"{code}: {message}" for code, message in validate(name)["errors"] if code not in ignored]
    raises = inspect.isfunction(value) and re.search(r"^\s+raise \w", inspect.getsource(value), re.MULTILINE)
    if raises and "Raise" not in docstring and "raise" not in docstring:
        errors.append("it raises, and does not say what")
    assert not errors, "\n".join([name, *errors])


@pytest.mark.parametrize("module", _modules(), ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, optionflags=flags, extraglobs=vars(module)).failed == 0


def test_python_in_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def _pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")]


@pytest.mark.parametrize("page", _pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [
        t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http", "#", "mailto"))
    ]
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing, f"{page}: {missing}"
