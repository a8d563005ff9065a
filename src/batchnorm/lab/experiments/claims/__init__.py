"""Claims of papers and course notes: ``form`` says what one is, ``run`` measures it, every other file is one claim.

A file with a ``CLAIM`` is found by ``registry``; docs/guides/claims.md says how to add one.
"""
