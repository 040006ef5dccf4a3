"""Fuzzing of everything that decodes what comes from a network, a device or a person's file.

`python -m tests.fuzz` runs all of it; docs/fuzzing.md says how to read it and how to add to it.
"""
