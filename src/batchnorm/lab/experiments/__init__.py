"""Experiments: plans of training runs, and what they run on.

``plan`` says what is varied, in which order, and what decides; ``run`` trains the cells that are missing; ``takes``
keeps several processes and machines from training the same cell. ``compare`` is the plan of ``batchnorm compare``.
"""
