"""``python -m batchnorm`` is ``batchnorm``."""

import sys

from batchnorm.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
