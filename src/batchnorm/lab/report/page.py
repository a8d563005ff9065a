"""One self-contained page from a study: no network, no torch, nothing that is not in the files."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from batchnorm.lab.errors import OutputError
from batchnorm.lab.experiments.claims.form import check_table
from batchnorm.lab.experiments.claims.run import Judged, judge
from batchnorm.lab.experiments.numbers import Numbers, summarize
from batchnorm.lab.experiments.study import Arm, Study, read_study, seed_of, settings_of
from batchnorm.lab.files import reason_of, write_json, write_text
from batchnorm.lab.page import embed, fill, script
from batchnorm.lab.plots import Picture
from batchnorm.lab.recording import kind_of
from batchnorm.lab.report.charts import charts, data, shown_arms
from batchnorm.lab.report.claims import page_of_all
from batchnorm.lab.report.figures import pictures
from batchnorm.lab.report.units import read_units
from batchnorm.lab.report.wording import SPLITS, tables, verdict
from batchnorm.lab.terminal import print_answer
from batchnorm.lab.wording import Table, Verdict, plural, text

#: Questions that come first about a training; the page shows these up front, and every setting further down.
ASKED = (
    "data", "model", "norm", "activation", "initializer", "weight_std", "optimizer", "lr", "schedule", "epochs",
    "steps", "batch_size", "l2", "l1", "flip", "crop", "cutout", "mixup", "dropout", "stochastic_depth",
    "label_smoothing", "clip_norm", "accumulate", "precision", "statistics", "convert",
)  # fmt: skip
NOT_WORTH_SAYING: tuple[object, ...] = (None, "", 0.0, False, [], ())
SURFACES = "Logarithm of the loss over each map, from dark (low) to light (high); each has its own scale."
#: Charts of the first screen.
FIRST = ("accuracy", "ratio")


@dataclass(frozen=True)
class Report:
    """What was made of a directory of any kind, or of several runs.

    Attributes
    ----------
    page : Path
        The self-contained page, ``report.html``; beside it lie ``summary.json`` and ``figures/``.
    tables : list of Table
        Of the page.
    verdict : Verdict
        The answer.
    status : str
        Of a claim: holds, does not hold or inconclusive. Empty: no claim.
    study, numbers : Study, Numbers, or None
        The runs and their numbers; None for a claim that trains nothing.
    """

    page: Path
    tables: list[Table]
    verdict: Verdict
    status: str = ""
    study: Study | None = None
    numbers: Numbers | None = None

    def show(self, to: Console) -> None:
        """Print the tables and the answer: the numbers that the page shows."""
        badge = f"{self.status[:1].upper()}{self.status[1:]}. " if self.status else ""
        print_answer(to, self.tables, badge + self.verdict.headline, self.verdict.limits)


def make_report(paths: Sequence[Path], out: Path | None = None) -> Report:
    """Make summary.json, figures/ and report.html from a plan, a claim, or runs of ``batchnorm train``.

    Of several claims it makes one page, without summary.json.

    Parameters
    ----------
    paths : sequence of Path
        A directory of any kind, run directories, or those of claims. Runs that differ in the seed alone become one
        curve with a band.
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
    if len(paths) > 1 and all(kind_of(path) == "claim" for path in paths):
        page, headline = page_of_all({path: judge(path) for path in paths}, _folder(paths, out))
        return Report(page, [], Verdict(headline, [], []))
    if len(paths) == 1 and kind_of(paths[0]) == "claim":
        judged = judge(paths[0])
        return _write(paths, _folder(paths, out), judged.study, judged.numbers, judged)
    study = read_study(paths)
    return _write(paths, _folder(paths, out), study, summarize(study), None)


