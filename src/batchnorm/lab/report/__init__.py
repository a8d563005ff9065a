"""``batchnorm report``: one self-contained page from one or several runs of ``batchnorm train``.

Everything here reads run directories: ``arms`` groups them, ``series`` makes curves of their records, ``numbers`` and
``layers`` compute what is shown, ``wording`` says it, ``figures`` and ``charts`` draw it, ``page`` puts it together.
"""

from batchnorm.lab.report.page import Report, make_report

__all__ = ["Report", "make_report"]
