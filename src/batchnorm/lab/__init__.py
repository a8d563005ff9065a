"""The lab: trains the same network with and without batch normalization, and shows the difference.

The run directory divides it. On one side ``config``, ``data``, ``models``, ``probes`` and ``trainer`` train and record;
on the other ``artefacts``, ``plots`` and ``report`` read files only, on any machine, without torch.
"""
