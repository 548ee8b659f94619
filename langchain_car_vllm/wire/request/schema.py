"""JSON schemas: from what the user wrote to what the server's grammar takes.

The grammar (llguidance, in vllm-mlx 0.5.0 and later) refuses ordinary schemas with a causeless 500:
`uniqueItems`, unknown formats, `oneOf`, look-around in patterns, references into nested `$defs`.
The converted schema asks for a little less; the answer is validated against the original.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DecimalSchema

from langchain_car_vllm.errors import ConfigurationError

Schema = dict[str, Any]

_DEFS = ("$defs", "definitions")
_MAPS = ("properties", "patternProperties", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
# Back references, which no regular expression without a memory can do without.
_BACK_REFERENCE = re.compile(r"\(\?P=|\\[1-9]")
_CLASS = r"\[\^?\]?(?:[^\]\\]|\\.)*\]"
_PIECE = re.compile(rf"\\.|{_CLASS}|\(\?<?[=!]|\(|\)|.", re.DOTALL)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d*,?\d*\})[?+]?")
_ROOT_REFERENCE = re.compile(r'"\$ref": "#(?!/(?:\$defs|definitions)/)')
_GUIDANCE = {"lenient": True, "coerce_one_of": True}


class _Generator(GenerateJsonSchema):
    """Writes a decimal as the number it is: the text that pydantic takes as well is any text."""

    def decimal_schema(self, schema: DecimalSchema) -> JsonSchemaValue:
        """Return the schema of a number."""
        found = super().decimal_schema(schema)
        return next((o for o in found.get("anyOf", ()) if o.get("type") == "number"), found)


def json_schema(schema: Any) -> Schema:
    """Return the JSON schema of a pydantic class, TypedDict, function schema or JSON schema.

    Raises:
        ConfigurationError: It is nothing that a schema can be made of.
    """
    if isinstance(schema, Mapping):
        schema = _unwrap(schema)
        if _is_json_schema(schema):
            return dict(schema)
    try:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            return schema.model_json_schema(schema_generator=_Generator)
        return convert_to_json_schema(schema)
    except (TypeError, ValueError, NameError, PydanticUserError) as error:
        raise ConfigurationError(
            f"no JSON schema can be made of `{schema!r}`",
            hint="give a pydantic class, a TypedDict or a JSON schema with a `title`",
        ) from error


def wrapper_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what OpenAI puts a schema into, with its name and `strict`; the schema without one."""
    kind = schema.get("type")
    found = schema.get(kind) if kind in ("json_schema", "function") else schema
    return found if isinstance(found, Mapping) else schema


