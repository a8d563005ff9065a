"""Measure any PyTorch model while it trains, without changing the training.

A probe watches the forward and backward pass of one step (``watch``), then returns a `Reading` (``measure``). Weights,
buffers, gradients, optimizer, modes, hooks and random state are bit for bit what they would have been without it.
`Activations`, `Gradients` and `Running` read the step that happens anyway; `InputShift`, `Shift` and `Landscape` repeat
it at other weights. Under distributed training each probe sees the share of its process. `LossSurface` is not of one
step: it evaluates the loss between trained networks, and around one. ``docs/guides/probes.md`` shows a loop.
"""

from batchnorm.probes.activations import Activations as Activations
from batchnorm.probes.choose import DEFAULT as DEFAULT
from batchnorm.probes.choose import PROBES as PROBES
from batchnorm.probes.choose import make_probes as make_probes
from batchnorm.probes.gradients import Gradients as Gradients
from batchnorm.probes.input_shift import InputShift as InputShift
from batchnorm.probes.landscape import Landscape as Landscape
from batchnorm.probes.probe import Probe as Probe
from batchnorm.probes.probe import Reading as Reading
from batchnorm.probes.probe import Step as Step
from batchnorm.probes.running import Running as Running
from batchnorm.probes.saturation import SATURATED as SATURATED
from batchnorm.probes.shift import Shift as Shift
from batchnorm.probes.surface import LossSurface as LossSurface
from batchnorm.probes.surface import Surface as Surface
from batchnorm.probes.surface import filter_normalized as filter_normalized
