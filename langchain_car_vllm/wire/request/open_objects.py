"""Objects that a schema puts together from several parts, which must stay open for each other.

The grammar is told that an object which does not say so takes no further keys. Said of a part, such
as a member of `allOf`, that would forbid the keys of the other parts, and nothing would fit.
"""

from collections.abc import Mapping
from typing import Any

from langchain_car_vllm.wire.request.schema import Schema, target_of

_KEYS = ("properties", "patternProperties")
_CHOICES = ("anyOf", "oneOf", "allOf")
# What holds for an object beside its other words, or is compared with it.
_BESIDE = ("if", "then", "else", "not", "contains", "dependentSchemas")
_MAPS = (*_KEYS, "$defs", "definitions", "dependentSchemas")
_PARTS = (*_BESIDE, *_CHOICES, "prefixItems", "items", "additionalProperties")
_ADDING = {*_KEYS, *_CHOICES, "$ref", "then", "else", "dependentSchemas"}


def keep_parts_open(schema: Schema) -> None:
    """Let the objects in a schema that are parts of others take further keys, in place."""
    left: list[tuple[Any, bool]] = [(schema, False)]
    seen: set[tuple[int, bool]] = set()
    while left:
        part, is_part = left.pop()
        if not isinstance(part, dict) or (id(part), is_part) in seen:
            continue
        seen.add((id(part), is_part))
        is_open = is_part or _number_of_parts(part) > 1
        for word, value in part.items():
            if word == "$ref" and is_open:
                left.append((target_of(schema, str(value)), True))
            elif word != "$ref":
                left += (
                    (inner, word in _BESIDE or (is_open and word in _CHOICES))
                    for inner in _schemas_in(word, value)
                )
        if is_open and any(word in part for word in _KEYS):
            part.setdefault("additionalProperties", True)


def _schemas_in(word: str, value: Any) -> list[Any]:
    """Return the schemas in the value of a schema's word."""
    if word in _MAPS:
        return [*value.values()] if isinstance(value, Mapping) else []
    if word not in _PARTS:
        return []  # such as a constant: it is a value, whatever it looks like
    return value if isinstance(value, list) else [value]


def _number_of_parts(schema: Schema) -> int:
    """Return how many words of a schema say which keys an object has."""
    joined = [part for part in _listed(schema.get("allOf")) if _adds_keys(part)]
    chosen = [
        word for word in ("anyOf", "oneOf") if any(map(_adds_keys, _listed(schema.get(word))))
    ]
    other = [word for word in ("then", "else") if _adds_keys(schema.get(word))]
    alone = [word for word in ("$ref", "dependentSchemas") if word in schema]
    own = any(schema.get(word) for word in _KEYS)
    return len(joined) + len(chosen) + len(other) + len(alone) + own


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _adds_keys(part: Any) -> bool:
    return isinstance(part, Mapping) and not _ADDING.isdisjoint(part)
