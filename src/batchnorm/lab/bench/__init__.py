"""The benchmark of single operations: torch and this package side by side, behind a gate of right answers.

``config`` says what to measure and lists the cases; ``arms`` are what is compared, ``gate`` checks their answers
against the float64 reference, ``measure`` times them in pairs. ``worker`` runs all that in one process per allocation
mode, ``run`` starts the processes and keeps their ``rows``; ``table`` prints them. ``rows`` and ``table`` read files
only. Training steps, goals and the page of results are in the repository's ``benchmarks/``.
"""
