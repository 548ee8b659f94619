"""Why an answer does not fit a schema, which is read as the grammar and pydantic read it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

from langchain_car_vllm.wire.request.schema import Schema, json_types, types_in

_UNREADABLE = (AttributeError, ValueError, TypeError, re.error)
# Of these a part that fits anything forbids.
_TURNING = {"oneOf", "not", "if"}
_EXCLUSIVE = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
_DEEP = 50
"""Beyond what anybody asks for; an answer that cannot be checked for its depth does not fit."""


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

    words: dict[str, Any] = {
        "pattern": _pattern_errors,
        "multipleOf": _multiple_errors,
        "propertyNames": _key_errors,
    }
    if not unique:
        words["uniqueItems"] = lambda *_: ()
    base = validator_for(schema)
    words["type"] = _type_checker(base.VALIDATORS["type"])
    words |= {
        word: _known_types_checker(base.VALIDATORS[word])
        for word in _TURNING & base.VALIDATORS.keys()
    }
    words |= {
        word: _bound_checker(bound, base.VALIDATORS.get(word)) for word, bound in _EXCLUSIVE.items()
    }
    kind = extend(base, words)  # type: ignore[no-untyped-call]
    try:
        errors = list(kind(schema).iter_errors(value))
    except (SchemaError, UnknownType, Unresolvable, *_UNREADABLE):
        return None  # a schema that cannot be checked forbids nothing
    except RecursionError:  # of a deep answer, or of a schema that refers to itself alone
        return "it is nested too deeply" if _depth(value) > _DEEP else None
    if not errors:
        return None
    worst = min(errors, key=lambda error: len(error.absolute_path))
    place = ".".join(str(part) for part in worst.absolute_path)
    return f"{place}: {worst.message}" if place else worst.message


def _type_checker(check: Any) -> Callable[..., Iterator[Any]]:
    """Return what yields why a value is not of a type; one that JSON lacks forbids nothing."""

    def errors(validator: Any, kinds: Any, value: Any, schema: Any) -> Iterator[Any]:
        meant = json_types(kinds)  # as the grammar has it
        if meant is not None:
            yield from check(validator, meant, value, schema) or ()

    return errors


def _known_types_checker(check: Any) -> Callable[..., Iterator[Any]]:
    """Return what checks a value by a word such as `not`, where all types under it are known."""

    def errors(validator: Any, parts: Any, value: Any, schema: Any) -> Iterator[Any]:
        if all(json_types(kind) is not None for kind in types_in(parts)):
            yield from check(validator, parts, value, schema) or ()

    return errors


def _pattern_errors(_validator: Any, pattern: Any, value: Any, _schema: Any) -> Iterator[Any]:
    """Yield why a text does not fit a pattern; one that Python cannot read forbids nothing."""
    from jsonschema.exceptions import ValidationError  # noqa: PLC0415

    with suppress(re.error, TypeError, RecursionError):
        if isinstance(value, str) and not re.search(pattern, value):
            yield ValidationError(f"{value!r} does not match {pattern!r}")


def _multiple_errors(_validator: Any, step: Any, value: Any, _schema: Any) -> Iterator[Any]:
    """Yield why a number is not a multiple of another, as both are written: 19.99 is of 0.01."""
    from jsonschema.exceptions import ValidationError  # noqa: PLC0415

    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    with suppress(ArithmeticError):  # of more digits than anybody counts
        if Decimal(str(value)) % Decimal(str(step)):
            yield ValidationError(f"{value!r} is not a multiple of {step!r}")


def _key_errors(validator: Any, names: Any, value: Any, _schema: Any) -> Iterator[Any]:
    """Yield why keys do not fit: JSON has them as texts, whatever they are of."""
    for key in value if isinstance(value, Mapping) else ():
        errors = [*validator.descend(key, names)]
        with suppress(ValueError, RecursionError):
            if errors and not [*validator.descend(json.loads(key), names)]:
                continue
        yield from errors


def _bound_checker(bound: str, check: Any) -> Callable[..., Iterator[Any]]:
    """Return what yields why a number is at a bound that it must not reach, said in any draft."""

    def errors(validator: Any, limit: Any, value: Any, schema: Any) -> Iterator[Any]:
        from jsonschema.exceptions import ValidationError  # noqa: PLC0415

        if not isinstance(limit, bool):
            yield from (check(validator, limit, value, schema) or ()) if check else ()
        elif limit and bound in schema and value == schema[bound]:
            yield ValidationError(f"{value!r} must not be {schema[bound]!r}")

    return errors


def _depth(value: Any) -> int:
    """Return how deeply lists and objects are nested."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [v for part in level for v in (part.values() if isinstance(part, dict) else part)]
    return depth
