"""``diagnose`` and ``watch``: why is eval() worse than train(), after training and during it."""

from batchnorm.probes.diagnosis.causes import CAUSES as CAUSES
from batchnorm.probes.diagnosis.diagnose import diagnose as diagnose
from batchnorm.probes.diagnosis.result import Diagnosis as Diagnosis
from batchnorm.probes.diagnosis.result import Finding as Finding
from batchnorm.probes.diagnosis.result import LayerRow as LayerRow
from batchnorm.probes.diagnosis.result import ProbeRow as ProbeRow
from batchnorm.probes.diagnosis.watching import StatisticsWarning as StatisticsWarning
from batchnorm.probes.diagnosis.watching import watch as watch
