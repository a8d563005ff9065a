"""One self-contained page from runs of ``batchnorm train``: no network, no torch, nothing that is not in the files."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from batchnorm.lab.errors import OutputError
from batchnorm.lab.files import reason_of, write_json, write_text
from batchnorm.lab.page import EmbeddedPicture, embed, fill, script, text
from batchnorm.lab.report.arms import Arm, read_arms, seed_of, settings_of
from batchnorm.lab.report.charts import Chart, charts, data
from batchnorm.lab.report.figures import pictures
from batchnorm.lab.report.numbers import Numbers, summarize
from batchnorm.lab.report.wording import PARTS, tables, verdict
from batchnorm.lab.terminal import print_answer
from batchnorm.lab.wording import plural

#: What somebody asks first about a training; the page shows these up front, and every setting further down.
ASKED = (
    "data", "model", "norm", "activation", "initializer", "optimizer", "lr", "schedule", "epochs", "steps",
    "batch_size", "l2", "l1", "augment", "dropout", "stochastic_depth", "label_smoothing", "clip_norm", "accumulate",
    "precision", "statistics", "convert",
)  # fmt: skip
NOT_WORTH_SAYING: tuple[object, ...] = (None, "", 0.0, False, [], ())


@dataclass(frozen=True)
class Report:
    """What was made of one or several runs.

    Attributes
    ----------
    page : Path
        The self-contained page, ``report.html``; beside it lie ``summary.json`` and ``figures/``.
    arms : list of Arm
        The runs, grouped.
    numbers : Numbers
        The numbers that the page shows.
    """

    page: Path
    arms: list[Arm]
    numbers: Numbers

    def show(self, to: Console) -> None:
        """Print the tables and the answer: the numbers that the page shows."""
        answer = verdict(self.arms, self.numbers)
        print_answer(to, tables(self.numbers), answer.headline, answer.limits)


def make_report(paths: Sequence[Path], out: Path | None = None) -> Report:
    """Make summary.json, figures/ and report.html from runs of ``batchnorm train``, finished or not.

    Parameters
    ----------
    paths : sequence of Path
        Run directories. Those that differ in the seed alone become one curve with a band.
    out : Path, optional
        Where the page goes: a directory that is new, empty, or holds a report. None: into the run directory when there
        is one run, else into a new directory under ``runs``.

    Returns
    -------
    Report

    Raises
    ------
    OutputError
        A path is not a run directory, is damaged or is given twice; the runs have nothing in common; or the page
        cannot be written.
    """
    arms = read_arms([Path(path) for path in paths])
    folder = _folder([Path(path) for path in paths], out)
    numbers = summarize(arms)
    drawn = charts(arms, numbers.part)
    write_json(folder / "summary.json", asdict(numbers))
    figures = embed(pictures(arms, drawn), folder / "figures")
    page = folder / "report.html"
    write_text(page, _render(paths, arms, numbers, drawn, figures))
    return Report(page, arms, numbers)


def _folder(paths: Sequence[Path], out: Path | None) -> Path:
    if out is None and len(paths) == 1:
        return paths[0]
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = Path("runs") / f"report-{stamp}" if out is None else Path(out)
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"cannot write the report to {folder}: it is a file; give --out a directory")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "report.html").is_file():
            raise OutputError(
                f"cannot write the report to {folder}: it holds something else; give --out a new or empty directory, "
                "or that of an earlier report"
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write the report to {folder}: {reason_of(error)}; give --out a writable place"
        ) from error
    return folder


def _render(
    paths: Sequence[Path],
    arms: Sequence[Arm],
    numbers: Numbers,
    drawn: Sequence[Chart],
    figures: Sequence[EmbeddedPicture],
) -> str:
    carried = data(arms, drawn)
    return fill(
        "train.html.j2",
        title=", ".join(dict.fromkeys(_what(arm) for arm in arms)) if len(arms) < 3 else f"{len(arms)} arms",
        question="How did the training go?" if len(arms) == 1 else "What did the settings change?",
        lead=_lead(arms),
        verdict=verdict(arms, numbers),
        tables=tables(numbers),
        figures=figures,
        charts=drawn,
        layered=_layered(carried["layers"]),
        bands=_bands(arms),
        script=script(carried),
        asked=_asked(arms),
        settings=_settings(arms, _every_setting(arms)),
        commands=[
            (arm.name if len(arms) > 1 else "", [str(run.config["command"]) for run in arm.runs]) for arm in arms
        ],
        again=shlex.join(["batchnorm", "report", *map(str, paths)]),
        environment=_environment(arms),
        definitions=_definitions(numbers),
    )


def _what(arm: Arm) -> str:
    run = arm.runs[0]
    settings = settings_of(run)
    model = settings.get("model", run.config["model"].get("name", "a network"))
    return f"{text(model)} on {text(settings.get('data', run.config['data'].get('name', 'data')))}"


def _lead(arms: Sequence[Arm]) -> str:
    first = arms[0].runs[0].config
    runs = sum(len(arm.runs) for arm in arms)
    parts = ["trained: " + ", ".join(dict.fromkeys(_what(arm) for arm in arms))]
    if isinstance(examples := first["data"].get("train"), int):
        parts.append(f"{examples:,} training examples")
    parameters = first["model"].get("parameters")
    if isinstance(parameters, int):
        parts.append(f"{parameters:,} parameters")
    parts.append(
        f"{plural(len(arms), 'arm')}, {plural(runs, 'run')}" if runs > 1 else f"seed {text(seed_of(arms[0].runs[0]))}"
    )
    return "; ".join(parts) + "."


def _bands(arms: Sequence[Arm]) -> str:
    if all(len(arm.runs) == 1 for arm in arms):
        return ""
    lost = any(arm.others for arm in arms)
    return "Line: mean over the runs of an arm; band: lowest to highest run." + (
        " Thin line with a cross: a run that did not finish, which no mean contains." if lost else ""
    )


def _layered(layers: dict[str, Any]) -> str:
    if not layers["views"]:
        return ""
    seeds = {one["arm"]: text(one["seed"]) for probe in layers["probes"].values() for one in probe}
    which = ", ".join(dict.fromkeys(seeds.values()))
    return (
        f"What the probes saw in one run of each arm (seed {which}). Arms stand side by side by the place of a layer "
        "in the forward pass."
    )


def _asked(arms: Sequence[Arm]) -> dict[str, Any]:
    settings = settings_of(arms[0].runs[0])
    common = [
        key
        for key in ASKED
        if key in settings and key not in arms[0].settings and settings[key] not in NOT_WORTH_SAYING
    ]
    seeds = [", ".join(text(seed_of(run)) for run in arm.runs) for arm in arms]
    if len(arms) == 1:
        table = _settings(arms, common)
        table["rows"].append(("seed" if len(arms[0].runs) == 1 else "seeds", seeds))
        return {**table, "note": "Every setting stands at the end of the page."}
    table = _settings(arms, list(arms[0].settings))
    table["rows"].append(("seeds", seeds))
    same = ", ".join(f"{key.replace('_', ' ')} {text(settings[key])}" for key in common)
    return {
        **table,
        "note": (f"The same in all arms: {same}. " if same else "") + "Every setting stands at the end of the page.",
    }


def _settings(arms: Sequence[Arm], keys: Sequence[str]) -> dict[str, Any]:
    return {
        "arms": [arm.name for arm in arms],
        "rows": [
            (key.replace("_", " "), [text(_all_settings(arm).get(key)) for arm in arms])
            for key in keys
            if key != "seed"
        ],
    }


def _all_settings(arm: Arm) -> dict[str, Any]:
    config = arm.runs[0].config
    named = {f"{part}: {key}": value for part in ("data", "model") for key, value in config[part].items()}
    return {**settings_of(arm.runs[0]), **named}


def _every_setting(arms: Sequence[Arm]) -> list[str]:
    return list(dict.fromkeys(key for arm in arms for key in _all_settings(arm)))


def _environment(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    runs = [run for arm in arms for run in arm.runs]
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    return [
        (key, " | ".join(dict.fromkeys(text(run.environment.get(key)) for run in runs)))
        for key in keys
        if key != "seeds"
    ]


def _definitions(numbers: Numbers) -> list[tuple[str, str]]:
    part = PARTS.get(numbers.part or "", "test")
    chosen = PARTS.get(numbers.chosen_on or "", part)
    return [
        ("arm", "Runs that differ in the seed alone."),
        ("step", "One update of the parameters, from one batch."),
        ("best accuracy", f"The {part} accuracy at the evaluation with the highest {chosen} accuracy."),
        (
            "gap",
            "Accuracy on a fixed part of the training data minus accuracy on new data, in evaluation mode, at the end.",
        ),
        (
            "diverged",
            "The loss was not finite, and the run ended there; or it ended far above guessing and where it began.",
        ),
        (
            "training subset",
            "A fixed part of the training data, evaluated as the test data are: without augmentation or dropout.",
        ),
    ]
