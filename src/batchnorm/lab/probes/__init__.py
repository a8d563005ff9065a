"""What is measured on a network while it trains: probes of one step, and the evaluations of ``batchnorm compare``.

A probe works on any module, and changes nothing: weights, buffers, gradients, optimizer, modes, hooks and random state
are bit for bit what they were. ``activations``, ``gradients`` and ``running`` watch the step that happens anyway;
``shift`` and ``landscape`` repeat it at other weights. Under distributed training each sees the share of its process.
"""

from batchnorm.lab.probes.choose import DEFAULT as DEFAULT
from batchnorm.lab.probes.choose import PROBES as PROBES
from batchnorm.lab.probes.choose import make_probes as make_probes
from batchnorm.lab.probes.evaluation import Evaluation as Evaluation
from batchnorm.lab.probes.evaluation import evaluate as evaluate
from batchnorm.lab.probes.evaluation import percentiles as percentiles
from batchnorm.lab.probes.evaluation import recorded_inputs as recorded_inputs
from batchnorm.lab.probes.evaluation import training_loss as training_loss
from batchnorm.lab.probes.probe import Probe as Probe
from batchnorm.lab.probes.probe import Reading as Reading
from batchnorm.lab.probes.probe import Step as Step
from batchnorm.lab.probes.saturation import SATURATED as SATURATED
