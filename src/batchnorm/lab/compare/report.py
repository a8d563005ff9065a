"""One self-contained page from a comparison: no network, no torch, nothing that is not in the files."""

from dataclasses import dataclass
from pathlib import Path

from batchnorm.lab.compare.artefacts import Run, read_run
from batchnorm.lab.compare.charts import REDRAWN, data
from batchnorm.lab.compare.comparison import LEARNED
from batchnorm.lab.compare.plots import pictures
from batchnorm.lab.compare.summary import Summary, summarize
from batchnorm.lab.compare.wording import arm_name, from_step, saturation, tables, verdict
from batchnorm.lab.files import write_text
from batchnorm.lab.page import EmbeddedPicture, embed, fill, script, text
from batchnorm.lab.wording import percent, plural


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
    figures = embed(pictures(run, summary), run.path / "figures")
    page = run.path / "report.html"
    write_text(page, render(run, summary, figures))
    return Report(page, summary)


def render(run: Run, summary: Summary, figures: list[EmbeddedPicture]) -> str:
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
    carried = data(summary)
    return fill(
        "compare.html.j2",
        command=run.config.get("command", ""),
        lead=_lead(run),
        status=summary.status,
        verdict=verdict(summary),
        tables=tables(summary),
        figures=[figure for figure in figures if figure.picture.name not in REDRAWN],
        redrawn=[figure for figure in figures if figure.picture.name in REDRAWN],
        charts=carried["charts"],
        script=script(carried),
        data=run.config["data"],
        model=run.config["model"],
        settings=run.config["config"],
        arm_name=arm_name,
        environment=[(key, text(value)) for key, value in run.environment.items()],
        learned=percent(summary.chance + LEARNED * (1 - summary.chance)),
        percentiles_from=from_step(summary),
        saturated=saturation(run.config["model"].get("activation", "")),
        config=[(key, text(value)) for key, value in run.config["config"].items()],
    )


def _lead(run: Run) -> str:
    settings, data, model = run.config["config"], run.config["data"], run.config["model"]
    arms = [arm_name(norm) for norm in settings.get("norm", [])]
    return (
        f"{model.get('description', model.get('name', 'A network'))}, trained on {data.get('name')} "
        f"{' and '.join(arms)}: {plural(len(settings.get('lr') or []), 'learning rate')}, "
        f"{plural(int(settings.get('seeds', 1)), 'seed')}, {int(settings.get('steps') or 0):,} steps each."
    )
