"""Fail if this environment lacks the agent, or holds anything that the agent must not need."""

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
    """Return 0 if the agent can be imported and none of the banned packages can, else 1."""
    if not importlib.util.find_spec("edgefleet_agent"):
        print("the agent is not installed here", file=sys.stderr)
        return 1
    found = [name for name in BANNED if importlib.util.find_spec(name)]
    if found:
        print(f"the agent's environment also holds {', '.join(found)}", file=sys.stderr)
        return 1
    print(f"the agent is installed alone: none of {', '.join(BANNED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
