"""Images, audio and video in the server's shapes, checked before anything is sent.

The server answers broken media with a causeless 500, drops what it does not know in silence, and
refuses addresses of this machine (vllm-mlx 0.6.0). So everything is read here, recognised by its
first bytes, checked for its end and its size, and sent inline.
"""

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.request.media_access import MediaAccess, read_file, shorten_url

Kind = Literal["image", "audio", "video"]

# The server's own limits in bytes.
_MOST = {"image": 20 << 20, "audio": 100 << 20, "video": 500 << 20}
# What stands before a picture's first scan: a mark, and a length that counts itself.
_JPEG_SEGMENT = re.compile(rb"\xff+[^\xff\xda](\0[\2-\xff]|[\1-\xff].)", re.DOTALL)
_JPEG_END, _MOST_SEGMENTS = b"\xff\xd9", 10_000
# Characters for a byte, line breaks included.
_IN_BASE64, _QUOTED = 2, 3
_PUBLIC = MediaAccess()
_NAMES = {"image": "an image", "audio": "audio", "video": "a video"}
_KINDS: dict[str, Kind] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
}


class Medium(NamedTuple):
    """One image, recording or film.

    Attributes:
        kind: What it is.
        mime_type: Its type, recognised by its content.
        data: The bytes.
        options: What else the block said, such as an image's `detail`.
    """

    kind: Kind
    mime_type: str
    data: bytes
    options: dict[str, Any]

    def block(self) -> dict[str, Any]:
        """Return the block as the server takes it."""
        url = f"data:{self.mime_type};base64,{base64.b64encode(self.data).decode()}"
        name = f"{self.kind}_url"
        return {"type": name, name: {"url": url, **self.options}}


def kind_of(block: Mapping[str, Any]) -> Kind | None:
    """Return what kind of medium a block holds, None for none."""
    kind = str(block.get("type"))
    if kind in ("file", "media"):  # as LangChain and Google write a file, whose type says it
        kind = str(block.get("mime_type")).partition("/")[0]
    return _KINDS.get(kind)


def read_medium(
    block: Mapping[str, Any], access: MediaAccess = _PUBLIC, *, is_own: bool = True
) -> Medium:
    """Return what a block of LangChain's, OpenAI's or Anthropic's shape holds.

    Data, `data:` and `http(s):` addresses and `Path`s are read; this may block.

    Args:
        block: The block.
        access: Which addresses may be fetched.
        is_own: Whether it stands in a message of the user's own, not in a tool's result.

    Raises:
        InvalidRequestError: It cannot be read, is of no known type, is cut off, or is too large.
    """
    kind = kind_of(block)
    if kind is None:
        raise InvalidRequestError(
            f"a block of type `{block.get('type')}` is not an image, audio or video"
        )
    source, options = _source(block, kind)
    data = _read(source, kind, access, is_own=is_own)
    if len(data) > _MOST[kind]:
        raise _too_large(kind)
    mime_type = _recognise(data, kind)
    return Medium(kind, mime_type, data, options)


def _source(block: Mapping[str, Any], kind: Kind) -> tuple[str | bytes | Path, dict[str, Any]]:
    """Return where a block's bytes are, and what else it says."""
    inner = block.get(f"{kind}_url", block.get("input_audio", block.get("source", block)))
    if isinstance(inner, str | Path):
        return inner, {}
    if not isinstance(inner, Mapping):
        raise InvalidRequestError(f"a block of type `{block.get('type')}` has no content")
    options = {"detail": inner["detail"]} if inner.get("detail") else {}
    inline = inner.get("base64", inner.get("data"))
    if isinstance(inline, bytes | bytearray | memoryview):
        return bytes(inline), options
    if isinstance(inline, str):  # some give the whole address in the place of what stands in it
        is_address = inline.lstrip()[:5].lower() == "data:"
        return (inline if is_address else _decode(inline, kind)), options
    outside = [inner[name] for name in ("url", "path", kind) if name in inner]
    if outside and isinstance(outside[0], str | Path):
        return outside[0], options
    if inner.get("file_id") or inner.get("id"):
        raise InvalidRequestError(
            f"the {kind} is given by the id of an upload, but this server keeps no uploads",
            hint="give its bytes, its address or its path",
        )
    raise InvalidRequestError(f"a block of type `{block.get('type')}` has no content")


def _read(source: str | bytes | Path, kind: Kind, access: MediaAccess, *, is_own: bool) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path):
        return read_file(source, _MOST[kind])
    scheme = source.partition(":")[0].strip().lower()
    if scheme == "data":
        return _read_data_url(source, kind)
    if scheme in ("http", "https"):
        return access.fetch(source, _MOST[kind], is_own=is_own)
    # Text may come from anybody, so it never names a file of this machine.
    raise InvalidRequestError(
        f"`{shorten_url(source)}` is not an address of {_NAMES[kind]}",
        hint="give a `Path`, or an address that begins with data:, http: or https:",
    )


