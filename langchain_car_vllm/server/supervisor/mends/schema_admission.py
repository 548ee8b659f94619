"""One request's schema harms nobody else.

The published server finds out while generating that a schema cannot become a grammar, and then ends
every answer under way. Here the grammar is built, and its first step taken, before the request is
admitted: what cannot be built is a 400 for that request alone, with llguidance's own sentence. What
fails later all the same ends its own answer and no other.
"""

import re
import weakref
from typing import Any

from .mend import find, mend

# The processor of each constrained request under way, by the identity of its `response_format`.
_under_way: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_WIDEST = 2**63 - 1


class RefusedSchemaError(Exception):
    """A schema that cannot be enforced, with the reason in one sentence."""


@mend(
    "schema-build",
    "vllm_mlx.constrained.llguidance_schema_processor",
    "vllm-mlx 0.6.0, llguidance 1.9",
)
def _build_before_admission(module: Any) -> None:
    """Build the grammar and take its first step when the processor of a request is made."""
    processor = find(module, "LLGuidanceJSONSchemaLogitsProcessor")
    initialise = find(processor, "__init__", "schema", "tokenizer")
    find(processor, "__call__", "tokens", "logits")

    def patched(self: Any, schema: Any, tokenizer: Any) -> None:
        _check_schema(schema)
        initialise(self, schema, tokenizer)
        matcher = self._matcher
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise RefusedSchemaError(_sentence(matcher.get_error()))
        matcher.reset()

    processor.__init__ = patched
    _end_alone(processor)


@mend("json-object-failure", "vllm_mlx.constrained.json_schema_processor", "vllm-mlx 0.6.0")
def _end_json_objects_alone(module: Any) -> None:
    """Have `json_object` requests fail alone, too."""
    _end_alone(find(module, "JSONSchemaLogitsProcessor"))


def _end_alone(processor: Any) -> None:
    """Have a processor that fails end its own answer instead of the step that all share."""
    call = find(processor, "__call__", "tokens", "logits")
    processor.failure = None

    def patched(self: Any, tokens: Any, logits: Any) -> Any:
        if self.failure is None:
            try:
                return call(self, tokens, logits)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's own
                self.failure = _sentence(error)
        return _only_end(self, logits)

    processor.__call__ = patched


def _only_end(processor: Any, logits: Any) -> Any:
    """Return logits that allow the end of the answer and nothing else."""
    import mlx.core as mx

    ends = set(getattr(processor, "_eos_tokens", ()))
    ends |= {getattr(getattr(processor, "_tokenizer", None), "eos_token_id", None)}
    allowed = [token for token in ends if isinstance(token, int) and token < logits.shape[-1]]
    if not allowed:
        return logits
    mask = mx.full(logits.shape, -float("inf"), dtype=logits.dtype)
    for token in allowed:
        mask[..., token] = 0.0
    return mask


@mend("schema-refusal", "vllm_mlx.server", "vllm-mlx 0.6.0")
def _refuse(module: Any) -> None:
    """Answer 400 to what cannot be built, and fail the answer whose grammar failed later."""
    prepare = find(module, "_prepare_json_logits_processor", "engine", "response_format")
    finish = find(module, "_apply_response_format_or_raise", "text", "response_format")
    http_exception = find(module, "HTTPException", "status_code", "detail")

    def prepare_or_refuse(engine: Any, messages: Any, response_format: Any, **given: Any) -> Any:
        try:
            result = prepare(engine, messages, response_format, **given)
        except http_exception as error:
            cause = error.__cause__
            if not isinstance(cause, RefusedSchemaError):
                raise
            raise http_exception(
                status_code=400, detail=f"the schema cannot be enforced: {cause}"
            ) from cause
        if result[1] is not None:
            _under_way[id(response_format)] = result[1]
        return result

    def finish_or_refuse(text: Any, response_format: Any, **given: Any) -> Any:
        failure = getattr(_under_way.get(id(response_format)), "failure", None)
        if failure is not None:
            raise http_exception(
                status_code=400, detail=f"the schema cannot be enforced: {failure}"
            )
        return finish(text, response_format, **given)

    module._prepare_json_logits_processor = prepare_or_refuse
    module._apply_response_format_or_raise = finish_or_refuse


@mend("schema-patterns", "vllm_mlx.api.tool_calling", "vllm-mlx 0.6.0")
def _validate_what_python_can(module: Any) -> None:
    """Leave patterns to the grammar, which has enforced them, when an answer is checked.

    Python's `re` cannot read all of Rust's patterns, and is slow for some that are harmless there.
    """
    find(module, "validate_json_schema", "data", "schema")

    def validated(data: Any, schema: Any) -> "tuple[bool, str | None]":
        from jsonschema.exceptions import best_match
        from jsonschema.validators import extend, validator_for

        kind: Any = extend(  # type: ignore[no-untyped-call]
            validator_for(schema), {"pattern": _accept}
        )
        try:
            error = best_match(kind(schema).iter_errors(data))
        except re.error:
            return True, None
        except Exception as failure:  # noqa: BLE001 - a 422 for this answer, never a 500
            return False, _sentence(failure)
        return (True, None) if error is None else (False, str(error.message))

    module.validate_json_schema = validated


def _accept(*_: Any) -> "list[Any]":
    return []


def _check_schema(schema: Any) -> None:
    """Refuse what no validator takes for a schema.

    Raises:
        RefusedSchemaError: With the reason.
    """
    from jsonschema import FormatChecker
    from jsonschema.validators import validator_for

    _check_numbers(schema)
    try:
        kind: Any = validator_for(schema)
        kind.check_schema(schema, format_checker=FormatChecker(formats=()))
    except Exception as error:
        raise RefusedSchemaError(_sentence(getattr(error, "message", error))) from error


def _check_numbers(schema: Any) -> None:
    """Refuse numbers beyond 64 bits: some of them end the server's whole process in llguidance.

    Raises:
        RefusedSchemaError: There is one.
    """
    waiting = [(None, schema)]
    while waiting:
        name, part = waiting.pop()
        if isinstance(part, dict):
            waiting.extend(part.items())
        elif isinstance(part, list):
            waiting.extend((None, inner) for inner in part)
        elif isinstance(part, (int, float)) and not isinstance(part, bool):
            is_held = abs(part) < _WIDEST if name in _BOUNDS else _is_sendable(part)
            if not is_held:
                raise RefusedSchemaError(f"the number {part} does not fit into 64 bits")


def _is_sendable(number: "int | float") -> bool:
    return isinstance(number, float) or -_WIDEST <= number <= _WIDEST


def _sentence(error: Any) -> str:
    """Return a message in one line; regular expressions are underlined with carets in theirs."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line.strip("^ "))
    return (text or type(error).__name__)[:500]


MENDS = (
    _build_before_admission,
    _end_json_objects_alone,
    _refuse,
    _validate_what_python_can,
)
