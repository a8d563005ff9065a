"""The benchmark suite: torch and this package measured side by side, behind a gate of right answers.

``config`` says what to measure and ``cases`` lists it; ``arms`` are what is compared, ``gate`` checks their answers
against the float64 reference, ``measure`` times them in pairs; ``resnet`` and ``steps`` are for whole training steps.
``worker`` runs all that in a process per allocation mode, ``run`` starts it and keeps the ``rows``; ``goals`` holds the
numbers to reach, ``table`` prints. ``rows``, ``goals`` and ``table`` read files only.
"""