def _write(
    paths: Sequence[Path], folder: Path, study: Study | None, numbers: Numbers | None, judged: Judged | None
) -> Report:
    """Write summary.json, the figures and the page of runs, of a claim, or of a claim that trained runs."""
    values: dict[str, Any] = {"charts": [], "first": [], "script": None, "layered": "", "surfaces": "", "bands": "",
                              "settings": None}  # fmt: skip
    carried: dict[str, Any] = {"arms": [], "charts": [], "layers": {"views": []}}
    drawn_now: list[Picture] = []
    shown, answer = [], Verdict("", [], [])
    summary: dict[str, Any] = {}
    if study is not None and numbers is not None:
        arms = shown_arms(study, numbers)
        drawn = charts(study, numbers, read_units(study, arms))
        carried |= data(study, arms, drawn)
        drawn_now = pictures(study, arms, drawn)
        shown, answer, summary = tables(study, numbers), verdict(study, numbers), asdict(numbers)
        values |= {
            "charts": drawn,
            "first": [index for index, chart in enumerate(drawn) if chart.name in FIRST],
            "layered": _layered(carried["layers"]),
            "bands": _bands(study.arms),
            "settings": _settings(study.arms, _every_setting(study.arms)),
        }
    if judged is not None:
        findings = judged.findings
        shown = [check_table(findings.checks), *findings.tables, *shown]
        answer = Verdict(findings.headline, findings.numbers, [*findings.limits, *answer.limits])
        summary = {**_claim_summary(judged), "tables": [asdict(table) for table in shown], "runs": summary}
        values |= _of_claim(judged)
        carried["surfaces"] = [asdict(surface) for surface in findings.surfaces]
        values["surfaces"] = SURFACES if findings.surfaces else ""
    else:
        assert study is not None
        assert numbers is not None
        values |= _of_study(study, numbers)
    if study is not None or values["surfaces"]:
        values["script"] = script(carried)
    write_json(folder / "summary.json", summary)
    page = folder / "report.html"
    html = fill(
        "run.html.j2",
        verdict=answer,
        tables=shown,
        # Those of a claim are shown always; those of runs where scripts do not run.
        pictures=embed(judged.findings.pictures, folder / "figures") if judged else [],
        figures=embed(drawn_now, folder / "figures"),
        again=shlex.join(["batchnorm", "report", *map(str, paths)]),
        **values,
    )
    write_text(page, html)
    return Report(page, shown, answer, judged.findings.status if judged else "", study, numbers)


def _of_study(study: Study, numbers: Numbers) -> dict[str, Any]:
    arms = shown_arms(study, numbers)
    question = "How did the training go?" if len(study.arms) == 1 else "What did the settings change?"
    return {
        "title": ", ".join(dict.fromkeys(_what(arm) for arm in arms)) if len(arms) < 3 else f"{len(arms)} arms",
        "question": question if study.plan is None else study.plan.question,
        "badge": "",
        "lead": _lead(study),
        "rule": "" if study.plan is None else study.plan.rule,
        "asked": _asked(study),
        "commands": _commands(study),
        "environment": _environment(study.arms),
        "definitions": _definitions(study, numbers),
    }


def _of_claim(judged: Judged) -> dict[str, Any]:
    claim, config = judged.claim, judged.config
    facts = [
        ("claimed in", claim.source),
        ("measured", claim.protocol),
        *([("published", claim.published)] if claim.published else []),
        *([("differs", claim.differs)] if claim.differs else []),
        ("budget", f"{config['budget']} ({claim.cost.get(config['budget'], '')})"),
        *((key.replace("_", " "), text(value)) for key, value in config["settings"].items()),
    ]
    return {
        "title": f"Claim: {claim.name}",
        "question": f"Claim: {claim.sentence}",
        "badge": judged.findings.status,
        "lead": f"Claimed in: {claim.source}.",
        "rule": str(config.get("rule", claim.rule)),
        "asked": {"arms": [""], "rows": [(key, [value]) for key, value in facts], "note": ""},
        "commands": [("", str(config["command"]), [])],
        "environment": [(key, text(value)) for key, value in judged.environment.items()],
        "definitions": [
            ("verdict", "Holds: every check does. Does not hold: one does not. Inconclusive: neither."),
            *judged.findings.definitions,
        ],
    }


def _claim_summary(judged: Judged) -> dict[str, Any]:
    checks = [{**asdict(check), "status": check.status, "kept": check.kept} for check in judged.findings.checks]
    return {
        "claim": judged.claim.name,
        "budget": judged.config["budget"],
        "verdict": judged.findings.status,
        "headline": judged.findings.headline,
        "published": judged.claim.published,
        "checks": checks,
    }


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
