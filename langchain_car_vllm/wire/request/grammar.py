"""From a JSON schema to what the server's grammar takes.

The grammar (llguidance, in vllm-mlx 0.5.0 and later) refuses ordinary schemas: unknown formats,
`oneOf`, references into nested `$defs`, ranges beyond its numbers, patterns that Rust cannot read.
The converted schema asks for a little less; the answer is validated against the original.
"""

import copy
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.request.open_objects import keep_parts_open
from langchain_car_vllm.wire.request.patterns import weaken_pattern
from langchain_car_vllm.wire.request.schema import (
    Schema,
    json_types,
    references_in,
    target_of,
)

_DEFS = ("$defs", "definitions")
_MAPS = ("properties", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
_ROOT_REFERENCE = re.compile(r'"\$ref": "#(?!/(?:\$defs|definitions)/)')
_STRANGE = re.compile(r"[^\w.-]", re.ASCII)
_GUIDANCE = {"lenient": True, "coerce_one_of": True}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_SIZES = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_DAY = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)?"
_SECONDS = r"\d+(\.\d{1,6})?S"
_DAYS = r"(\d+Y(\d+M)?(\d+D)?|\d+M(\d+D)?|\d+D)"
_HOURS = rf"T(\d+H(\d+M)?({_SECONDS})?|\d+M({_SECONDS})?|{_SECONDS})"
# The grammar's own formats want an offset, and know neither fractions nor signs of durations.
_TIMES = {
    "date-time": f"^{_DAY}T{_TIME}$",
    "time": f"^{_TIME}$",
    "duration": rf"^-?P(\d+W|{_DAYS}({_HOURS})?|{_HOURS})$",
}
# What the builders of ranges and repetitions take (llguidance 1.9).
_MOST_INTEGER, _MOST_NUMBER, _LEAST_NUMBER, _MOST_SIZE = 2**62, 1e18, 1e-18, 2**31


def grammar_schema(schema: Schema, parts: Mapping[str, Schema] | None = None) -> Schema:
    """Return a schema that the server's grammar takes and that every fitting answer fits.

    Args:
        schema: The schema.
        parts: Whole schemas of their own, by the names that it refers to them by.

    Raises:
        ConfigurationError: It refers to what is not in it, nests too deeply, or is not a schema.
    """
    try:
        text = json.dumps([schema, parts or {}])
    except (TypeError, ValueError, RecursionError):  # the schema holds what JSON cannot
        text = None
    try:
        if text is None:
            return _convert_all(*copy.deepcopy((schema, parts or {})))
        return _convert_text(text)
    except RecursionError:
        raise _too_deep() from None
    except (AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"what was given is not a JSON schema: {error}",
            hint="words such as `properties` and `$defs` hold dictionaries",
        ) from error


@lru_cache(maxsize=64)
def _convert_text(text: str) -> Schema:
    """Convert what many calls ask with once; nobody changes what comes of it."""
    schema, parts = json.loads(text)
    return _convert_all(schema, parts)


def _convert_all(schema: Schema, parts: Mapping[str, Schema]) -> Schema:
    for whole in (schema, *parts.values()):
        keep_parts_open(whole)
    defs: dict[str, Schema] = {}
    names: dict[str, str] = {}
    for name in parts:
        names[name] = _free(name, defs)
        defs[names[name]] = {}
    for name, part in parts.items():
        defs[names[name]] = _convert(part, defs, {"#": f"#/$defs/{names[name]}"})
    root: Schema = _convert(schema, defs, names)
    if defs:
        root["$defs"] = defs
    for target in references_in(root):
        # What was moved by the conversion is where it was in the original.
        if target_of(root, target) is None and target_of(schema, target) is None:
            raise ConfigurationError(
                f"the schema refers to `{target}`, which is not in it",
                hint="put the definition under `$defs`",
            )
    root["x-guidance"] = _GUIDANCE
    return root


def _convert(schema: Any, defs: dict[str, Schema], names: Mapping[str, str]) -> Any:
    """Convert a schema and everything in it.

    Args:
        schema: The schema; True and False are schemas too.
        defs: The root's definitions, filled here.
        names: What the definitions in scope are called at the root.
    """
    if not isinstance(schema, Mapping):
        return schema
    names = _hoist_definitions(schema, defs, names)
    schema = _write_times(_number_items(schema))
    found: Schema = {}
    for key, value in schema.items():
        # The grammar passes over `uniqueItems`, and the server then refuses what it let through.
        if key in _DEFS or key == "uniqueItems" or _is_beyond(key, value, schema):
            continue
        if key == "pattern":
            if pattern := weaken_pattern(str(value)):
                found[key] = pattern
        elif key == "patternProperties" and isinstance(value, Mapping):
            _add_patterns(found, value, defs, names)
        else:
            found.setdefault(key, _convert_word(key, value, defs, names))
    found = _name_keys(found, defs)
    if _may_be_closed(found):
        found.setdefault("additionalProperties", False)
    return found


def _may_be_closed(schema: Schema) -> bool:
    """Whether nothing else of an object's schema lets keys in beside its properties."""
    properties = schema.get("properties")
    return (
        isinstance(properties, Mapping)
        and not {"patternProperties", "allOf"} & schema.keys()
        and set(schema.get("required") or ()) <= properties.keys()
    )


