"""One self-contained page from a study: no network, no torch, nothing that is not in the files."""

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
from batchnorm.lab.report.charts import Chart, charts, data, shown_arms
from batchnorm.lab.report.figures import pictures
from batchnorm.lab.report.numbers import Numbers, summarize
from batchnorm.lab.report.study import Arm, Study, read_study, seed_of, settings_of
from batchnorm.lab.report.units import read_units
from batchnorm.lab.report.wording import SPLITS, tables, verdict
from batchnorm.lab.terminal import print_answer
from batchnorm.lab.wording import plural

#: Questions that come first about a training; the page shows these up front, and every setting further down.
ASKED = (
    "data", "model", "norm", "activation", "initializer", "weight_std", "optimizer", "lr", "schedule", "epochs",
    "steps", "batch_size", "l2", "l1", "flip", "crop", "cutout", "mixup", "dropout", "stochastic_depth",
    "label_smoothing", "clip_norm", "accumulate", "precision", "statistics", "convert",
)  # fmt: skip
NOT_WORTH_SAYING: tuple[object, ...] = (None, "", 0.0, False, [], ())
#: Charts of the first screen.
FIRST = ("accuracy", "ratio")


@dataclass(frozen=True)
class Report:
    """What was made of a study.

    Attributes
    ----------
    page : Path
        The self-contained page, ``report.html``; beside it lie ``summary.json`` and ``figures/``.
    study : Study
        The runs, grouped.
    numbers : Numbers
        The numbers that the page shows.
    """

    page: Path
    study: Study
    numbers: Numbers

    def show(self, to: Console) -> None:
        """Print the tables and the answer: the numbers that the page shows."""
        answer = verdict(self.study, self.numbers)
        print_answer(to, tables(self.study, self.numbers), answer.headline, answer.limits)


def make_report(paths: Sequence[Path], out: Path | None = None) -> Report:
    """Make summary.json, figures/ and report.html from a plan or from runs of ``batchnorm train``, finished or not.

    Parameters
    ----------
    paths : sequence of Path
        The directory of a plan, or run directories. Those that differ in the seed alone become one curve with a band.
    out : Path, optional
        Where the page goes: a directory that is new, empty, or holds a report. None: into the directory when there is
        one, else into a new directory under ``runs``.

    Returns
    -------
    Report

    Raises
    ------
    OutputError
        A path is not a directory of the lab, is damaged or is given twice; the runs have nothing in common; or the page
        cannot be written.
    """
    paths = [Path(path) for path in paths]
    study = read_study(paths)
    folder = _folder(paths, out)
    numbers = summarize(study)
    arms = shown_arms(study, numbers)
    drawn = charts(study, numbers, read_units(study, arms))
    write_json(folder / "summary.json", asdict(numbers))
    figures = embed(pictures(study, arms, drawn), folder / "figures")
    page = folder / "report.html"
    write_text(page, _render(paths, study, numbers, arms, drawn, figures))
    return Report(page, study, numbers)


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
    study: Study,
    numbers: Numbers,
    arms: Sequence[Arm],
    drawn: Sequence[Chart],
    figures: Sequence[EmbeddedPicture],
) -> str:
    carried = data(study, arms, drawn)
    question = "How did the training go?" if len(study.arms) == 1 else "What did the settings change?"
    return fill(
        "run.html.j2",
        title=", ".join(dict.fromkeys(_what(arm) for arm in arms)) if len(arms) < 3 else f"{len(arms)} arms",
        question=question if study.plan is None else study.plan.question,
        badge="",
        lead=_lead(study),
        verdict=verdict(study, numbers),
        rule="" if study.plan is None else study.plan.rule,
        tables=tables(study, numbers),
        figures=figures,
        charts=drawn,
        first=[index for index, chart in enumerate(drawn) if chart.name in FIRST],
        layered=_layered(carried["layers"]),
        bands=_bands(study.arms),
        script=script(carried),
        asked=_asked(study),
        settings=_settings(study.arms, _every_setting(study.arms)),
        commands=_commands(study),
        again=shlex.join(["batchnorm", "report", *map(str, paths)]),
        environment=_environment(study.arms),
        definitions=_definitions(study, numbers),
    )


def _commands(study: Study) -> list[tuple[str, str, list[str]]]:
    """Return for each heading the command as it was given, and the commands that name every setting."""
    if study.plan is not None and study.config is not None:
        full = [str(run.config.get("full_command", run.config["command"])) for arm in study.arms for run in arm.runs]
        return [("", str(study.config["command"]), full)]
    return [
        (
            arm.name if len(study.arms) > 1 else "",
            str(arm.runs[0].config["command"]),
            [
                *(str(run.config["command"]) for run in arm.runs[1:]),
                *(str(run.config["full_command"]) for run in arm.runs if "full_command" in run.config),
            ],
        )
        for arm in study.arms
    ]


