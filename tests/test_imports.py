"""Who may import whom (docs/architecture.md): read from the source, so that a breach names its line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

#: Each may import what stands before it.
ORDER = ["kernels", "autograd", "statistics", "functional", "nn", "tools", "lab"]
KERNELS_ORDER = [{"interface", "activations"}, {"eager", "composite"}, {"registry"}]
LAB_ORDER = [
    {"errors"},
    {"artefacts", "config", "environment"},
    {"data", "summary"},
    {"models", "plots", "terminal"},
    {"probes", "report"},
    {"trainer"},
    {"cli"},
]
#: Read files only: what they show can be shown again on a machine without torch's help.
NO_TORCH = {"artefacts", "summary", "plots", "report", "terminal"}
TRAINING = {"data", "models", "probes", "trainer"}


def _imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, dotted name) of everything that a file imports, at any depth."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def _files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def _parts(path: Path) -> list[str]:
    return list(path.relative_to(SOURCE / "batchnorm").with_suffix("").parts)


def _rank(order: list[set[str]], name: str) -> int:
    return next(i for i, group in enumerate(order) if name in group)


@pytest.mark.parametrize("path", _files(), ids=lambda p: "/".join(_parts(p)))
def test_import_rules(path: Path) -> None:
    place = _parts(path)
    breaches = []

    def breach(line: int, name: str, rule: str) -> None:
        breaches.append(f"{path.relative_to(SOURCE)}:{line}: imports {name}; {rule}")

    for line, name in _imports(path):
        parts = name.split(".")
        ours = parts[0] == "batchnorm"
        if place[0] == "reference":
            if not (parts[0] == "numpy" or parts[:2] == ["batchnorm", "reference"] or parts[0] in sys.stdlib_module_names):
                breach(line, name, "reference imports numpy only")
            continue
        if ours and place[0] in ORDER and parts[1] in ORDER and ORDER.index(parts[1]) > ORDER.index(place[0]):
            breach(line, name, f"the order is {' <- '.join(ORDER)}")
        if ours and parts[1] == "reference" and place[:2] != ["lab", "claims"]:
            breach(line, name, "reference is imported by tests, docs, examples and lab/claims only")
        if place[0] == "kernels" and len(place) > 1 and place[1] != "__init__" and parts[:2] == ["batchnorm", "kernels"]:
            if _rank(KERNELS_ORDER, parts[2]) >= _rank(KERNELS_ORDER, place[1]):
                breach(line, name, "inside kernels: interface, activations <- eager, composite <- registry")
        if place[0] == "lab" and len(place) > 1 and place[1] not in {"__init__", "__main__"}:
            if place[1] in NO_TORCH and (parts[0] == "torch" or (ours and (parts[1:2] != ["lab"] or parts[2] in TRAINING))):
                breach(line, name, "what reads a run directory needs no torch and no training code")
            if parts[:2] == ["batchnorm", "lab"] and len(parts) > 2 and place[1] != parts[2]:
                if _rank(LAB_ORDER, parts[2]) >= _rank(LAB_ORDER, place[1]):
                    breach(line, name, f"inside lab the order is {LAB_ORDER}")
        if place[0] != "lab" and parts[0] in {"matplotlib", "sklearn", "rich", "tyro", "jinja2", "pooch"}:
            breach(line, name, "the library needs numpy and torch only")
    assert not breaches, "\n" + "\n".join(breaches)


def test_importing_the_package_loads_neither_lab_nor_its_packages() -> None:
    program = (
        "import sys, batchnorm; "
        "print([m for m in ('batchnorm.lab', 'batchnorm.reference', 'matplotlib', 'rich', 'tyro', 'sklearn', 'triton') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
