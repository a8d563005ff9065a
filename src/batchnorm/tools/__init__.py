"""What people do to models that contain batch normalization: convert, revert, recalibrate."""

from batchnorm.tools.convert import convert as convert
from batchnorm.tools.convert import revert as revert
from batchnorm.tools.merge import merge_statistics as merge_statistics
from batchnorm.tools.recalibrate import recalibrate as recalibrate
