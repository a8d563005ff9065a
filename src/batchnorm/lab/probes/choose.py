"""Probes by name."""

from collections.abc import Sequence

from torch import nn

from batchnorm.lab.errors import LabError
from batchnorm.lab.probes.activations import Activations
from batchnorm.lab.probes.gradients import Gradients
from batchnorm.lab.probes.landscape import Landscape
from batchnorm.lab.probes.probe import Probe
from batchnorm.lab.probes.running import Running
from batchnorm.lab.probes.shift import Shift

PROBES: dict[str, type[Activations | Gradients | Running | Shift | Landscape]] = {
    probe.name: probe for probe in (Activations, Gradients, Running, Shift, Landscape)
}

#: Cheap enough to leave on.
DEFAULT = ("activations", "gradients", "running")


def make_probes(names: Sequence[str], model: nn.Module) -> list[Probe]:
    """Make the probes of these names for one model.

    Parameters
    ----------
    names : sequence of str
        Names in `PROBES`; each counts once.
    model : Module
        The network itself, not wrapped for distributed training.

    Returns
    -------
    list of Probe
        In the order of ``names``.

    Raises
    ------
    LabError
        A name is unknown.
    """
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        raise LabError(f"a probe must be one of {', '.join(PROBES)}; got {', '.join(unknown)}; leave out or correct it")
    return [PROBES[name](model) for name in dict.fromkeys(names)]
