"""Who may import whom (docs/architecture.md): read from the source, so that a breach names its line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

#: Each may import what stands before it.
ORDER = ["kernels", "allocator", "statistics", "autograd", "functional", "nn", "tools", "probes", "lab"]
#: Beside that order, each importing what stands before it, NumPy and the standard library; only the lab imports them.
NUMPY_ONLY = ["reference", "checker"]
KERNELS_ORDER = [{"interface", "activations", "watched", "_native"}, {"eager", "composite"}, {"native"}, {"registry"}]
STATISTICS_ORDER = [{"keys", "running", "population"}, {"across", "policies"}]
LAB_ORDER = [
    {"errors", "environment", "rules"},
    {"files"},
    {"data", "recording"},
    {"models"},
    {"wording", "training"},
    {"plots", "terminal"},
    {"experiments"},
    {"page", "bench"},
    {"report"},
    {"train_command", "compare_command", "claims_command", "diagnose_command", "fold_command"},
    {"cli"},
]
EXPERIMENTS_ORDER = [
    {"plan", "takes"},
    {"study", "compare", "progress", "protocols", "run", "bare_loop", "deep_linear"},
    {"series", "seven_changes"},
    {"numbers"},
    {"claims"},
]
REPORT_ORDER = [
    {"diagnosis", "layers", "units", "wording"},
    {"charts"},
    {"figures"},
    {"claims"},
    {"page"},
]
BENCH_ORDER = [
    {"config", "measure", "rows"},
    {"machine", "table"},
    {"arms"},
    {"gate"},
    {"worker"},
    {"run"},
]
TRAINING_ORDER = [
    {"checks", "randomness", "signals", "progress", "checkpoints", "journal"},
    {"config"},
    {"settings", "recipes", "schedules", "optimizers", "machine"},
    {"evaluation", "units"},
    {"step", "building"},
    {"loop"},
    {"run"},
]
DATA_ORDER = [
    {"augmentation", "dataset", "split", "verified"},
    {"parts", "picture"},
    {"arrays", "cifar", "digits", "folder", "idx", "points"},
    {"loader", "registry"},
]
MODELS_ORDER = [
    {"activations", "initializers", "normalization"},
    {"network", "recipe"},
    {"convnet", "densenet", "inception", "mlp", "nin", "residual", "vgg"},
    {"resnet", "resnet_cifar"},
    {"catalogue", "factory"},
    {"building"},
]
TOOLS_ORDER = [
    {"copies", "walk", "report", "swap", "preserve", "examples", "stand_ins"},
    {"graph"},
    {"affine", "linear", "patterns", "transactions", "masked", "freeze", "merge", "recalibrate"},
    {"certificate", "fuse"},
    {"convert", "fold"},
    {"program"},
]
GRAPH_ORDER = [{"classes"}, {"trace", "blocks"}, {"activations", "dataflow"}]
PROBES_ORDER = [
    {"probe", "saturation"},
    {"samples"},
    {"calls"},
    {"activations", "gradients", "running", "replay"},
    {"input_shift", "shift", "landscape", "surface"},
    {"choose"},
    {"diagnosis"},
]
DIAGNOSIS_ORDER = [
    {"batches", "result", "static"},
    {"passes", "stepping", "watching"},
    {"evidence"},
    {"causes", "sides"},
    {"diagnose"},
]
INNER_ORDERS = {
    "data": DATA_ORDER,
    "experiments": EXPERIMENTS_ORDER,
    "models": MODELS_ORDER,
    "report": REPORT_ORDER,
    "training": TRAINING_ORDER,
}
#: Read files only: what they show can be shown again on a machine without torch's help.
NO_TORCH = {"files", "page", "plots", "recording", "report", "rules", "terminal", "wording"}
NO_TORCH_IN_EXPERIMENTS = {"compare", "numbers", "plan", "progress", "protocols", "series", "study", "takes"}
NO_TORCH_IN_BENCH = {"config", "measure", "rows", "run", "table"}
NO_TORCH_IN_TRAINING = {"checks", "config", "progress", "recipes", "schedules", "settings", "signals"}
NEEDED_BY_THE_LAB = {
    *("PIL", "jinja2", "lightning_fabric", "matplotlib", "pooch", "rich"),
    *("safetensors", "sklearn", "tensorboard", "tyro"),
}
TRAINING = {"data", "environment", "models", "training"}


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
        top, *inner = name.split(".")
        inner = inner if top == "batchnorm" else []
        if place[0] in NUMPY_ONLY:
            allowed = NUMPY_ONLY[: NUMPY_ONLY.index(place[0]) + 1]
            if not (top in {"numpy", *sys.stdlib_module_names} or (inner and inner[0] in allowed)):
                breach(line, name, f"{place[0]} imports numpy and {' and '.join(allowed)} only")
            continue
        if inner and place[0] in ORDER and inner[0] in ORDER and ORDER.index(inner[0]) > ORDER.index(place[0]):
            breach(line, name, f"the order is {' <- '.join(ORDER)}")
        if inner and inner[0] in NUMPY_ONLY and place[0] != "lab":
            breach(line, name, "of the package only the lab imports the reference and the checker")
        if place[0] != "lab" and top in NEEDED_BY_THE_LAB:
            breach(line, name, "the library needs numpy and torch only")
        room, *inside = place
        inner_orders = {
            "kernels": KERNELS_ORDER,
            "statistics": STATISTICS_ORDER,
            "tools": TOOLS_ORDER,
            "probes": PROBES_ORDER,
            "lab": LAB_ORDER,
        }
        for which, order in inner_orders.items():
            within = room == which and inside != ["__init__"] and inner[:1] == [which] and inner[1] != inside[0]
            if within and _rank(order, inner[1]) >= _rank(order, inside[0]):
                breach(line, name, f"inside {which} the order is {order}")
        in_graph = place[:2] == inner[:2] == ["tools", "graph"] and place[2] not in ("__init__", inner[2])
        if in_graph and _rank(GRAPH_ORDER, inner[2]) >= _rank(GRAPH_ORDER, place[2]):
            breach(line, name, f"inside tools/graph the order is {GRAPH_ORDER}")
        if place[:2] == ["lab", "bench"] and place[2] != "__init__":
            if inner[:2] == ["lab", "bench"] and _rank(BENCH_ORDER, inner[2]) >= _rank(BENCH_ORDER, place[2]):
                breach(line, name, f"inside lab/bench the order is {BENCH_ORDER}")
            if place[2] in NO_TORCH_IN_BENCH and top == "torch":
                breach(line, name, "what plans a benchmark, or reads its results, needs no torch")
        inside_room = place[:2] == inner[:2] == ["probes", "diagnosis"] and "__init__" not in place
        if (
            inside_room
            and inner[2] != place[2]
            and _rank(DIAGNOSIS_ORDER, inner[2]) >= _rank(DIAGNOSIS_ORDER, place[2])
        ):
            breach(line, name, f"inside probes/diagnosis the order is {DIAGNOSIS_ORDER}")
        for which, order in INNER_ORDERS.items():
            inside_room = place[:2] == inner[:2] == ["lab", which] and "__init__" not in place and inner[2] != place[2]
            # `from batchnorm.lab.models import residual` names a file; what a room shows to others it does not import.
            if inside_room and _rank(order, inner[2]) >= _rank(order, place[2]):
                breach(line, name, f"inside lab/{which} the order is {order}")
        if place[:2] == ["lab", "training"] and place[2] in NO_TORCH_IN_TRAINING and top == "torch":
            breach(line, name, "what says what a training is needs no torch")
        reads = place[:2] == ["lab", "experiments"] and place[2] in NO_TORCH_IN_EXPERIMENTS
        reads = reads or (room == "lab" and inside[0] in NO_TORCH)
        if reads and (top == "torch" or (inner and inner[0] != "lab")):
            breach(line, name, "what reads a run directory needs no torch")
        light = inner[1:3] in [["training", name] for name in NO_TORCH_IN_TRAINING]
        if (
            reads
            and inner[:1] == ["lab"]
            and (inner[1:3] == ["experiments", "run"] or (inner[1] in TRAINING and not light))
        ):
            breach(line, name, "what reads a run directory needs no training code")
    assert not breaches, "\n" + "\n".join(breaches)


def test_importing_the_package_loads_neither_lab_nor_its_packages() -> None:
    program = (
        "import sys, batchnorm, batchnorm.api; "
        "print([m for m in ('batchnorm.lab', 'batchnorm.reference', 'batchnorm.checker', "
        "'matplotlib', 'rich', 'tyro', 'sklearn', 'triton') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "program",
    [
        "import batchnorm.checker, batchnorm.reference",
        "import batchnorm.lab.cli as cli; cli.main(['--version'])",
        "import batchnorm.lab.cli as cli; cli.main(['train', '--help'])",
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(program: str) -> None:
    ended = "\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\ntry: {program}{ended}"], capture_output=True, text=True, check=False
    )
    assert done.stderr.split()[-1] == "False", done.stderr


def test_the_public_names() -> None:
    import batchnorm

    assert {"BatchNorm2d", "convert", "diagnose", "fold", "functional", "__version__"} <= set(dir(batchnorm))
    with pytest.raises(AttributeError, match="no attribute 'Batchnorm2d'"):
        batchnorm.Batchnorm2d  # noqa: B018  # a misspelt name


@pytest.mark.parametrize("room", sorted({_parts(p)[0] for p in _files()} - {"__init__"}))
def test_each_room_can_be_imported_first(room: str) -> None:
    subprocess.run([sys.executable, "-c", f"import batchnorm.{room}"], check=True)


def test_a_part_of_the_lab_can_be_imported_first() -> None:
    """It imports layers, and these ``from batchnorm import functional``, before anybody has used a public name."""
    subprocess.run([sys.executable, "-c", "import batchnorm.lab.experiments.run"], check=True)
