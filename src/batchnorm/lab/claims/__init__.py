"""Claims of papers and course notes, each with an experiment: `batchnorm claims`.

``config`` is the command line and ``registry`` the list; ``findings`` is what every claim's page is made of.
``activations``, ``races``, ``whitening`` and ``regularizers`` measure and judge, each with its ``*_figures``;
``pointsets`` makes or reads two-class data. ``run`` turns a claim into a run directory, ``page`` reads it again.
"""