def _what(arm: Arm) -> str:
    run = arm.runs[0]
    settings = settings_of(run)
    model = settings.get("model", run.config["model"].get("name", "a network"))
    return f"{text(model)} on {text(settings.get('data', run.config['data'].get('name', 'data')))}"


def _lead(study: Study) -> str:
    arms = study.arms
    first = arms[0].runs[0].config
    runs = sum(len(arm.runs) for arm in arms)
    parts = ["trained: " + ", ".join(dict.fromkeys(_what(arm) for arm in arms))]
    if isinstance(examples := first["data"].get("train"), int):
        parts.append(f"{examples:,} training examples")
    parameters = first["model"].get("parameters")
    if isinstance(parameters, int):
        parts.append(f"{parameters:,} parameters")
    if study.plan is not None:
        axes = " x ".join(f"{len(values)} {_axis(axis, len(values))}" for axis, values in study.plan.axes.items())
        parts.append(f"{axes}: {plural(len(study.plan.cells), 'run')}")
    elif runs > 1:
        parts.append(f"{plural(len(arms), 'arm')}, {plural(runs, 'run')}")
    else:
        parts.append(f"seed {text(seed_of(arms[0].runs[0]))}")
    return "; ".join(parts) + "."


def _axis(axis: str, count: int) -> str:
    noun = {"lr": "learning rate", "norm": "normalization"}.get(axis, axis.replace("_", " "))
    return noun if count == 1 else f"{noun}s"


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


def _asked(study: Study) -> dict[str, Any]:
    arms = [next(iter(group.arms.values())) for group in study.groups]
    settings = settings_of(arms[0].runs[0])
    varied = list(dict.fromkeys([*study.compared, *filter(None, [study.tuned])]))
    common = [key for key in ASKED if key in settings and key not in varied and settings[key] not in NOT_WORTH_SAYING]
    seeds = ["seeds" if any(len(arm.runs) > 1 for arm in arms) else "seed"]
    seeds += [", ".join(text(seed_of(run)) for run in arm.runs) for arm in arms]
    table = _settings(arms, common if len(arms) == 1 else [key for key in study.compared if key in settings])
    if study.tuned:
        table["rows"].append(
            (study.tuned.replace("_", " "), [" ".join(f"{value:g}" for value in group.arms) for group in study.groups])
        )
    table["rows"].append((seeds[0], seeds[1:]))
    table["arms"] = [group.name for group in study.groups]
    same = ", ".join(f"{key.replace('_', ' ')} {text(settings[key])}" for key in common)
    note = f"The same in all arms: {same}. " if same and len(arms) > 1 else ""
    return {**table, "note": note + "Every setting stands at the end of the page."}


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
    """Return the facts of the machines; those that change from run to run as their range."""
    runs = [run for arm in arms for run in arm.runs]
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    rows = []
    for key in keys:
        values = list(dict.fromkeys(text(run.environment.get(key)) for run in runs))
        rows.append((key, " | ".join(values) if len(values) < 4 else f"{min(values)} to {max(values)}"))
    return rows


def _definitions(study: Study, numbers: Numbers) -> list[tuple[str, str]]:
    split = SPLITS.get(numbers.split or "", "test")
    chosen = SPLITS.get(numbers.chosen_on or "", split)
    made = [
        ("arm", "Runs that differ in the seed alone."),
        ("step", "One update of the parameters, from one batch."),
        ("best accuracy", f"The {split} accuracy at the evaluation with the highest {chosen} accuracy."),
    ]
    if numbers.marks:
        made += [
            (
                "steps to an accuracy",
                "The step of the first evaluation at or above it; median over seeds. A run that diverged reached none.",
            ),
            (
                "final",
                f"The accuracy with which every seed of {numbers.groups[0].name} ended: the lowest over seeds"
                + (f", at the {study.tuned.replace('_', ' ')} where that is highest." if study.tuned else "."),
            ),
            (
                "ratio",
                "Steps of the baseline over steps of the arm"
                + (f", each at the {study.tuned} that needs the fewest" if study.tuned else "")
                + ". Its interval: lowest to highest over seeds, and over accuracies one example lower and higher.",
            ),
        ]
    if study.tuned:
        made.append(
            (
                "best",
                f"The {study.tuned} with the highest mean final accuracy, then the lowest loss.",
            )
        )
    return [
        *made,
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
