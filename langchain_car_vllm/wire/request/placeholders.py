"""Lines of text in the place of what cannot be sent.

What stands in a tool's result or in an earlier turn cannot be taken back by anybody: refused once,
its thread would be refused forever. So the model reads what was there, and the user is warned.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_MOST = 200
_PADDING = 2
# What holds content or names it; without it a dictionary is a row of somebody's table.
_REFERENCES = ("url", "uri", "file_id", "file_data", "base64", "data")
_MEDIA, _FILES = ("image", "audio", "video"), ("file", "document", "text-plain")
_WORD, _LONGEST_WORD = re.compile(r"[A-Za-z0-9+/=_-]+"), 2000  # a longer one is a file in base64


class UnsentContentWarning(UserWarning):
    """Something in a tool's result or an earlier turn went out as a line of text."""


def placeholder(block: Any, reason: str) -> str:
    """Return a line of text that says what a block held, never its content."""
    if not isinstance(block, Mapping):
        return f"[{type(block).__name__}; {reason}]"
    fields = _fields(block)
    kind = _kind(block)
    name = next((fields[k] for k in ("filename", "name", "title") if fields.get(k)), None)
    mime_type = fields.get("mime_type") or fields.get("media_type")
    url = next((fields[k] for k in ("url", "uri", "path") if fields.get(k)), None)
    said = [f"{kind} {name}" if name else kind, mime_type or _type_of(url), _size(fields), url]
    shown = [str(part)[:_MOST] for part in said if part and not str(part).startswith("data:")]
    return f"[{', '.join(shown)}; {reason}]"


def is_inline(block: Any) -> bool:
    """Whether a block has its bytes with it, so that nothing must be read or fetched."""
    if not isinstance(block, Mapping):
        return False
    return isinstance(_inline(_fields(block)), str | bytes | bytearray | memoryview)


def decode_text(block: Mapping[str, Any]) -> str | None:
    """Return the text of a `text-plain` block, also where it is encoded; None where it is away."""
    encoded = _inline(_fields(block))
    if not isinstance(encoded, str):
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def data_text(block: Mapping[str, Any]) -> str | None:
    """Return the text of a block of data that a model can read, None for another block.

    A tool's result is kept in such blocks by LangChain: `json`, `search_result` and `document`.
    """
    kind, source, content = (block.get(key) for key in ("type", "source", "content"))
    if kind == "json" and "json" in block:
        with suppress(TypeError, ValueError, RecursionError):
            return json.dumps(block["json"], ensure_ascii=False, default=str)
    if kind == "refusal":
        return str(block.get("refusal") or "")
    if kind == "document" and isinstance(source, Mapping) and source.get("type") == "text":
        return str(source.get("data") or "")
    if kind == "search_result" and isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "\n".join(str(text) for text in (block.get("title"), source, *texts) if text)
    return None


def row_text(block: Any) -> str | None:
    """Return a dictionary of a tool's result as JSON, None for what holds or names a file.

    Rows of a table or of a listing are dictionaries, too, and may have a `type` of their own.
    """
    if not isinstance(block, Mapping):
        return None
    kind, fields = _kind(block), _fields(block)
    references = (*_REFERENCES, "path") if kind in _MEDIA else _REFERENCES
    if kind in (*_MEDIA, *_FILES) and any(fields.get(key) for key in references):
        return None
    with suppress(TypeError, ValueError, RecursionError):
        text = json.dumps(block, ensure_ascii=False, default=str)
        return text if all(len(w[0]) <= _LONGEST_WORD for w in _WORD.finditer(text)) else None
    return None


def _kind(block: Mapping[str, Any]) -> str:
    return str(block.get("type") or "block").removesuffix("_url").removeprefix("input_")


def _fields(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a block says, its inner parts as well."""
    found = {str(key): value for key, value in block.items() if not isinstance(value, Mapping)}
    for value in block.values():
        if isinstance(value, Mapping):
            found |= {k: v for k, v in value.items() if isinstance(k, str) and k != "type"}
    kind = str(block.get("type"))
    if isinstance(block.get(kind), str):
        found["url"] = block[kind]
    return found


def _inline(fields: Mapping[str, Any]) -> Any:
    """Return the bytes that a block has with it, or their text, None where they lie elsewhere."""
    found, url = fields.get("base64") or fields.get("data"), str(fields.get("url") or "")
    if not isinstance(found, str | bytes) and url.startswith("data:"):
        return url.partition(",")[2]
    return found


def _type_of(url: Any) -> str | None:
    if not str(url or "").startswith("data:"):
        return None
    return str(url)[5:].partition(",")[0].partition(";")[0] or None


def _size(fields: Mapping[str, Any]) -> str | None:
    inline = _inline(fields)
    if isinstance(inline, bytes):
        return f"{len(inline)} bytes"
    if not isinstance(inline, str):
        return None
    padding = min(_PADDING, len(inline) - len(inline.rstrip("=")))
    return f"{len(inline) * 3 // 4 - padding} bytes"
