"""Tool calls in a text, read leniently: the one place that knows how models write them.

A call stands bare, in a tag such as `<tool_call>` or in a code block, or in one of these in the
other. Templates show some models doubled braces, and small models write one too many or one too
few, or forget a tag's beginning or end: all of that belongs to the call.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from langchain_car_vllm.wire.answer.call_parts import is_no_arguments

_PAIRS = ("<tool_call>", "<tool_calls>", "<tools>", "<function_call>", "<function_calls>")
# The latter are tokens of their own, which a server without the model's parser leaves in the text.
TAGS = (*_PAIRS, "<|python_tag|>", "<|tool_call|>", "<|tool_calls|>", "[TOOL_CALLS]")
TAG_ENDS = (
    *(f"</{tag[1:]}" for tag in _PAIRS),
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "</s>"),
)


def any_of(marks: Iterable[str]) -> str:
    """Return the pattern for one of some marks, the longest first."""
    return "|".join(map(re.escape, sorted(marks, key=len, reverse=True)))


OPENING = re.compile(rf"(?:(?:{any_of(TAGS)})\s*)+")
FENCE = re.compile(r"\s*```[ \t]*(\w*)[ \t]*\n")
BRACES = " \t\r\n}"
_MARKS = re.compile(rf"(?:\s|{any_of((*TAGS, *TAG_ENDS))}|```[ \t]*\w*)*")
_ENDS = re.compile(rf"(?:[{BRACES}]|{any_of(TAG_ENDS)})*")
_ARGUMENTS = ("arguments", "parameters", "args", "params", "input", "tool_input")
WRAPPERS = (
    *("tool_calls", "tool_call", "toolCalls", "toolCall", "tool_use", "tool_uses", "calls"),
    *("function_calls", "function_call", "functionCalls", "functionCall"),
)
STEP_KEYS = ("tool", "action")  # beside a thought their value is a call, too
_FIRST_KEYS = (*WRAPPERS, *_ARGUMENTS, "name", "type", "function", "tool", "id", "index")
_BRACKETS = re.compile(r"[\[\s]*(?:\{\s*)*")
_FIRST_KEY = re.compile(r'[\[\s]*(?:\{\s*)+"([^"\\]*)"')
_FIRST_KEY_BEGUN = re.compile(r'[\[\s]*(?:\{\s*)*(?:"[^"\\]*)?\Z')
_DOUBLED = re.compile(r'("(?:[^"\\]|\\.)*")|\{\s*\{|\}\}', re.DOTALL)
_SPACE = "functions."  # where gpt-oss keeps the tools
_MOST_MISSING = 2
_decode = json.JSONDecoder().raw_decode


class WrittenCall(NamedTuple):
    """A call as a model wrote it."""

    name: str
    arguments: dict[str, Any]


class CallNames(NamedTuple):
    """What counts as a call.

    Attributes:
        tools: The names of bound tools, by what a model may write for them.
        without_arguments: The tools that can be called without any.
    """

    tools: Mapping[str, str]
    without_arguments: Collection[str] = ()


def may_be_call(text: str) -> bool:
    """Whether JSON that begins so may be a call: an object whose first key is one of a call's."""
    if key := _FIRST_KEY.match(text):
        return key[1] in _FIRST_KEYS
    return bool(_FIRST_KEY_BEGUN.match(text))


def begins_other_json(text: str) -> bool:
    """Whether a text begins as an object whose first key is told, and none of a call's."""
    return _FIRST_KEY.match(text) is not None and not may_be_call(text)


def brackets_of(text: str) -> int:
    """Return how many characters at the beginning begin no call where the first of them does not.

    The first key is that of them all, and only the last may be a tag's.
    """
    found = _BRACKETS.match(text)
    run = found[0].rstrip() if found else ""
    return max(len(run) - run.endswith("["), 1)


def read_json(text: str, *, last: bool) -> tuple[Any, int] | None:
    """Return the value at the beginning of a text and its length, with the braces around it.

    Args:
        text: What begins with a brace or a bracket.
        last: Whether nothing more comes, so that what is missing may be added.

    Returns:
        None where it is not whole, or not JSON.
    """
    opening = len(text) - len(text.lstrip("{ \t\r\n"))
    start = max(text.rfind("{", 0, opening), 0)
    if found := _decode_at(text, start):
        return found[0], _end_of_braces(text, found[1])
    if start and (undoubled := _undouble(text, last=last)):
        return undoubled
    return _complete(text, start) if last else None


