"""The catalogue: what can be checked, by name, with the mistakes that are known for it."""

from batchnorm.checker.catalogue import dense, dropout, initializers, optimizers, penalties, spatial
from batchnorm.checker.model import Mistake

SUBJECTS = {
    subject.name: subject
    for subject in (
        dense.SUBJECT,
        spatial.SUBJECT,
        dropout.SUBJECT,
        *optimizers.SUBJECTS,
        *initializers.SUBJECTS,
        *penalties.SUBJECTS,
    )
}


def mistakes() -> dict[str, Mistake]:
    """Return every known mistake by its id."""
    return {mistake.id: mistake for subject in SUBJECTS.values() for mistake in subject.mistakes}


__all__ = ["SUBJECTS", "mistakes"]