def _read_data_url(url: str, kind: Kind) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise InvalidRequestError(f"the {kind}'s data: address has no data")
    if head.lower().endswith(";base64"):
        return _decode(body, kind)
    _check_length(body, kind, _QUOTED)
    return unquote_to_bytes(body)


def _check_length(text: str, kind: Kind, most: int) -> None:
    """Refuse what is too large before the memory holds it a second time.

    Args:
        text: The bytes as text.
        kind: Of the medium.
        most: Most characters for a byte.
    """
    if len(text) > most * _MOST[kind]:
        raise _too_large(kind)


def _too_large(kind: Kind) -> InvalidRequestError:
    return InvalidRequestError(f"the {kind} is too large: more than {_MOST[kind] >> 20} MB")


def _decode(text: str, kind: Kind) -> bytes:
    _check_length(text, kind, _IN_BASE64)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"the {kind} is not base64: {error}") from error


def _recognise(data: bytes, kind: Kind) -> str:
    """Return the type of the bytes, once they are whole."""
    for form in _FORMS:
        if form.kind == kind and form.begins(data):
            if not form.is_whole(data):
                raise InvalidRequestError(f"the {kind} is cut off: its end is missing")
            return form.mime_type
    known = ", ".join(form.mime_type.split("/")[1] for form in _FORMS if form.kind == kind)
    raise InvalidRequestError(
        f"the {kind} is of an unknown type" if data else f"the {kind} is empty",
        hint=f"known types are {known}",
    )


class _Form(NamedTuple):
    kind: Kind
    mime_type: str
    begins: Callable[[bytes], bool]
    is_whole: Callable[[bytes], bool]


def _starts(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(marks)


def _riff(form: bytes) -> Callable[[bytes], bool]:
    return lambda data: data[:4] == b"RIFF" and data[8:12] == form


def _box(data: bytes) -> bool:
    return data[4:8] == b"ftyp"


def _is_whole_png(data: bytes) -> bool:
    place = 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        end = place + 12 + size
        if end > len(data):
            return False
        (check,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[place + 4 : end - 4]) != check:
            return False
        if data[place + 4 : place + 8] == b"IEND":
            return True
        place = end
    return False


def _is_whole_jpeg(data: bytes) -> bool:
    """Tell whether the picture has its end, not that of a preview before it.

    Behind it cameras put what they like, such as a film.
    """
    place = 2
    for _ in range(_MOST_SEGMENTS):
        if (segment := _JPEG_SEGMENT.match(data, place)) is None:
            break
        place = segment.end() - 2 + int.from_bytes(segment[1])
    return data.find(_JPEG_END, place) >= 0


def _is_whole_gif(data: bytes) -> bool:
    return data.rstrip(b"\0").endswith(b";")


def _is_whole_riff(data: bytes) -> bool:
    return len(data) >= int.from_bytes(data[4:8], "little") + 8


def _is_whole_bmp(data: bytes) -> bool:
    return len(data) >= int.from_bytes(data[2:6], "little") > 0


def _cannot_tell(data: bytes) -> bool:
    return bool(data)


_FORMS = (
    _Form("image", "image/png", _starts(b"\x89PNG\r\n\x1a\n"), _is_whole_png),
    _Form("image", "image/jpeg", _starts(b"\xff\xd8\xff"), _is_whole_jpeg),
    _Form("image", "image/webp", _riff(b"WEBP"), _is_whole_riff),
    _Form("image", "image/gif", _starts(b"GIF87a", b"GIF89a"), _is_whole_gif),
    _Form("image", "image/bmp", _starts(b"BM"), _is_whole_bmp),
    _Form("image", "image/tiff", _starts(b"II*\0", b"MM\0*"), _cannot_tell),
    _Form("audio", "audio/wav", _riff(b"WAVE"), _cannot_tell),
    _Form(
        "audio",
        "audio/mpeg",
        _starts(b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2"),
        _cannot_tell,
    ),
    _Form("audio", "audio/flac", _starts(b"fLaC"), _cannot_tell),
    _Form("audio", "audio/ogg", _starts(b"OggS"), _cannot_tell),
    _Form("audio", "audio/mp4", _box, _cannot_tell),
    _Form("video", "video/mp4", _box, _cannot_tell),
    _Form("video", "video/webm", _starts(b"\x1a\x45\xdf\xa3"), _cannot_tell),
    _Form("video", "video/x-msvideo", _riff(b"AVI "), _is_whole_riff),
)
