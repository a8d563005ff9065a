"""``batchnorm report``: one self-contained page from a plan, or from one or several runs of ``batchnorm train``.

Everything here reads directories: ``study`` groups runs into arms, ``series`` makes curves of their records,
``numbers``, ``layers`` and ``units`` compute what is shown, ``wording`` says it, ``figures`` and ``charts`` draw it,
``page`` puts it together.
"""

from batchnorm.lab.report.page import Report, make_report

__all__ = ["Report", "make_report"]
