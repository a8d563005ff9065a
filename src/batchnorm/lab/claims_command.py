"""The command ``batchnorm claims``: list the claims, put some to the test, or store what came out."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from batchnorm.lab.errors import LabError

DONE, WRONG, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class ListClaims:
    """List the claims: sentence, source, protocol, rule, and what each budget costs."""


@dataclass(frozen=True)
class RunClaims:
    """Put claims to the test: measure, judge by a rule that is stored first, and make a page.

    Exit codes: 0 every claim holds; 1 one does not hold or is inconclusive; 2 bad input; 130 interrupted, and the
    records so far are kept.

    Example: batchnorm claims run whitening --budget full --seeds 10
    """

    names: tyro.conf.Positional[tuple[str, ...]]
    """Claims to run, one after the other; all: every claim."""

    budget: Literal["small", "full"] = "small"
    """small: minutes on two cores. full: the sizes of the source, as far as they are known."""

    seeds: int | None = None
    """Number of repetitions. None: as the budget says. Fewer than three decide nothing."""

    set: tuple[str, ...] = ()
    """Settings of a claim that differ from the budget, as in `--set units=1024`; `claims list` shows them."""

    workers: int = 1
    """Processes that train cells at the same time, where a claim trains networks."""

    out: Path | None = None
    """Directory, new or empty; with several claims, the parent of theirs. None: runs/claim-NAME-TIME."""


@dataclass(frozen=True)
class StoreClaims:
    """Store results of claims that were run, in small files, and write the page of all stored results.

    Example: batchnorm claims store results/* --into docs/claims
    """

    directories: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Directories of claims that were run. None: only the page is written again."""

    into: Path = Path("docs/claims")
    """Folder of the small files; the page lies beside it, with the ending .md."""


@dataclass(frozen=True)
class ClaimsConfig:
    """Claims of papers and course notes, each with an experiment: list them, run some, or store results."""

    action: (
        Annotated[ListClaims, tyro.conf.subcommand("list")]
        | Annotated[RunClaims, tyro.conf.subcommand("run")]
        | Annotated[StoreClaims, tyro.conf.subcommand("store")]
    )
    """What to do."""


def run(config: ClaimsConfig) -> int:
    """List, run or store claims.

    Parameters
    ----------
    config : ClaimsConfig
        The flags.

    Returns
    -------
    int
        Exit code.

    Raises
    ------
    LabError
        A claim or a setting that does not exist, or a directory that cannot be used.
    """
    if isinstance(config.action, StoreClaims):
        return _store(config.action)
    return _run(config.action) if isinstance(config.action, RunClaims) else _list()


def directories(config: RunClaims, chosen: list[str]) -> dict[str, Path]:
    """Return the directory of each claim.

    Parameters
    ----------
    config : RunClaims
        The flags.
    chosen : list of str
        Names of claims.

    Returns
    -------
    dict of str to Path
    """
    if config.out is not None:
        return {name: config.out if len(chosen) == 1 else config.out / name for name in chosen}
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return {name: Path("runs") / f"claim-{name}-{stamp}" for name in chosen}


def _list() -> int:
    from batchnorm.lab.experiments.claims.registry import claim, names  # NumPy, matplotlib

    for name in names():
        one = claim(name)
        lines = [name, f"    {one.sentence}", f"    from: {one.source}", f"    measured: {one.protocol}",
                 f"    holds when: {one.rule}", *([f"    published: {one.published}"] if one.published else []),
                 "    cost: " + ", ".join(f"{budget} {words}" for budget, words in one.cost.items()),
                 "    settings: " + ", ".join(one.budgets["small"])]  # fmt: skip
        sys.stdout.write("\n".join(lines) + "\n")
    return DONE


def _run(config: RunClaims) -> int:
    from batchnorm.lab.environment import environment  # torch
    from batchnorm.lab.experiments.claims import run as running
    from batchnorm.lab.experiments.claims.registry import chosen, claim
    from batchnorm.lab.report import make_report
    from batchnorm.lab.rules import HOLDS
    from batchnorm.lab.terminal import console

    out, statuses = console(), {}
    picked = chosen(config.names)
    for name in picked:  # whatever is wrong is said before anything is measured
        claim(name).settings(config.budget, config.set, config.seeds)
    directories_of = directories(config, picked)
    for name, path in directories_of.items():
        one, settings = running.begin(
            name, path, budget=config.budget, changes=config.set, seeds=config.seeds, environment=environment()
        )
        out.print(f"claim {name}, {config.budget} budget ({one.cost[config.budget]}), into {path}", soft_wrap=True)
        if not _measure(one, settings, path, config.workers):
            sys.stderr.write(f"batchnorm: interrupted; the same command with --out {path} goes on\n")
            return INTERRUPTED
        report = make_report([path])
        report.show(out)
        out.print(f"\nreport: {report.page}\n", soft_wrap=True)
        statuses[name] = report.status
    if len(statuses) > 1:
        out.print("\n".join(f"{name}: {status}" for name, status in statuses.items()))
        every = make_report(list(directories_of.values()), config.out and config.out / "all")
        out.print(f"\n{every.verdict.headline}\nreport of all: {every.page}", soft_wrap=True)
    return DONE if set(statuses.values()) == {HOLDS} else WRONG


def _store(config: StoreClaims) -> int:
    from batchnorm.lab.experiments.claims.run import judge  # matplotlib
    from batchnorm.lab.report.claims import store, write_page

    judged = [judge(path) for path in config.directories]
    page = config.into.with_name(config.into.name + ".md")
    for file in store(judged, config.into):
        sys.stdout.write(f"stored: {file}\n")
    write_page(config.into, page)
    sys.stdout.write(f"page: {page}\n")
    return DONE


def _measure(one: Any, settings: Mapping[str, Any], path: Path, workers: int) -> bool:
    from batchnorm.lab.experiments.claims.run import measure
    from batchnorm.lab.experiments.plan import missing, read_plan
    from batchnorm.lab.experiments.progress import plan_progress
    from batchnorm.lab.terminal import console, counting_bar

    out = console()
    if one.measure is not None:
        with counting_bar(out, one.total(settings)) as advance:
            measure(one, settings, path, advance)
        return True
    from batchnorm.lab.experiments.run import Watch, run_plan  # torch

    if workers < 1:
        raise LabError(f"workers must be at least 1; got {workers}")
    plan = read_plan(path)
    with plan_progress(out, plan, len(missing(plan, path))) as (advance_cell, ended):
        return run_plan(path, workers=workers, watch=Watch(advance_cell, ended))
