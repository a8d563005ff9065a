"""The lab: trains the same network with and without batch normalization, and shows the difference.

The run directory divides it. On one side ``data``, ``models``, ``probes`` and ``training`` train and record; on the
other ``recording``, ``plots`` and ``report`` read files only, on any machine, without torch. ``compare``, ``claims``
and ``bench`` are rooms of their own, each for one command.
"""