def read_calls(piece: str, names: CallNames, *, is_cut: bool = False) -> list[WrittenCall]:
    """Return the calls in a piece of text, none unless all of it is calls of bound tools.

    Args:
        piece: The text.
        names: What counts as a call.
        is_cut: Whether the model could not end it, so that what is missing may be anything.
    """
    inner = _without(_MARKS, piece)
    calls: list[WrittenCall] = []
    while inner:
        found = read_json(inner, last=not is_cut) if inner[0] in "{[" else None
        if found is None:
            return []
        value, end = found
        read = _calls_of(value, names)
        if not read:
            return []
        calls += read
        inner = _without(_MARKS, inner[end:].lstrip(f"{BRACES},;"))
    return calls


def without_ends(text: str) -> str:
    """Return what follows a call: neither white space, braces nor a tag's end are text."""
    return _without(_ENDS, text)


def _without(marks: re.Pattern[str], text: str) -> str:
    found = marks.match(text)
    return text[found.end() :] if found else text


def _decode_at(text: str, start: int) -> tuple[Any, int] | None:
    try:
        return _decode(text, start)
    except (ValueError, RecursionError):
        return None


def _end_of_braces(text: str, end: int) -> int:
    """Return where the run of closing braces behind a value ends."""
    left = text[end:].lstrip(BRACES)
    behind = text[end : len(text) - len(left)]
    return end + len(behind.rstrip(" \t\r\n"))


def _undouble(text: str, *, last: bool) -> tuple[Any, int] | None:
    """Read a text all of whose braces are doubled, as in a format string."""
    single = _DOUBLED.sub(lambda found: found[1] or found[0][0], text)
    found = _decode_at(single, 0)
    if found is None:
        return _complete(single, 0) if last else None
    value, end = found
    if single[end:].strip(BRACES):  # the length is that of the original, braces and all
        rest = single[end:].lstrip(BRACES)
        return value, len(text) - len(rest) if text.endswith(rest) else len(text)
    return value, len(text)


def _complete(text: str, start: int) -> tuple[Any, int] | None:
    """Read a text that lacks its last braces."""
    try:
        _decode(text, start)
    except json.JSONDecodeError as error:
        end = error.pos
    except RecursionError:
        return None
    else:
        return None
    whole = text[start:end].rstrip()
    if not whole.endswith(("}", "]")):
        return None
    for missing in range(1, _MOST_MISSING + 1):
        if found := _decode_at(whole + "}" * missing, 0):
            return found[0], end
    return None


def _calls_of(value: Any, names: CallNames) -> list[WrittenCall]:
    """Return the calls in a value, none unless all of it is calls."""
    if isinstance(value, Mapping) and len(value) == 1 and (key := next(iter(value))) in WRAPPERS:
        value = value[key]
    entries = value if isinstance(value, list) else [value]
    calls = [_call(entry, names) for entry in entries]
    return [call for call in calls if call] if all(calls) else []


def _call(entry: Any, names: CallNames) -> WrittenCall | None:
    if not isinstance(entry, Mapping):
        return None
    if isinstance(entry.get("function"), Mapping):
        entry = entry["function"]
    written = entry.get("name") or entry.get("tool") or entry.get("function")
    if not isinstance(written, str) or _is_definition(entry):
        return None
    name = names.tools.get(written) or names.tools.get(written.removeprefix(_SPACE))
    if name is None:
        return None
    arguments = _arguments(entry, may_lack=name in names.without_arguments)
    return None if arguments is None else WrittenCall(name, arguments)


def _is_definition(entry: Mapping[str, Any]) -> bool:
    """Whether it says what a tool takes, as models do that are asked for their tools."""
    given = entry.get("parameters")
    if not isinstance(given, Mapping):
        return False
    parts = given.get("properties")
    are_described = isinstance(parts, Mapping) and all(
        isinstance(p, Mapping) for p in parts.values()
    )
    is_schema = are_described and (given.get("type") == "object" or "required" in given)
    return is_schema or (not given and "description" in entry)


def _arguments(entry: Mapping[str, Any], *, may_lack: bool) -> dict[str, Any] | None:
    """Return a call's arguments, None where it is not a call."""
    given = [entry[key] for key in _ARGUMENTS if key in entry]
    if not given:
        is_bare = entry.keys() <= {"name", "tool", "type", "function", "id"}
        return {} if may_lack and is_bare else None
    value = given[0]
    if value is None or value == [] or (isinstance(value, str) and is_no_arguments(value)):
        return {}
    if isinstance(value, str):
        found = read_json(value.strip(), last=True)
        value = found[0] if found and not value.strip()[found[1] :].strip() else None
    return dict(value) if isinstance(value, Mapping) else None
