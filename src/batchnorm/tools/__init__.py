"""Tools for models that contain batch normalization."""

from batchnorm.tools.convert import convert as convert
from batchnorm.tools.convert import revert as revert
from batchnorm.tools.fold import fold as fold
from batchnorm.tools.freeze import freeze as freeze
from batchnorm.tools.freeze import unfreeze as unfreeze
from batchnorm.tools.masked import masked as masked
from batchnorm.tools.merge import merge_statistics as merge_statistics
from batchnorm.tools.recalibrate import recalibrate as recalibrate
