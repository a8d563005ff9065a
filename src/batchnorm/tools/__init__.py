"""What people do to models that contain batch normalization: convert and revert, so far."""

from batchnorm.tools.convert import convert as convert
from batchnorm.tools.convert import revert as revert
