"""The dense layer as a subject, with the mistakes of both directions."""

from batchnorm.checker.catalogue import backward, batch_norm, forward
from batchnorm.checker.model import Subject

SUBJECT = Subject(
    name="batchnorm",
    compute=batch_norm.compute,
    groups=batch_norm.GROUPS,
    mistakes=(*forward.MISTAKES, *backward.MISTAKES),
    conventions=batch_norm.CONVENTIONS,
)
