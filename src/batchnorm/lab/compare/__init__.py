"""``batchnorm compare``: the same network with and without batch normalization, side by side.

``config`` and ``trainer`` train and record into a run directory; everything else here reads it.
"""