def _unwrap(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema in one of OpenAI's wrappers, with the wrapper's name for its title."""
    wrapper = wrapper_of(schema)
    inner = wrapper.get("parameters" if schema.get("type") == "function" else "schema")
    if not isinstance(inner, Mapping) or "name" not in wrapper:
        return wrapper
    told = {"title": wrapper["name"], "description": wrapper.get("description", "")}
    return {name: text for name, text in told.items() if text} | dict(inner)


def is_model(schema: Any) -> bool:
    """Whether answers become instances of a pydantic class."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def grammar_schema(schema: Schema, parts: Mapping[str, Schema] | None = None) -> Schema:
    """Return a schema that the server's grammar takes and that every fitting answer fits.

    Args:
        schema: The schema.
        parts: Whole schemas of their own that it refers to as `#/$defs/<name>`.

    Raises:
        ConfigurationError: It refers to what lies outside of it.
    """
    defs: dict[str, Schema] = {name: {} for name in parts or {}}
    for name, part in (parts or {}).items():
        defs[name] = _convert(part, defs, {"#": f"#/$defs/{name}"})
    root: Schema = _convert(schema, defs, {name: name for name in defs})
    if defs:
        root["$defs"] = defs
    root["x-guidance"] = _GUIDANCE
    return root


def _convert(
    schema: Any, defs: dict[str, Schema], names: Mapping[str, str], *, closed: bool = True
) -> Any:
    """Convert a schema and everything in it.

    Args:
        schema: The schema; True and False are schemas too.
        defs: The root's definitions, filled here.
        names: What the definitions in scope are called at the root.
        closed: Whether an object that does not say so takes no further keys. A part of `allOf` must
            stay open for the keys of the others.
    """
    if not isinstance(schema, Mapping):
        return schema
    names = _hoist_definitions(schema, defs, names)
    found: Schema = {}
    for key, value in schema.items():
        if key == "uniqueItems":
            continue  # the grammar passes over it, and the server then refuses what it let through
        if key == "pattern":
            if pattern := weaken_pattern(str(value)):
                found[key] = pattern
        elif key not in _DEFS:
            found[key] = _convert_word(key, value, defs, names)
    found = _name_keys(found, defs)
    if closed and "properties" in found and not {"patternProperties", "allOf"} & found.keys():
        found.setdefault("additionalProperties", False)
    return found


def _name_keys(schema: Schema, defs: Mapping[str, Schema]) -> Schema:
    """Name the keys that `propertyNames` allows: the grammar passes over that word."""
    allowed = schema.get("propertyNames")
    if isinstance(allowed, Mapping) and "$ref" in allowed:
        allowed = defs.get(str(allowed["$ref"]).removeprefix("#/$defs/"))
    keys = allowed.get("enum") if isinstance(allowed, Mapping) else None
    if not keys or "properties" in schema or not all(isinstance(key, str) for key in keys):
        return schema
    value = schema.get("additionalProperties", True)
    left = {k: v for k, v in schema.items() if k != "propertyNames"}
    return {**left, "properties": dict.fromkeys(keys, value), "additionalProperties": False}


def weaken_pattern(pattern: str) -> str | None:
    """Return a pattern without look-around and word borders, which the grammar does not have.

    All that fits the pattern fits what is returned: None, for any text, where that cannot be had.
    """
    if _BACK_REFERENCE.search(pattern):
        return None
    kept: list[str] = []
    open_groups: list[bool] = []  # whether each is part of what is left out
    place = 0
    while place < len(pattern):
        found = _PIECE.match(pattern, place)
        piece = found[0] if found else pattern[place]
        place += len(piece)
        left_out = any(open_groups) or piece in ("\\b", "\\B")
        if piece == ")":
            if not open_groups:
                return None
            if open_groups.pop() and not any(open_groups):
                quantifier = _QUANTIFIER.match(pattern, place)
                place = quantifier.end() if quantifier else place
        elif piece.startswith("("):
            open_groups.append(piece != "(" or any(open_groups))
            left_out = open_groups[-1]
        if not left_out:
            kept.append(piece)
    return "".join(kept) if not open_groups else None


def _convert_word(key: str, value: Any, defs: dict[str, Schema], names: Mapping[str, str]) -> Any:
    """Convert the value of one of a schema's words."""
    if key == "$ref":
        return _reference(str(value), names)
    if key in _MAPS and isinstance(value, Mapping):
        return {
            name: _drop_title(_convert(part, defs, names), name) for name, part in value.items()
        }
    if key in _LISTS and isinstance(value, list):
        return [_convert(part, defs, names, closed=key != "allOf") for part in value]
    return _convert(value, defs, names) if key in _SINGLE else value


def _drop_title(part: Any, name: str) -> Any:
    """Drop a title that only repeats the name: the server writes the schema into the prompt."""
    if not isinstance(part, dict):
        return part
    title = part.get("title")
    if isinstance(title, str) and title.lower().replace(" ", "_") == name.lower():
        return {word: value for word, value in part.items() if word != "title"}
    return part


def refers_to_root(schema: Schema) -> bool:
    """Whether a schema refers to itself other than through its definitions."""
    return bool(_ROOT_REFERENCE.search(json.dumps(schema, default=str)))


def _hoist_definitions(
    schema: Mapping[str, Any], defs: dict[str, Schema], names: Mapping[str, str]
) -> Mapping[str, str]:
    """Move a schema's own definitions to the root and return what is in scope inside of it."""
    own = {n: part for word in _DEFS for n, part in (schema.get(word) or {}).items()}
    if not own:
        return names
    scope = dict(names)
    for name in own:
        scope[name] = _free(name, defs)
        defs[scope[name]] = {}
    for name, part in own.items():
        defs[scope[name]] = _convert(part, defs, scope)
    return scope


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _reference(target: str, names: Mapping[str, str]) -> str:
    for word in _DEFS:
        name = target.removeprefix(f"#/{word}/")
        if name != target and name in names:
            return f"#/$defs/{names[name]}"
    if target == "#" or target.startswith("#/"):
        return names.get("#", "#") + target[1:]
    raise ConfigurationError(
        f"the schema refers to `{target}`, which lies outside of it",
        hint="put the definition under `$defs`",
    )


def validation_error(value: Any, schema: Schema, *, unique: bool = True) -> str | None:
    """Return why a value does not fit a schema, None where it does.

    Args:
        value: What was answered.
        schema: What it is to fit.
        unique: Whether `uniqueItems` counts. Of a set pydantic takes an element twice, and no
            grammar keeps a model from writing it so.
    """
    from jsonschema.exceptions import SchemaError, UnknownType  # noqa: PLC0415 - not at construction
    from jsonschema.validators import extend, validator_for  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    kind = validator_for(schema)
    if not unique:
        kind = extend(kind, {"uniqueItems": lambda *_: ()})  # type: ignore[no-untyped-call]
    try:
        errors = list(kind(schema).iter_errors(value))
    except (
        SchemaError,
        UnknownType,
        Unresolvable,
        RecursionError,
        ValueError,
        TypeError,
        re.error,
    ):
        return None  # a schema that cannot be checked forbids nothing
    if not errors:
        return None
    worst = min(errors, key=lambda error: len(error.absolute_path))
    place = ".".join(str(part) for part in worst.absolute_path)
    return f"{place}: {worst.message}" if place else worst.message


def _is_json_schema(schema: Mapping[str, Any]) -> bool:
    words = {"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "items"}
    return bool(words & schema.keys()) and "input_schema" not in schema
