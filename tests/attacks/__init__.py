"""Attacks by name, each against a client without the check that stops it, and against ours.

`register` has the list of names; `python -m tests.attacks` makes the table of docs/security.md.
"""
