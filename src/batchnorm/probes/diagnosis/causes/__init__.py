"""The causes: for each its name, signature, fix, what would confirm it, and the rule that reads the evidence."""

from batchnorm.probes.diagnosis.causes import batches, buffers, domains, freezing, general, procedure, settings
from batchnorm.probes.diagnosis.causes.form import NAMED as NAMED
from batchnorm.probes.diagnosis.causes.form import Cause as Cause
from batchnorm.probes.diagnosis.causes.form import Found as Found

#: In the order of the table in docs/guides/eval-worse-than-train.md; of equal strength the first comes first.
CAUSES: tuple[Cause, ...] = tuple(
    cause for kind in (buffers, freezing, domains, procedure, batches, settings, general) for cause in kind.CAUSES
)
