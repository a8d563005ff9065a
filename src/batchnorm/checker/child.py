"""The child process: load a file that is not trusted to end, run it on the inputs, write the results as plain arrays.

It is started by its path, so that it does not import the package (and with it torch): ``child.py JOB_DIRECTORY``, with
``job.json`` there. Per subject it writes ``SUBJECT.npz``; before each it writes its name to ``stage``, so that the
parent knows where a crash or an endless loop happened.
"""

import importlib.util
import json
import os
import random
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def load(path: Path, name: str) -> ModuleType:
    """Import a file by its path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def describe(error: BaseException, path: Path) -> str:
    """Say what was raised and at which line of the file, in one line."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    if isinstance(error, SystemExit):
        text = f"it called sys.exit({'' if error.code is None else repr(error.code)})"
    else:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        text = text if len(text) < 300 else f"{text[:300]} ..."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{text} (line {frames[-1].lineno}: {frames[-1].line})" if frames else text


def seed() -> None:
    """Make random candidates repeatable."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the candidate may use it
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


def bridges(module: ModuleType, functions: dict[str, Any], drivers: Any) -> list[Any]:
    """Return what to give a candidate, the likelier first: tensors if its code or its whole file is about torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return [drivers.Numpy()]
    options = [drivers.Torch(torch), drivers.Numpy()]
    wanted = vars(module).get("CHECK", {}).get("tensors")
    values = [
        vars(module).get(name) for role, value in functions.items() if role != "label" for name in names_in(value)
    ]
    bases = [base for value in functions.values() for cls in classes_in(value) for base in cls.__mro__]
    about_torch = any(is_torch(value) for value in values + bases)
    if not about_torch and any(value is np for value in vars(module).values()):
        options.reverse()
    return [option for option in options if wanted in (None, option.name)] or options


def is_torch(value: Any) -> bool:
    """Say whether something in a file was imported from torch."""
    name = value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", ""))
    return name.split(".")[0] == "torch"


def names_in(function: Any) -> set[str]:
    """Return the global names that a function uses, and the methods of the classes that it was made from."""
    members = [function, *(member for cls in classes_in(function) for member in vars(cls).values())]
    codes = [getattr(getattr(member, "__func__", member), "__code__", None) for member in members]
    return {name for code in codes if code is not None for name in code.co_names}


def classes_in(function: Any) -> list[type]:
    """Return the classes that a function has in its closure."""
    return [
        cell.cell_contents
        for cell in getattr(function, "__closure__", None) or ()
        if isinstance(cell.cell_contents, type)
    ]


def check_one(
    subject: str, functions: dict[str, Any], bridge: Any, job: dict[str, Any], drivers: Any, inputs: Any
) -> Any:
    """Run a subject; return its outputs, facts, and the error that stopped it, if any."""
    outputs: dict[str, Any] = {}
    facts: dict[str, Any] = {}

    def record(name: str, value: Any) -> None:
        outputs[name] = np.array(drivers.take(name, value))

    try:
        if "batchnorm" in subject:
            given = inputs.batch_norm(subject == "spatial_batchnorm") | {"far": inputs.FAR}
            facts = drivers.batchnorm(functions, bridge, given, record)
        elif subject == "dropout":
            facts = drivers.dropout(functions, bridge, inputs.dropout(), record)
        elif "rule" in functions:
            drivers.optimizer(functions, bridge, inputs.optimizer(), record)
        elif "draw" in functions:
            drivers.initializer(functions, inputs.initializer() | {"right": job["deviations"][subject]}, record)
        else:
            facts = drivers.penalty(functions, bridge, inputs.penalty(), record)
    except (Exception, SystemExit) as error:  # whatever a learner's code raises is a result
        return outputs, facts, error
    return outputs, facts, None


def main(directory: Path) -> None:
    """Do the job that lies in the directory."""
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    path, here = Path(job["path"]), Path(__file__).parent
    drivers, inputs, styles = (load(here / f"{name}.py", f"_check_{name}") for name in ("drivers", "inputs", "styles"))
    sys.path[0] = str(path.parent)  # the candidate sees its neighbours, not ours
    sys.argv = [str(path)]
    os.chdir(path.parent)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")

    def say(stage: str, **result: Any) -> None:
        with (directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage} | result) + "\n")

    say("load")
    try:
        module = load(path, path.stem if path.stem.isidentifier() else "candidate")
    except (Exception, SystemExit) as stop:  # whatever a file raises is a result
        say("failed", error=describe(stop, path))
        return
    remarks: list[str] = []
    check = vars(module).get("CHECK", {})
    if not isinstance(check, dict):
        say("failed", error=f"CHECK must be a dictionary, but is {type(check).__name__}")
        return
    found = styles.find(module, remarks.append)
    declared = {str(key): value for key, value in check.items() if isinstance(value, str)}
    say(
        "found",
        labels={name: functions["label"] for name, functions in found.items()},
        remarks=remarks,
        declared=declared,
    )
    for subject, functions in found.items():
        if subject in job["done"]:
            continue
        say("start", subject=subject)
        error: BaseException | None = None
        for bridge in bridges(module, functions, drivers):
            seed()
            outputs, facts, failed = check_one(subject, functions, bridge, job, drivers, inputs)
            error = error if error and failed else failed  # the likelier form's complaint is the one to show
            if outputs or error is None:
                break
        np.savez(directory / f"{subject}.npz", **outputs)
        message = None if error is None else describe(error, path)
        if isinstance(error, drivers.CandidateError):
            message = str(error)
        say("done", subject=subject, error=message, facts=facts)
    say("end")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
