"""Select probes by name."""

from collections.abc import Sequence

from torch import nn

from batchnorm.probes.activations import Activations
from batchnorm.probes.gradients import Gradients
from batchnorm.probes.input_shift import InputShift
from batchnorm.probes.landscape import Landscape
from batchnorm.probes.probe import Probe
from batchnorm.probes.running import Running
from batchnorm.probes.shift import Shift

PROBES: dict[str, type[Activations | Gradients | Running | InputShift | Shift | Landscape]] = {
    probe.name: probe for probe in (Activations, Gradients, Running, InputShift, Shift, Landscape)
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
    ValueError
        A name is unknown.

    Examples
    --------
    >>> from torch import nn
    >>> from batchnorm.probes import make_probes
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU())
    >>> [probe.name for probe in make_probes(["running", "activations"], model)]
    ['running', 'activations']
    """
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        raise ValueError(
            f"a probe must be one of {', '.join(PROBES)}; got {', '.join(unknown)}; leave out or correct it"
        )
    return [PROBES[name](model) for name in dict.fromkeys(names)]
