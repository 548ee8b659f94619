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
_INLINE = ("base64", "data", "file_data")
_MEDIA, _FILES = ("image", "audio", "video"), ("file", "media", "document", "text-plain")
_TYPE_OF_TEXT = re.compile(
    r"text/|application/(?:[\w.-]+\+)?(?:json|xml|yaml|x-yaml|toml|javascript|sql)\b"
)
_WORD, _LONGEST_WORD = re.compile(r"[A-Za-z0-9+/=_-]+"), 2000  # a longer one is a file in base64


def placeholder(block: Any, reason: str) -> str:
    """Return a line of text that says what a block held, never its content."""
    if not isinstance(block, Mapping):
        return f"[{type(block).__name__}; {reason}]"
    fields = _fields(block)
    kind = _kind(block)
    name = next((fields[k] for k in ("filename", "name", "title") if fields.get(k)), None)
    url = next((fields[k] for k in ("url", "uri", "path") if fields.get(k)), None)
    said = [f"{kind} {name}" if name else kind, _type_of(fields), _size(fields), url]
    shown = [str(part)[:_MOST] for part in said if part and not str(part).startswith("data:")]
    return f"[{', '.join(shown)}; {reason}]"


def is_inline(block: Any) -> bool:
    """Whether a block has its bytes with it, so that nothing must be read or fetched."""
    if not isinstance(block, Mapping):
        return False
    return isinstance(_inline(_fields(block)), str | bytes | bytearray | memoryview)


def has_content(block: Mapping[str, Any]) -> bool:
    """Whether a block has bytes with it, or names where they lie."""
    fields = _fields(block)
    return any(fields.get(key) for key in _REFERENCES)


def file_text(block: Mapping[str, Any]) -> str | None:
    """Return the text of a file that is one and lies in its block, None for any other block."""
    fields = _fields(block)
    if block.get("type") != "text-plain" and not _TYPE_OF_TEXT.match(str(_type_of(fields))):
        return None
    inline = _inline(fields)
    try:
        data = base64.b64decode(inline, validate=True) if isinstance(inline, str) else inline
        return None if data is None else bytes(data).decode()
    except (binascii.Error, TypeError, ValueError):
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
        return _text_or_none(block.get("refusal"))
    if kind == "document" and isinstance(source, Mapping) and source.get("type") == "text":
        return _text_or_none(source.get("data"))
    if kind == "document" and isinstance(source, Mapping) and source.get("type") == "content":
        return _texts_of(source.get("content"))
    if kind == "search_result" and isinstance(content, list):
        texts = _texts_of(content)
        return texts and "\n".join(str(t) for t in (block.get("title"), source, texts) if t)
    return None


def _text_or_none(found: Any) -> str | None:
    return found if isinstance(found, str) else None


def _texts_of(content: Any) -> str | None:
    """Return the texts of a document in parts, None where there is more than text."""
    parts = content if isinstance(content, list) else [content]
    found = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    return "\n".join(texts) if len(texts) == len(found) else None


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
    found = next((fields[key] for key in _INLINE if fields.get(key)), None)
    address = found if isinstance(found, str) else str(fields.get("url") or "")
    return address.partition(",")[2] if address.startswith("data:") else found


def _type_of(fields: Mapping[str, Any]) -> str | None:
    """Return the type that a block tells of its bytes, also within their address."""
    if told := fields.get("mime_type") or fields.get("media_type"):
        return str(told)
    addresses = [str(fields.get(key) or "") for key in ("url", *_INLINE)]
    found = next((text for text in addresses if text.startswith("data:")), "data:")
    return found[5:].partition(",")[0].partition(";")[0] or None


def _size(fields: Mapping[str, Any]) -> str | None:
    inline = _inline(fields)
    if isinstance(inline, bytes):
        return f"{len(inline)} bytes"
    if not isinstance(inline, str):
        return None
    padding = min(_PADDING, len(inline) - len(inline.rstrip("=")))
    return f"{len(inline) * 3 // 4 - padding} bytes"
