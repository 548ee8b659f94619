"""JSON schemas: from what the user wrote to one schema, and what does not fit it."""

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, get_origin
from urllib.parse import unquote

from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, PydanticUserError, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DatetimeSchema, DecimalSchema

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.support.json_objects import copy_json
from langchain_car_vllm.support.printable import format_value
from langchain_car_vllm.wire.request.typed_dicts import is_typed_dict, typed_dict_model

Schema = dict[str, Any]

# What LangChain and pydantic raise for what they cannot describe.
_INDESCRIBABLE = (
    *(AttributeError, KeyError, NameError, RecursionError, TypeError, ValueError),
    PydanticUserError,
)
FIELDS_HINT = "give its fields or parameters types that are defined and that JSON can express"
_VALUES = ("enum", "const", "default", "examples")
# JSON's types, by what they are called: in Python, and by Gemini, which writes them in capitals.
_TYPES = {
    **dict.fromkeys(("string", "str", "text"), "string"),
    **dict.fromkeys(("integer", "int"), "integer"),
    **dict.fromkeys(("number", "float", "double", "decimal"), "number"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("array", "list", "tuple", "set"), "array"),
    **dict.fromkeys(("object", "dict"), "object"),
    **dict.fromkeys(("null", "none"), "null"),
}
_MAPS = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
_PARTS = {
    *("anyOf", "oneOf", "allOf", "prefixItems", "items", "additionalProperties"),
    *("not", "if", "then", "else", "contains"),
}
_LOCAL_TIME = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?"
_ZONES = {"aware": r"(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$", "naive": "$"}


class JsonGenerator(GenerateJsonSchema):
    """Says what pydantic leaves out: that a decimal is a number, and whether a time has a zone."""

    def decimal_schema(self, schema: DecimalSchema) -> JsonSchemaValue:
        """Return the schema of a number."""
        found = super().decimal_schema(schema)
        return next((o for o in found.get("anyOf", ()) if o.get("type") == "number"), found)

    def datetime_schema(self, schema: DatetimeSchema) -> JsonSchemaValue:
        """Return the schema of a time, with a zone or without one where its type says so."""
        zone = _ZONES.get(str(schema.get("tz_constraint")))
        more = {"pattern": _LOCAL_TIME + zone} if zone else {}
        return {**super().datetime_schema(schema), **more}


def json_schema(schema: Any) -> Schema:
    """Return the JSON schema of a class or type of Python's, a function schema or a JSON schema.

    Raises:
        ConfigurationError: It is nothing that a schema can be made of.
    """
    if isinstance(schema, Mapping):
        schema = own = _own(_unwrap(schema))
        if _is_json_schema(own):
            _check_types(own)
            return own
    refuse_enum(schema)
    try:
        if is_bare_type(schema):
            raise TypeError("neither an object nor a function")
        if is_typed_dict(schema):
            schema = typed_dict_model(schema)
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            return schema.model_json_schema(schema_generator=JsonGenerator)
        if is_dataclass(schema):
            return TypeAdapter(schema).json_schema(schema_generator=JsonGenerator)
        found: Schema = convert_to_json_schema(schema)
    except _INDESCRIBABLE as error:
        raise _unreadable(schema, error) from error
    _check_types(found)
    return found


def _own(schema: Mapping[str, Any]) -> Schema:
    """Return a copy, since whoever gave it may go on to change it."""
    try:
        found: Schema = copy_json(schema)
    except RecursionError as error:
        raise ConfigurationError("the schema is nested too deeply") from error
    return found


def _check_types(schema: Schema) -> None:
    """Refuse a type that JSON lacks: no grammar takes it, and no answer can be checked by it.

    Raises:
        ConfigurationError: There is one.
    """
    for kind in types_in(schema):
        if kind not in _TYPES.values():
            raise _unknown_type(kind)


def types_in(schema: Any) -> Iterator[Any]:
    """Yield all types that a schema, or a list of some, names in itself and its parts."""
    left: list[Any] = [schema]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left.extend(part)
        if not isinstance(part, Mapping):
            continue
        kinds = part.get("type", [])
        yield from kinds if isinstance(kinds, list) else [kinds]
        left.extend(part[word] for word in _PARTS & part.keys())
        maps = [part[word] for word in _MAPS & part.keys()]
        left.extend(
            inner for found in maps if isinstance(found, Mapping) for inner in found.values()
        )


def json_types(given: Any) -> Any:
    """Return what a schema's `type` says in JSON's words, None where they lack one for it."""
    kinds = given if isinstance(given, list) else [given]
    found = [_TYPES.get(kind.lower()) if isinstance(kind, str) else None for kind in kinds]
    if None in found:
        return None
    return found if isinstance(given, list) else found[0]


