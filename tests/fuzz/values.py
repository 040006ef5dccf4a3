"""Valid values of message types, made from the types themselves: a new field needs no change here.

Values are on and just inside the limits that the types state, so that what is refused is refused
for what was changed in them.
"""

import enum
import random
import string
from typing import Any

import msgspec
from msgspec import inspect

_LETTERS = string.ascii_letters + string.digits + "-_.é☃"
# Above this a value says nothing that a smaller one does not, and every example takes longer.
_MOST = 4


def values_of(kind: object, count: int = 6, seed: int = 1) -> list[Any]:
    """Return valid values of a type that msgspec decodes: the least one first, then random ones."""
    made = []
    for index in range(count):
        maker = _Maker(random.Random(f"{seed}-{index}"), full=index > 0)
        made.append(maker.of(inspect.type_info(kind)))
    return made


class _Maker:
    """Makes one value.

    Args:
        random: decides.
        full: fill lists and optional fields; else everything is as small as it may be.
    """

    def __init__(self, random: random.Random, *, full: bool) -> None:
        self._random = random
        self._full = full

    def of(self, kind: inspect.Type, depth: int = 0) -> Any:
        """Return a value of a type."""
        if depth > 12:
            raise ValueError("a type that holds itself has no end here")
        match kind:
            case inspect.Metadata():
                return self.of(kind.type, depth)
            case inspect.StructType():
                return self._struct(kind, depth)
            case inspect.UnionType():
                return self.of(self._random.choice(self._cases(kind)), depth)
            case inspect.ListType():
                count = self._length(kind.min_length, kind.max_length)
                return [self.of(kind.item_type, depth + 1) for _ in range(count)]
            case inspect.DictType():
                count = self._length(kind.min_length, kind.max_length)
                pairs = range(count)
                return {
                    self.of(kind.key_type, depth): self.of(kind.value_type, depth) for _ in pairs
                }
            case inspect.StrType():
                return self._text(kind)
            case inspect.BytesType():
                return self._random.randbytes(self._length(kind.min_length, kind.max_length, 40))
            case inspect.IntType():
                low = kind.ge if kind.ge is not None else (-1 if kind.gt is None else kind.gt) + 1
                high = kind.le if kind.le is not None else low + 2**31 - 1
                choices = [low, min(low + 1, high), high, self._random.randint(low, high)]
                return self._random.choice(choices) if self._full else low
            case inspect.FloatType():
                low = kind.ge if kind.ge is not None else (kind.gt or 0.0) + 0.5
                high = kind.le if kind.le is not None else low + 1e9
                return self._random.uniform(low, high)
            case inspect.BoolType():
                return self._random.random() < 0.5
            case inspect.NoneType():
                return None
            case inspect.LiteralType():
                return self._random.choice(kind.values)
            case inspect.EnumType():
                return self._random.choice([member.value for member in enum_members(kind.cls)])
            case inspect.AnyType() | inspect.RawType():
                return None
        raise ValueError(f"no values of {kind}: say here how they are made")

    def _struct(self, kind: inspect.StructType, depth: int) -> Any:
        values = {}
        for field in kind.fields:
            if field.required or self._full:
                values[field.name] = self.of(field.type, depth + 1)
        made = msgspec.convert(
            {field.encode_name: values[field.name] for field in kind.fields if field.name in values}
            | ({kind.tag_field: kind.tag} if kind.tag_field else {}),
            kind.cls,
        )
        return made

    def _cases(self, kind: inspect.UnionType) -> list[inspect.Type]:
        cases = list(kind.types)
        return [case for case in cases if self._full != isinstance(case, inspect.NoneType)] or cases

    def _text(self, kind: inspect.StrType) -> str:
        # A name of fixed length is a digest.
        letters = string.hexdigits[:16] if kind.min_length == kind.max_length else _LETTERS
        count = self._length(kind.min_length, kind.max_length, 12)
        return "".join(self._random.choice(letters) for _ in range(count))

    def _length(self, least: int | None, most: int | None, usual: int = _MOST) -> int:
        low = least or 0
        if not self._full:
            return low
        return self._random.randint(low, max(low, min(most if most is not None else usual, usual)))


def enum_members(kind: type[enum.Enum]) -> list[enum.Enum]:
    """Return the members of an enumeration."""
    return list(kind)
