"""All claims side by side: their stored results as a page of the documentation, and their directories as one page.

A stored result is a small JSON file, NAME.BUDGET.json: what was measured for each check, and where. Verdicts, means and
intervals are computed from it whenever the page is made.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchnorm.lab.errors import LabError, OutputError
from batchnorm.lab.experiments.claims import registry
from batchnorm.lab.experiments.claims.form import BUDGETS, Check, Claim, Findings, check_table
from batchnorm.lab.experiments.claims.run import Judged
from batchnorm.lab.files import make_run_directory, read_mapping, write_json, write_text
from batchnorm.lab.page import embed, fill
from batchnorm.lab.recording import FORMAT
from batchnorm.lab.rules import FAILS, HOLDS, INCONCLUSIVE
from batchnorm.lab.wording import plural

NOT_RUN = "not run"
#: Of the environment, what says where a number comes from.
WHERE = ("date", "batchnorm", "torch", "processor", "cores", "threads", "load")
DIGITS = 6

Result = Mapping[str, Any]


def result_of(judged: Judged) -> dict[str, Any]:
    """Return what is stored of a claim that was run.

    Parameters
    ----------
    judged : Judged
        Its directory, read.

    Returns
    -------
    dict
        For JSON; numbers have six significant digits.
    """
    checks = [
        {"name": check.name, "measured": check.measured, "bound": check.bound, "above": check.above,
         "values": [_stored(value) for value in check.values]}
        for check in judged.findings.checks
    ]  # fmt: skip
    return {
        "format": FORMAT, "claim": judged.claim.name, "budget": judged.config["budget"],
        "command": judged.config["command"], "settings": judged.config["settings"], "rule": judged.config["rule"],
        "headline": judged.findings.headline, "checks": checks, "limits": judged.findings.limits,
        "seconds": judged.seconds, "environment": {key: judged.environment.get(key) for key in WHERE},
    }  # fmt: skip


def findings_of(result: Result) -> Findings:
    """Return the findings that a stored result holds, without pictures.

    Parameters
    ----------
    result : mapping
        Of :func:`result_of`.

    Returns
    -------
    Findings
    """
    checks = [
        Check(one["name"], one["measured"], [float(value) for value in one["values"]], one["bound"], one["above"])
        for one in result["checks"]
    ]
    return Findings(result["headline"], checks, limits=list(result["limits"]))


def store(judged: Sequence[Judged], folder: Path) -> list[Path]:
    """Store results in a folder, in the place of earlier ones of the same claim and budget.

    Parameters
    ----------
    judged : sequence of Judged
        Directories, read.
    folder : Path
        Made if missing.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    if not folder.is_dir():
        make_run_directory(folder)
    files = []
    for one in judged:
        files.append(folder / f"{one.claim.name}.{one.config['budget']}.json")
        write_json(files[-1], result_of(one))
    return files


def read_results(folder: Path) -> dict[str, dict[str, Result]]:
    """Read the stored results of a folder.

    Parameters
    ----------
    folder : Path
        Of :func:`store`.

    Returns
    -------
    dict of str to dict of str to mapping
        By name of the claim, then by budget. Every claim that there is has a place.

    Raises
    ------
    LabError
        A result of a claim that there is none of, or that was measured by another rule, or with other settings, than
        the claim has now.
    """
    found: dict[str, dict[str, Result]] = {name: {} for name in registry.names()}
    for file in sorted(folder.glob("*.json")):
        result = read_mapping(
            file, require=("claim", "budget", "rule", "settings", "headline", "checks", "limits", "command")
        )
        claim = registry.claim(result["claim"])
        asked = _asked(claim, result)
        for what, then, now in (("rule", result["rule"], claim.rule), ("setting", result["settings"], asked)):
            if then != now:
                raise LabError(
                    f"{file} was made by a {what} that {claim.name} no longer has; run it again: {result['command']}"
                )
        found[result["claim"]][result["budget"]] = result
    return found


def write_page(folder: Path, page: Path) -> None:
    """Write the page of the documentation from the results of a folder.

    Parameters
    ----------
    folder : Path
        Of :func:`store`.
    page : Path
        The Markdown file.

    Raises
    ------
    LabError
        As :func:`read_results`.
    OutputError
        The disk refuses.
    """
    write_text(page, markdown(read_results(folder)))


def markdown(results: Mapping[str, Mapping[str, Result]]) -> str:
    """Write all claims as a Markdown page: a table, and a card for each.

    Parameters
    ----------
    results : mapping
        Of :func:`read_results`.

    Returns
    -------
    str
    """
    verdicts = {
        name: {budget: findings_of(own[budget]).status if budget in own else NOT_RUN for budget in BUDGETS}
        for name, own in results.items()
    }
    lines = [
        "# Claims of the papers, and what came out",
        "",
        "Made by `batchnorm claims store DIRECTORY...` from the results in `claims/`; do not edit. Each rule was",
        "stored before anything was measured. [How claims are judged, and how to add one](guides/claims.md).",
        "",
        _counted([own["small"] for own in verdicts.values()]) + " (Small budgets.)",
        "",
        "| claim | says | small | full |",
        "|---|---|---|---|",
    ]
    for name, own in verdicts.items():
        shown = " | ".join(f"**{own[b]}**" if own[b] == HOLDS else own[b] for b in BUDGETS)
        lines.append(f"| [{name}](#{name}) | {registry.claim(name).sentence} | {shown} |")
    for name, budgets in results.items():
        lines += ["", f"## {name}", "", *_card(registry.claim(name), budgets)]
    return "\n".join(lines) + "\n"