def _unknown_type(kind: Any) -> ConfigurationError:
    meant = None if isinstance(kind, list) else json_types(kind)
    hint = f"write `{meant}`" if meant else f"use {', '.join(dict.fromkeys(_TYPES.values()))}"
    if kind == "json_object":
        hint = 'for any object, give `method="json_mode"` and no schema'
    return ConfigurationError(f"`{format_value(kind)}` is not a type of JSON Schema", hint=hint)


def _unreadable(schema: Any, error: Exception) -> ConfigurationError:
    if isinstance(schema, type) and not is_bare_type(schema):
        return ConfigurationError(
            f"no JSON schema can be made of `{schema.__name__}`: {reason_of(error)}",
            hint=FIELDS_HINT,
        )
    hint = "give a pydantic class, a TypedDict, a dataclass or a JSON schema with a `title`"
    if isinstance(schema, BaseModel):
        hint = f"give the class itself: `{type(schema).__name__}`"
    if is_bare_type(schema):
        hint = "give pydantic's `RootModel[...]` of it: a class, whose `root` is the answer"
    return ConfigurationError(f"no JSON schema can be made of `{format_value(schema)}`", hint=hint)


def reason_of(error: Exception) -> str:
    """Return what an error says in one line; that of a key is only the key."""
    text = " ".join(str(error).split()).partition(" For further information")[0]
    return f"it refers to {text}, which is not there" if isinstance(error, KeyError) else text


def is_bare_type(schema: Any) -> bool:
    """Whether a type is not a class with fields, such as `int`, a list or a union.

    LangChain would take it for a function: a list for the one that makes lists, with arguments too
    from Python 3.14 on.
    """
    if get_origin(schema) is not None:
        return not (is_typed_dict(schema) or is_dataclass(schema))
    return schema is Any or (isinstance(schema, type) and schema.__module__ == "builtins")


def refuse_enum(schema: Any) -> None:
    """Refuse an enum by itself, which would be taken for the function that makes enums.

    Raises:
        ConfigurationError: It is one.
    """
    if isinstance(schema, type) and issubclass(schema, Enum):
        raise ConfigurationError(
            f"`{schema.__name__}` is an enum, which is neither an object nor a function",
            hint="make it the type of a field, in a pydantic class, a TypedDict or a dataclass",
        )


def traced_schema(schema: Any) -> Any:
    """Return a schema as LangChain's tracers can write it down, which know fewer types."""
    if is_dataclass(schema):
        return json_schema(schema)
    try:
        convert_to_json_schema(schema)
    except Exception:  # noqa: BLE001 - whatever it is, it would end the call
        found = json_schema(schema)
        return {"name": str(found.get("title") or "answer"), "parameters": found}
    return schema


def inline_root(schema: Mapping[str, Any]) -> Schema:
    """Return a schema that is nothing but a reference as what it refers to, definitions beside it.

    Raises:
        ConfigurationError: It refers to nothing.
    """
    found = dict(schema)
    seen: set[str] = set()
    while isinstance(target := found.get("$ref"), str) and target not in seen:
        seen.add(target)
        word, _, name = target.removeprefix("#/").partition("/")
        inner = (found.get(word) or {}).get(name)
        if not isinstance(inner, Mapping):
            raise ConfigurationError(
                f"the schema refers to `{target}`, which is not in it",
                hint="put the definition under `$defs`",
            )
        found = {**{k: v for k, v in found.items() if k != "$ref"}, **inner}
    return found


def references_in(value: Any) -> Iterator[str]:
    """Yield what a schema refers to."""
    if isinstance(value, Mapping):
        target = value.get("$ref")
        if isinstance(target, str):
            yield target
        for key, part in value.items():
            if key not in _VALUES:
                yield from references_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from references_in(part)


def target_of(found: Any, target: str) -> Any:
    """Return what a JSON pointer, which begins with `#`, leads to, None for nothing."""
    for step in unquote(target).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def is_recursive(schema: Schema) -> bool:
    """Whether a part of a schema holds itself, directly or through others."""
    targets = set(references_in(schema))
    left = {target: set(references_in(target_of(schema, target))) for target in targets}
    while free := [target for target, inner in left.items() if not inner & left.keys()]:
        for target in free:
            del left[target]
    return bool(left)


def is_model(schema: Any) -> bool:
    """Whether answers become instances of a pydantic class."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def is_dataclass(schema: Any) -> bool:
    """Whether something is a dataclass, a generic one with its arguments included."""
    kind = get_origin(schema) or schema
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


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


def _is_json_schema(schema: Mapping[str, Any]) -> bool:
    words = {"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "items"}
    is_tool = {"parameters", "input_schema"} & schema.keys()
    return bool({"title", *words} & schema.keys()) and not is_tool
