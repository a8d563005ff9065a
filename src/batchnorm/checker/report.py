"""The result of a check, and how it reads."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from batchnorm.checker.diagnose import Difference, Finding

#: Columns of the printed report.
WIDTH = 100
VERDICTS = {
    "right": "right",
    "mistake": "MISTAKE",
    "unknown": "WRONG, and no known mistake explains it",
    "error": "STOPPED",
    "follows": "right for the forward as it is: nothing to change here",
    "waits": "not judged yet: it builds on the cache of a wrong forward. Correct that first",
}
#: What the outputs are called in a sentence.
OUTPUTS = {
    "test_out": "out at test time",
    "out_far": "out for inputs with a mean of 1e6",
    "running_mean_second": "running_mean after the second batch",
    "running_var_second": "running_var after the second batch",
    "running_mean_after_test": "running_mean after a call at test time",
    "running_var_after_test": "running_var after a call at test time",
    "default_keeps_old": "the default momentum",
    "kept": "the share that is kept",
    "scale": "the factor of what is kept",
    "rows_alike": "the mask",
    "test_kept": "the share that is kept at test time",
    "test_scale": "the factor at test time",
    "back_agrees": "the share of gradients that pass where the forward passed",
    "back_kept": "the share of gradients that pass",
    "back_scale": "the factor of the gradient",
    "test_back_kept": "the share of gradients that pass at test time",
    "test_back_scale": "the factor of the gradient at test time",
    "mean": "the mean over the deviation",
    "deviation": "the deviation over the right one",
    "conv_deviation": "the deviation over the right one, for a convolution",
}


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes
    ----------
    path : Path
        The file.
    findings : tuple of Finding
        In the order of the file's subjects; a forward before its backward.
    remarks : tuple of str
        What is odd about the file as a whole.
    failure : str or None
        Why nothing could be checked.
    """

    path: Path
    findings: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether something was checked, and all of it is right."""
        return self.failure is None and bool(self.findings) and all(f.kind == "right" for f in self.findings)

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Ids of the known mistakes that were found."""
        return tuple(dict.fromkeys(mistake.id for finding in self.findings for mistake in finding.mistakes))

    def __str__(self) -> str:
        """Return the report as text."""
        if self.failure is not None:
            return f"{self.path}: nothing was checked\n" + _indented(self.failure)
        blocks = [f"{self.path}: {self._verdict()}"]
        blocks += [_indented(f"note: {remark}") for remark in self.remarks]
        text = "\n".join(blocks)
        quiet = False  # right ones stand in a list, the others in paragraphs
        for finding in self.findings:
            text += ("\n" if quiet and finding.kind == "right" else "\n\n") + _block(finding)
            quiet = finding.kind == "right"
        return text

    def _verdict(self) -> str:
        functions = list(dict.fromkeys(finding.function for finding in self.findings))
        wrong = [name for name in functions if any(f.function == name and f.kind != "right" for f in self.findings)]
        if not wrong:
            return f"{_count(len(functions), 'function')} checked, all right"
        return f"{_count(len(functions), 'function')} checked, {len(wrong)} not right"


def _block(finding: Finding) -> str:
    lines = [f"{finding.function}: {VERDICTS[finding.kind]}"]
    if finding.error:
        lines.append(_indented(finding.error))
    lines += [_indented(_difference(one)) for one in finding.differences[:3]]
    if len(finding.differences) > 3:
        rest = ", ".join(OUTPUTS.get(one.output, one.output) for one in finding.differences[3:])
        lines.append(_indented(f"also wrong: {rest}"))
    if len(finding.mistakes) > 1:
        lines += ["", "  Two mistakes together explain it."]
    for mistake in finding.mistakes:
        lines += [
            "",
            _field("mistake", mistake.title),
            _field("effect", mistake.why),
            _field("equation", mistake.equation),
            _field("fix", mistake.fix[0], wrap=False),
            _field("", mistake.fix[1], wrap=False),
            _field("id", mistake.id),
        ]
    lines += [_indented(f"({note})") for note in finding.notes]
    return "\n".join(lines)


def _difference(one: Difference) -> str:
    name = OUTPUTS.get(one.output, one.output)
    if one.output.endswith("_after") and one.output not in OUTPUTS:
        return f"{one.output.removesuffix('_after')} was changed by the call"
    if one.output == "default_keeps_old":
        return "without a momentum argument, the new batch gets more weight than the old value"
    if one.output == "rows_alike":
        return "whole rows or columns are kept or dropped together"
    if one.index is None:
        return f"{name} has {one.got}, expected {one.expected}"
    if one.total == 1:
        return f"{name} is {one.got}, expected {one.expected}"
    word, _, when = name.partition(" ")
    where = f"{word}[{', '.join(map(str, one.index))}]{when and ' '}{when}"
    return f"{where} is {one.got}, expected {one.expected} ({one.wrong} of {one.total} values differ)"


def _field(name: str, text: str, *, wrap: bool = True) -> str:
    start = f"  {name:<10}"
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * 12) if wrap else f"{start}{text}"


def _indented(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