def _asked(claim: Claim, result: Result) -> dict[str, Any]:
    """Return the settings that the command of a result stands for now."""
    words = shlex.split(result["command"])
    seeds = int(words[words.index("--seeds") + 1]) if "--seeds" in words else None
    changes = words[words.index("--set") + 1 :] if "--set" in words else []  # the last of its flags
    return claim.settings(result["budget"], changes, seeds)


def _card(claim: Claim, results: Mapping[str, Result]) -> list[str]:
    lines = [
        f"> {claim.sentence}",
        "",
        f"From: {claim.source}. Measured: {claim.protocol}",
        "",
        f"Rule: {claim.rule}",
        "",
    ]
    for word, said in (("Published", claim.published), ("What differs", claim.differs)):
        lines += [f"{word}: {said}", ""] if said else []
    for budget in BUDGETS:
        if budget not in results:
            lines += [f"**{budget.capitalize()} budget: {NOT_RUN}** ({claim.cost[budget]}).", ""]
            continue
        result = results[budget]
        found = findings_of(result)
        table = check_table(found.checks)
        lines += [f"**{budget.capitalize()} budget: {found.status}.** {found.headline}", "",
                  f"| {' | '.join(table.columns)} |", "|" + "---|" * len(table.columns),
                  *(f"| {' | '.join(row)} |" for row in table.rows), "",
                  *(f"- {limit}" for limit in found.limits), *([""] if found.limits else []),
                  f"{_where(result)} Again: `{result['command']}`", ""]  # fmt: skip
    return lines[:-1]


def _where(result: Result) -> str:
    where = result.get("environment", {})
    seconds = f"{result['seconds']:.0f} s" if result.get("seconds") is not None else "time not recorded"
    load = where.get("load")
    return (f"Took {seconds} with {where.get('threads')} of {where.get('cores')} cores ({where.get('processor')})"
            f"{f', load {load:g}' if load is not None else ''}, {str(where.get('date'))[:10]}, torch "
            f"{where.get('torch')}.")  # fmt: skip


def _counted(statuses: Sequence[str]) -> str:
    counts = {word: statuses.count(word) for word in (HOLDS, FAILS, INCONCLUSIVE, NOT_RUN) if word in statuses}
    verbs = {
        HOLDS: ("holds", "hold"),
        FAILS: ("does not hold", "do not hold"),
        INCONCLUSIVE: ("is inconclusive", "are inconclusive"),
        NOT_RUN: ("was not run", "were not run"),
    }
    said = [f"{count} {verbs[word][count != 1]}" for word, count in counts.items()]
    return f"Of {plural(len(statuses), 'claim')} {', '.join(said)}."


def page_of_all(judged: Mapping[Path, Judged], folder: Path) -> tuple[Path, str]:
    """Write one page of several claims: a table, and a card with the first picture of each.

    Parameters
    ----------
    judged : mapping of Path to Judged
        Directories, read.
    folder : Path
        Where ``report.html`` and ``figures/`` go.

    Returns
    -------
    page : Path
    headline : str
        How many hold.

    Raises
    ------
    OutputError
        The disk refuses, or a claim is given twice.
    """
    names = [one.claim.name for one in judged.values()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OutputError(f"{twice[0]} is given twice; give one directory for each claim")
    headline = _counted([one.findings.status for one in judged.values()])
    known = [one.seconds for one in judged.values() if one.seconds is not None]
    page = folder / "report.html"
    took = f"Together they took {sum(known) / 60:.1f} min."
    html = fill(
        "claims.html.j2",
        headline=headline,
        took=took if len(known) == len(names) else "",
        cards=[_html_card(one, folder) for one in judged.values()],
    )
    write_text(page, html)
    return page, headline


def _html_card(judged: Judged, folder: Path) -> dict[str, Any]:
    claim, findings, table = judged.claim, judged.findings, check_table(judged.findings.checks)
    facts = [
        ("claimed in", claim.source), ("rule, fixed before the first run", str(judged.config["rule"])),
        ("published", claim.published or "no number"), ("what differs", claim.differs or "nothing"),
        ("what limits this answer", " ".join(findings.limits)), ("where", _where(result_of(judged))),
    ]  # fmt: skip
    first = [replace(picture, name=f"{claim.name}-{picture.name}") for picture in findings.pictures[:1]]
    shown = embed(first, folder / "figures")
    return {
        "name": claim.name, "sentence": claim.sentence, "verdict": findings.status, "headline": findings.headline,
        "figure": shown[0] if shown else None, "columns": table.columns, "rows": table.rows,
        "facts": [fact for fact in facts if fact[1]], "command": judged.config["command"],
    }  # fmt: skip


def _stored(value: float) -> float | str:
    """Round to what JSON keeps; what is not finite becomes a word that ``float`` reads."""
    rounded = float(f"{value:.{DIGITS}g}")
    return rounded if abs(rounded) < float("inf") else str(rounded)
