"""Tool calls in a text, read leniently: the one place that knows how models write them.

A call stands bare, in a tag such as `<tool_call>` or in code, or in one of these in the other, or
in a message as an API writes it. Templates show some models doubled braces, and small models write
one too many or one too few, or forget a beginning or an end: all of that belongs to the call.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

from langchain_car_vllm.wire.answer.call_parts import plain_arguments

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


# A code block, on lines of its own or within one. Tildes are none: they lengthen sounds, too.
FENCE = r"(?P<fence>`{3,})[ \t]*(?P<language>\w*)[ \t]*(?P<line>\r?\n)?"
MARK = rf"(?:(?:(?P<tag>{any_of(TAGS)})|{FENCE}|`{{1,2}})\s*)"
_MARKS = re.compile(rf"\s*{MARK}*")
_ENDS = re.compile(rf"(?:[\s}},;\]]|{any_of(TAG_ENDS)})*")
_CLOSING_MARK = re.compile(r"`++(?!\w)")
_SEPARATORS = re.compile(r"[\s,]*")
_BRACES_BEHIND = re.compile(r"(?:\s*\})*")
_ARGUMENTS = ("arguments", "parameters", "args", "params", "input", "tool_input")
WRAPPERS = (
    *("tool_calls", "tool_call", "toolCalls", "toolCall", "tool_use", "tool_uses", "calls"),
    *("function_calls", "function_call", "functionCalls", "functionCall"),
)
STEP_KEYS = ("tool", "action")  # beside a thought their value is a call, too
_HOLDERS = (*WRAPPERS, *STEP_KEYS, "parts")
# What else stands in a message: what it says, the first of these that does, and its facts.
_SAID = ("content", "refusal", "thought", "reasoning", "reasoning_content")
_BESIDE = {*_SAID, "role", "id", "type", "index", "finish_reason", "stop_reason"}
_FIRST_KEYS = (*WRAPPERS, *_ARGUMENTS, "name", "type", "function", "tool", "id", "index")
_SPEAKER = ':"assistant"'
_BRACKETS = re.compile(r"[\[\s]*(?:\{\s*)*")
_BRACES = re.compile(r"(?:\{\s*)*")
_FIRST_KEY = re.compile(r'[\[\s]*(?:\{\s*)+"([^"\\]*)"')
_FIRST_KEY_BEGUN = re.compile(r'[\[\s]*(?:\{\s*)*(?:"[^"\\]*)?\Z')
JSON_TEXT = r'"(?:[^"\\]|\\.)*"?'  # the last one may have no end yet
_DOUBLED = re.compile(rf"{JSON_TEXT}|\{{\s*\{{|\}}\}}|[{{}}]", re.DOTALL)
_SPACE = "functions."  # where gpt-oss keeps the tools
_MOST_MISSING = 2
# Models write line breaks into texts as they are.
_decode = json.JSONDecoder(strict=False).raw_decode


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
    """Whether JSON that begins so may be a call: an object whose first key is one of a call's.

    The first key of a message is its role, which is the assistant's where calls follow.
    """
    if key := _FIRST_KEY.match(text):
        value = "".join(text[key.end() : key.end() + 20].split())[: len(_SPEAKER)]
        return key[1] in _FIRST_KEYS or (key[1] == "role" and _SPEAKER.startswith(value))
    return bool(_FIRST_KEY_BEGUN.match(text))


def begins_object(text: str) -> bool:
    """Whether a text begins as an object whose first key is told."""
    return _FIRST_KEY.match(text) is not None


def brackets_of(text: str) -> int:
    """Return how many characters at the beginning begin no call where the first of them does not.

    The first key is that of them all, and only the last may be a tag's.
    """
    found = _BRACKETS.match(text)
    run = found[0].rstrip() if found else ""
    return max(len(run) - run.endswith("["), 1)


def read_json(
    text: str, at: int = 0, *, last: bool, is_cut: bool = False
) -> tuple[Any, int] | None:
    """Return the value that begins in a text and where it ends, with the braces around it.

    Args:
        text: What has a brace or a bracket there.
        at: Where.
        last: Whether nothing more comes, so that what is missing may be added.
        is_cut: Whether the model could not end it, so that what is missing may be anything.

    Returns:
        None where it is not whole, or not JSON.
    """
    opening = _run(_BRACES, text, at).rstrip()
    start = at + max(opening.rfind("{"), 0)
    if found := _decode_at(text, start):
        return found[0], _end_of_braces(text, found[1])
    if text.startswith("[", at):
        return _read_items(text, at, last=last, is_cut=is_cut)
    if start > at and (found := _undouble(text, at, last=last, is_cut=is_cut)):
        return found
    return _complete(text, start, is_cut=is_cut) if last else None


def read_calls(value: Any, names: CallNames, *, in_code: bool) -> tuple[list[WrittenCall], str]:
    """Return the calls in a value, none unless all of it is calls, and what it says beside them.

    A message in a code block shows what an API says.
    """
    entries = value if isinstance(value, list) else [value]
    if in_code and any(isinstance(entry, Mapping) and "role" in entry for entry in entries):
        return [], ""
    try:
        calls = _calls_of(value, names)
    except RecursionError:
        return [], ""
    is_message = isinstance(value, Mapping) and _holder_in(value) is not None
    return calls, _said_in(value) if calls and is_message else ""


def without_ends(text: str) -> str:
    """Return what follows a call: neither brackets and commas nor ends of tags and code are text.

    A mark closes where it has no other one to go with before code that says its language. A mark
    that opens nothing is none, too.
    """
    while True:
        text = text[len(_run(_ENDS, text)) :]
        mark = _run(_CLOSING_MARK, text)
        opening = re.search(rf"\n[ \t]*{mark}\w", text)
        if not mark or text.count(mark, 0, opening.start() if opening else None) % 2 == 0:
            break
        text = text[len(mark) :]
    return "" if len(_run(_MARKS, text)) == len(text) else text


def _run(pattern: re.Pattern[str], text: str, at: int = 0) -> str:
    found = pattern.match(text, at)
    return found[0] if found else ""


def _decode_at(text: str, start: int) -> tuple[Any, int] | None:
    try:
        return _decode(text, start)
    except (ValueError, RecursionError):
        return None


def _end_of_braces(text: str, end: int) -> int:
    """Return where the run of closing braces behind a value ends."""
    return end + len(_run(_BRACES_BEHIND, text, end))


def _read_items(text: str, at: int, *, last: bool, is_cut: bool) -> tuple[list[Any], int] | None:
    """Read a list of objects one by one: their braces may be doubled, its end may be missing."""
    items: list[Any] = []
    at += 1
    while True:
        at += len(_run(_SEPARATORS, text, at))
        if text.startswith("]", at):
            return items, at + 1
        is_object = text.startswith("{", at)
        found = read_json(text, at, last=last, is_cut=is_cut) if is_object else None
        if found is None:
            # A list in a list without an end would be read once for each of them.
            is_over = last and not (text.startswith("[", at) or (is_cut and at == len(text)))
            return (items, at) if items and is_over else None
        items.append(found[0])
        at = found[1]


def _undouble(text: str, at: int, *, last: bool, is_cut: bool) -> tuple[Any, int] | None:
    """Read an object all of whose braces are doubled, as in a format string."""
    pieces: list[str] = []
    ends = [at]
    depth = 0
    for found in _DOUBLED.finditer(text, at):
        brace = found[0][0]
        if brace == '"':
            continue
        pieces.append(text[ends[-1] : found.start()] + brace)
        ends.append(found.end())
        depth += 1 if brace == "{" else -1
        if not depth:
            break
    if depth:
        pieces.append(text[ends[-1] :])
        ends.append(len(text))
    single = "".join(pieces)
    value = _decode_at(single, 0) or (_complete(single, 0, is_cut=is_cut) if last else None)
    if value is None:
        return None
    lengths = [0, *accumulate(map(len, pieces))]
    place = bisect_right(lengths, value[1]) - 1
    return value[0], _end_of_braces(text, ends[place] + value[1] - lengths[place])


def _complete(text: str, start: int, *, is_cut: bool) -> tuple[Any, int] | None:
    """Read a text that lacks its last braces."""
    try:
        _decode(text, start)
    except json.JSONDecodeError as error:
        end = error.pos
    except RecursionError:
        return None
    else:
        return None
    whole = text[start:end].rstrip(" \t\r\n,")
    if not whole.endswith(("}", "]")) or (is_cut and not text[end:].strip()):
        return None
    for missing in range(1, _MOST_MISSING + 1):
        if found := _decode_at(whole + "}" * missing, 0):
            return found[0], end
    return None


def _calls_of(value: Any, names: CallNames) -> list[WrittenCall]:
    """Return the calls in a value, none unless all of it is calls."""
    if isinstance(value, list):
        found = [_calls_of(entry, names) for entry in value]
        return [call for calls in found for call in calls] if all(found) else []
    if not isinstance(value, Mapping):
        return []
    if (key := _holder_in(value)) is not None:
        return _calls_of(value[key], names)
    call = _call(value, names)
    return [call] if call else []


def _holder_in(message: Mapping[str, Any]) -> str | None:
    """Return the key of a message's calls, None where it is not a message with calls."""
    given = {key for key, value in message.items() if value not in (None, "", [], {})}
    keys = [key for key in given & {*_HOLDERS} if isinstance(message[key], Mapping | list)]
    is_message = len(keys) == 1 and given - {*keys} <= _BESIDE
    return keys[0] if is_message and isinstance(_said_in(message), str) else None


def _said_in(message: Mapping[str, Any]) -> Any:
    return next((message[key] for key in _SAID if message.get(key)), "")


def _call(entry: Mapping[str, Any], names: CallNames) -> WrittenCall | None:
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
    if value is None or value == []:
        return {}
    if isinstance(value, str):
        text = plain_arguments(value).strip()
        found = read_json(text, last=True)
        value = found[0] if found and not text[found[1] :].strip() else None
    return dict(value) if isinstance(value, Mapping) else None
