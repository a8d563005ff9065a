"""The lab: experiments on networks with and without batch normalization.

A directory divides it. On one side ``data``, ``models``, ``probes``, ``training`` and ``experiments.run`` train and
record; on the other ``recording``, ``rules``, ``plots``, the rest of ``experiments`` and ``report`` read files only, on
any machine, without torch. ``bench`` is a room of its own.
"""
