"""Fail if this environment holds anything that the agent must not need."""

import importlib.util
import sys

BANNED = (
    "edgefleet_cloud",
    "edgefleet_converters",
    "fastapi",
    "sqlalchemy",
    "tensorflow",
    "sklearn",
    "onnx",
)


def main() -> int:
    """Return 0 if none of the banned packages can be imported, else 1."""
    found = [name for name in BANNED if importlib.util.find_spec(name)]
    if found:
        print(f"the agent's environment also holds {', '.join(found)}", file=sys.stderr)
        return 1
    print(f"the agent is installed alone: none of {', '.join(BANNED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
