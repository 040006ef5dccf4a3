"""The command `python -m tests.attacks`: the table of attacks, printed or written to its page."""

import argparse
import sys

from tests.attacks.register import BEGIN, END, PAGE, table


def main() -> int:
    """Print the table, or replace it in docs/security.md."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"replace it in {PAGE.name}")
    if not parser.parse_args().write:
        print(table())
        return 0
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + table() + after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