def _number_items(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write a list of items, which newer drafts of JSON Schema do not know, as `prefixItems`."""
    items = schema.get("items")
    if not isinstance(items, list):
        return schema
    left = {k: v for k, v in schema.items() if k not in ("items", "additionalItems")}
    more = {"items": schema["additionalItems"]} if "additionalItems" in schema else {}
    return {**left, "prefixItems": items, **more}


def _write_times(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write the format of a time as a pattern, which may say more than the format already."""
    form = schema.get("format")
    if not isinstance(form, str) or form not in _TIMES:
        return schema
    left = {word: value for word, value in schema.items() if word != "format"}
    return {"pattern": _TIMES[form], **left}


def _is_beyond(key: str, value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a type is not JSON's, or a bound beyond what the grammar or the server's check takes.

    The check refuses 19.99 for a multiple of 0.01, and takes what OpenAPI and former drafts of
    JSON Schema write as `"exclusiveMinimum": true` for the number 1.
    """
    if key == "type":
        return json_types(value) is None
    if key in _SIZES:
        return isinstance(value, int) and value > _MOST_SIZE
    if key not in _BOUNDS or not isinstance(value, int | float):
        return False
    is_fraction = isinstance(value, float) and not value.is_integer()
    if isinstance(value, bool) or (key == "multipleOf" and is_fraction):
        return True
    if schema.get("type") == "integer":
        return not abs(value) < _MOST_INTEGER
    return not (value == 0 or _LEAST_NUMBER < abs(value) < _MOST_NUMBER)


def _add_patterns(
    found: Schema, patterns: Mapping[str, Any], defs: dict[str, Schema], names: Mapping[str, str]
) -> None:
    """Add the patterns of keys that can be read; if one cannot, other keys may come as well."""
    readable = {weaken_pattern(pattern): part for pattern, part in patterns.items()}
    if None in readable or len(readable) < len(patterns):
        found["additionalProperties"] = True
        return
    found["patternProperties"] = {
        pattern: _convert(part, defs, names) for pattern, part in readable.items()
    }


def _name_keys(schema: Schema, defs: Mapping[str, Schema]) -> Schema:
    """Name the keys that `propertyNames` allows: the grammar passes over that word.

    All keys are texts, so that the server's check would refuse those that are to be numbers.
    """
    allowed = schema.get("propertyNames")
    if isinstance(allowed, Mapping) and "$ref" in allowed:
        allowed = defs.get(str(allowed["$ref"]).removeprefix("#/$defs/"))
    if not isinstance(allowed, Mapping):
        return schema
    keys = allowed.get("enum") or ()
    left = {k: v for k, v in schema.items() if k != "propertyNames"}
    if keys and "properties" not in schema:
        value = schema.get("additionalProperties", True)
        texts = [key if isinstance(key, str) else json.dumps(key) for key in keys]
        return {**left, "properties": dict.fromkeys(texts, value), "additionalProperties": False}
    is_of_texts = allowed.get("type", "string") == "string" and all(type(k) is str for k in keys)
    return schema if is_of_texts else left


def _convert_word(key: str, value: Any, defs: dict[str, Schema], names: Mapping[str, str]) -> Any:
    """Convert the value of one of a schema's words."""
    if key == "$ref":
        return _reference(str(value), names)
    if key == "type":
        return json_types(value)
    if key in _MAPS and isinstance(value, Mapping):
        return {
            name: _drop_title(_convert(part, defs, names), name) for name, part in value.items()
        }
    if key in _LISTS and isinstance(value, list):
        return [_convert(part, defs, names) for part in value]
    if key in _SIZES and isinstance(value, float) and value.is_integer():
        return int(value)
    return _convert(value, defs, names) if key in _SINGLE else value


def _drop_title(part: Any, name: str) -> Any:
    """Drop a title that only repeats the name: the server writes the schema into the prompt."""
    if not isinstance(part, dict):
        return part
    title = part.get("title")
    if isinstance(title, str) and title.lower().replace(" ", "_") == name.lower():
        return {word: value for word, value in part.items() if word != "title"}
    return part


def reference_to(name: str) -> Schema:
    """Return a reference to a definition, whatever stands in its name."""
    return {"$ref": f"#/$defs/{quote(name.replace('~', '~0').replace('/', '~1'), safe='')}"}


def refers_to_root(schema: Schema) -> bool:
    """Whether a schema refers to itself other than through its definitions.

    Raises:
        ConfigurationError: It nests too deeply.
    """
    try:
        return bool(_ROOT_REFERENCE.search(json.dumps(schema, default=str)))
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> ConfigurationError:
    return ConfigurationError(
        "the schema is nested too deeply", hint="refer to its deeper parts, under `$defs`"
    )


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
    """Return a name for a definition that none has yet, and that an address can hold."""
    number, free = 1, (name := _STRANGE.sub("_", name))
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _reference(target: str, names: Mapping[str, str]) -> str:
    for word in _DEFS:
        step, slash, rest = target.removeprefix(f"#/{word}/").partition("/")
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if target.startswith(f"#/{word}/") and name in names:
            return f"#/$defs/{names[name]}{slash}{rest}"
    if target == "#" or target.startswith("#/"):
        return names.get("#", "#") + target[1:]
    raise ConfigurationError(
        f"the schema refers to `{target}`, which is outside of it",
        hint="put the definition under `$defs`",
    )
