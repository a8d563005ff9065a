"""One self-contained page from a run directory: no network, no torch, nothing that is not in the files."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from batchnorm.lab.artefacts import Run, read_run
from batchnorm.lab.comparison import LEARNED
from batchnorm.lab.files import write_text
from batchnorm.lab.plots import DPI, Picture, pictures, save
from batchnorm.lab.summary import Summary, summarize
from batchnorm.lab.wording import arm_name, from_step, percent, plural, saturation, tables, verdict


@dataclass(frozen=True)
class Report:
    """What was made of a run.

    Attributes
    ----------
    page : Path
        The self-contained page, ``report.html``; beside it lie ``summary.json`` and ``figures/``.
    summary : Summary
        The numbers that the page shows.
    """

    page: Path
    summary: Summary


@dataclass(frozen=True)
class _Figure:
    """A picture as the page embeds it."""

    picture: Picture
    data: str
    width: int
    height: int


def make_report(path: str | Path) -> Report:
    """Make summary.json, figures/ and report.html in a run directory, finished or not.

    Parameters
    ----------
    path : str or Path
        The run directory.

    Returns
    -------
    Report

    Raises
    ------
    OutputError
        ``path`` is not a run directory, is damaged, or cannot be written.
    """
    run = read_run(path)
    summary = summarize(run)
    summary.write(run.path / "summary.json")
    figures = []
    for picture in pictures(run, summary):
        file = save(picture, run.path / "figures")
        if picture.caption:
            width, height = (round(DPI * inches) for inches in picture.figure.get_size_inches())
            figures.append(_Figure(picture, base64.b64encode(file.read_bytes()).decode(), width, height))
    page = run.path / "report.html"
    write_text(page, render(run, summary, figures))
    return Report(page, summary)


def render(run: Run, summary: Summary, figures: list[_Figure]) -> str:
    """Fill the template.

    Parameters
    ----------
    run : Run
        The run directory, read.
    summary : Summary
        Its numbers.
    figures : list
        Its pictures with their files' content.

    Returns
    -------
    str
        HTML.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("batchnorm.lab"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html.j2").render(
        command=run.config.get("command", ""),
        lead=_lead(run),
        status=summary.status,
        verdict=verdict(summary),
        tables=tables(summary),
        figures=figures,
        setup=_setup(run),
        environment=[(key, _text(value)) for key, value in run.environment.items()],
        definitions=_definitions(run, summary),
        config=[(key, _text(value)) for key, value in run.config["config"].items()],
    )


def _lead(run: Run) -> str:
    settings, data, model = run.config["config"], run.config["data"], run.config["model"]
    arms = [arm_name(norm) for norm in settings.get("norm", [])]
    return (
        f"{model.get('description', model.get('name', 'A network'))}, trained on {data.get('name')} "
        f"{' and '.join(arms)}: {plural(len(settings.get('lr') or []), 'learning rate')}, "
        f"{plural(int(settings.get('seeds', 1)), 'seed')}, {int(settings.get('steps') or 0):,} steps each."
    )


def _setup(run: Run) -> list[tuple[str, str]]:
    settings, data, model = run.config["config"], run.config["data"], run.config["model"]
    parameters = ", ".join(f"{count:,} {arm_name(norm)}" for norm, count in model.get("parameters", {}).items())
    rows = [
        ("data", f"{data.get('name')}: {data.get('train', 0):,} training and {data.get('test', 0):,} test examples, "
                 f"{data['classes']} classes, input {' x '.join(map(str, data.get('input_shape', [])))}"),
        ("preprocessing", _text(data.get("preprocessing"))),
        ("network", _text(model.get("description"))),
        ("parameters", parameters or "-"),
        ("training", f"plain SGD on the cross-entropy, mini-batches of {settings.get('batch_size')}"),
        ("pairing", "with the same seed both arms start from the same weights and see the same mini-batches in the same "
                    "order"),
    ]  # fmt: skip
    return rows


def _definitions(run: Run, summary: Summary) -> list[tuple[str, str]]:
    threshold = percent(summary.chance + LEARNED * (1 - summary.chance))
    return [
        ("arm", "The network with one choice of normalization: without BN or with BN."),
        ("trial", "One arm at one learning rate (lr) with one seed."),
        ("best learning rate", "Chosen for each arm in the same way: the highest mean final test accuracy, then the lower "
         "final test loss. A learning rate at which any trial of the arm diverged is not eligible. It is chosen on the "
         "test set, for both arms alike."),
        ("target", "The accuracy that the arm without BN ended with, separately for each seed. There is none if that arm "
         f"diverged or learned nothing, which means: ended below {threshold}, a tenth of the way from chance to perfect."),
        ("ratio", "Steps without BN over steps with BN to first reach the target; above 1, BN needed fewer. The median over "
         "seeds counts a seed that did not reach the target as slower than all that did."),
        ("each at its best lr", "Both arms at their own best learning rate: what a user who tunes both would see."),
        ("the same lr", "Both arms at the same learning rate: BN is the only difference."),
        ("diverged", "The loss was not finite, or training ended with a loss far above that of guessing; the reason is with "
         "the trial."),
        ("drift", "How far the distribution of a unit's input travelled: the sum over evaluations of the absolute change of "
         f"its median; the median over all units of the last hidden layer, then over seeds. {from_step(summary)}"),
        ("spread", "The 85th minus the 15th percentile of a unit's input: mean over evaluations, median over units, then over "
         "seeds."),
        ("saturated", f"A value for which {saturation(run.config['model'].get('activation', ''))}. Share over test examples "
         "and units, at the end, mean over seeds."),
        ("time per step", "Forward, backward and update of one mini-batch, without evaluation; median over the intervals "
         "between evaluations and over seeds."),
    ]  # fmt: skip


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
