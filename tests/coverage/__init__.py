"""How much of a library converts: `python -m tests.coverage sklearn` prints a table."""
