"""Write the reference of the agent's settings into docs/agent.md, from the code.

python scripts/agent_settings.py          write it
python scripts/agent_settings.py --check  fail if it differs
"""

import inspect
import re
import sys
from pathlib import Path

import msgspec

from edgefleet_agent import config

PAGE = Path(__file__).parents[1] / "docs" / "agent.md"
BEGIN, END = "<!-- settings: made by scripts/agent_settings.py -->", "<!-- end of settings -->"


def reference() -> str:
    """Return the reference as Markdown: a table for each table of the configuration."""
    parts = []
    settings = list(config.settings())
    for table in dict.fromkeys(setting.table for setting in settings):
        documented = _struct_of(table)
        told = _attributes(documented)
        summary = (inspect.getdoc(documented) or "").splitlines()[0]
        lines = ["### Top level" if not table else f"### `[{table}]`", ""]
        if table:
            lines += [summary, ""]
        lines += ["| setting | default | meaning |", "|---|---|---|"]
        lines += [
            f"| `{s.name}` | {_default(s)} | {_kind(s)}; {told[s.name]} |"
            for s in settings
            if s.table == table
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def page(text: str) -> str:
    """Return the page with the reference of now in it."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write or check the page."""
    text = PAGE.read_text("utf-8")
    fresh = page(text)
    if arguments == ["--check"]:
        if fresh != text:
            print(f"{PAGE} is behind the code; run {sys.argv[0]}", file=sys.stderr)
        return int(fresh != text)
    PAGE.write_text(fresh, "utf-8")
    return 0


def _struct_of(table: str) -> type[msgspec.Struct]:
    if not table:
        return config.Config
    (field,) = (f for f in msgspec.inspect.type_info(config.Config).fields if f.name == table)
    kinds = getattr(field.type, "types", (field.type,))
    return next(kind.cls for kind in kinds if isinstance(kind, msgspec.inspect.StructType))


def _attributes(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return attribute → text of the docstring."""
    _, _, section = (inspect.getdoc(struct) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        begun = re.match(r" {4}(\w+): (.*)", line)
        if begun:
            name = begun[1]
            found[name] = begun[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return {name: text.rstrip(".").replace("|", "\\|") for name, text in found.items()}


def _default(setting: config.Setting) -> str:
    value = setting.default
    if value is msgspec.NODEFAULT:
        return "must be given"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value}`"


def _kind(setting: config.Setting) -> str:
    kinds = getattr(setting.kind, "types", (setting.kind,))
    (kind,) = (k for k in kinds if not isinstance(k, msgspec.inspect.NoneType))
    if isinstance(kind, msgspec.inspect.ListType):
        if isinstance(kind.item_type, msgspec.inspect.StructType):
            return "list of tables"
        return f"list of {_word(kind.item_type)}"
    return _word(kind)


def _word(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.LiteralType(values=values):
            return " or ".join(f'`"{value}"`' for value in values)
        case msgspec.inspect.BoolType():
            return "boolean"
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            word = "integer" if isinstance(kind, msgspec.inspect.IntType) else "number"
            bounds = [
                f"{sign} {bound:g}"
                for sign, bound in (
                    (">", kind.gt), ("≥", kind.ge), ("<", kind.lt), ("≤", kind.le),
                )
                if bound is not None
            ]  # fmt: skip
            return " ".join([word, ", ".join(bounds)]).strip()
        case _:
            return "text"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
