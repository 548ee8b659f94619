"""Media in every usual shape, checked here, sent inline, in an order the server cannot confuse."""

import asyncio
import base64
import json
import struct
import threading
import tracemalloc
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fakes.reply import Reply
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.request.media import read_medium


def png(colour: tuple[int, int, int], size: int = 4) -> bytes:
    """Return a picture of one colour."""
    rows = b"".join(b"\0" + bytes(colour) * size for _ in range(size))

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [part(b"IHDR", head), part(b"IDAT", zlib.compress(rows)), part(b"IEND", b"")]
    )


def inline(data: bytes) -> dict[str, str]:
    """Return an image block."""
    encoded = base64.b64encode(data).decode()
    return {"type": "image", "base64": encoded, "mime_type": "image/png"}


RED, BLUE = png((255, 0, 0)), png((0, 0, 255))
DATA = base64.b64encode(RED).decode()
URL = f"data:image/png;base64,{DATA}"
WAV = b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 28
VIDEO = b"\0\0\0\x18ftypisom" + b"\0" * 12
SHAPES = {
    "openai": {"type": "image_url", "image_url": {"url": URL}},
    "openai-string": {"type": "image_url", "image_url": URL},
    "langchain": {"type": "image", "base64": DATA, "mime_type": "image/png"},
    "langchain-v0": {
        "type": "image",
        "source_type": "base64",
        "data": DATA,
        "mime_type": "image/png",
    },
    "langchain-url": {"type": "image", "url": URL},
    "anthropic": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": DATA},
    },
    "anthropic-url": {"type": "image", "source": {"type": "url", "url": URL}},
    "google": {"type": "media", "mime_type": "image/png", "data": DATA},
    "a file": {"type": "file", "mime_type": "image/png", "base64": DATA},
    "a file-v0": {
        "type": "file",
        "source_type": "base64",
        "data": DATA,
        "mime_type": "image/png",
    },
    "wrong type": {"type": "image", "base64": DATA, "mime_type": "image/jpeg"},
    "no type": {"type": "image", "base64": DATA},
    "no type-v0": {"type": "image", "source_type": "base64", "data": DATA},
    "whole address": {"type": "image", "base64": URL, "mime_type": "image/png"},
    "other case": {"type": "image", "url": f"DATA:image/png;BASE64,{DATA}"},
    "bytearray": {"type": "image", "base64": bytearray(RED)},
    "memoryview": {"type": "image", "data": memoryview(RED)},
}


@pytest.fixture
def see(serve):
    """Return a model that takes images, and what it was sent."""
    return lambda fetch_media=None, **more: serve(
        Reply(text="I see."), dialect={"multimodal": True, **more}, fetch_media=fetch_media
    )


def ask(*blocks: object) -> list[HumanMessage]:
    return [HumanMessage([{"type": "text", "text": "What is it?"}, *blocks])]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_in_any_shape_goes_out_in_the_servers(see, shape):
    """LangChain's, OpenAI's and Anthropic's, and the type is that of the content."""
    model, dialect = see()
    model.invoke(ask(SHAPES[shape]))
    sent = dialect.requests[0]["messages"][0]["content"]
    assert sent == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": URL}},
    ]


def test_a_path_is_read_here(see, home: Path):
    """As a `Path`, from the home folder too."""
    file = home / "a picture.png"
    file.write_bytes(RED)
    model, dialect = see()
    for url in (file, Path("~/a picture.png")):
        model.invoke(ask({"type": "image", "url": url}))
    for body in dialect.requests:
        assert body["messages"][0]["content"][1]["image_url"]["url"] == URL


def test_an_address_is_fetched_here_also_without_blocking_the_loop(see):
    """The server refuses addresses of this machine."""

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/red.png" else 404)
            self.end_headers()
            self.wfile.write(RED)

        def log_message(self, *args):
            pass

    model, dialect = see(fetch_media=["127.0.0.1"])
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        root = f"http://127.0.0.1:{http.server_address[1]}"
        asyncio.run(model.ainvoke(ask({"type": "image", "url": f"{root}/red.png"})))
        with pytest.raises(InvalidRequestError, match="404"):
            model.invoke(ask({"type": "image", "url": f"{root}/none.png"}))
        http.shutdown()
    assert dialect.requests[0]["messages"][0]["content"][1]["image_url"]["url"] == URL


def test_audio_and_video_go_out_under_the_servers_names(see):
    """`input_audio` would be dropped in silence."""
    model, dialect = see()
    sound = base64.b64encode(WAV).decode()
    for block in (
        {"type": "audio", "base64": sound, "mime_type": "audio/wav"},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
    ):
        model.invoke(ask(block))
    model.invoke(ask({**inline(VIDEO), "type": "video"}))
    sent = [body["messages"][0]["content"][1] for body in dialect.requests]
    assert [block["type"] for block in sent] == ["audio_url", "audio_url", "video_url"]
    assert sent[0]["audio_url"]["url"] == f"data:audio/wav;base64,{sound}"
    assert sent[2]["video_url"]["url"].startswith("data:video/mp4;base64,")


@pytest.mark.parametrize(
    ("block", "match"),
    [
        (inline(b"what"), "unknown type"),
        ({**inline(b""), "base64": "not base64!"}, "not base64"),
        (inline(RED[:-8]), "cut off"),
        (
            inline(RED[:40] + b"\0" + RED[41:]),
            "cut",
        ),
        (
            inline(b"\xff\xd8\xff" + b"x" * 99),
            "cut",
        ),
        (inline(b""), "empty"),
        ({"type": "image", "url": "picture.png"}, "not an address"),
        ({"type": "image", "url": Path("/no/such/file.png")}, "No such file"),
        ({"type": "image", "file_id": "file-1"}, "upload"),
        ({"type": "image"}, "no content"),
        ({"type": "image_url", "image_url": 5}, "no content"),
        ({"type": "file", "base64": DATA, "mime_type": "application/pdf"}, "`file`"),
        ({"type": "hologram"}, "`hologram`"),
    ],
)
def test_broken_media_is_refused_here(see, block, match):
    """With the reason, before anything is sent; the server would answer 500."""
    model, dialect = see()
    with pytest.raises(InvalidRequestError, match=match):
        model.invoke(ask(block))
    assert dialect.requests == []


def test_an_image_that_is_too_large_is_refused_here(see):
    """The server's own limit, in megabytes."""
    model, dialect = see()
    with pytest.raises(InvalidRequestError, match="more than 20 MB"):
        model.invoke(ask(inline(b"\0" * (21 << 20))))
    assert dialect.requests == []


@pytest.mark.parametrize("shape", SHAPES)
def test_a_text_model_takes_no_image(serve, shape):
    """The server would drop it and answer all the same."""
    model, dialect = serve(Reply(text="I see."), dialect={"multimodal": False})
    with pytest.raises(InvalidRequestError, match="takes no image"):
        model.invoke(ask(SHAPES[shape]))
    assert dialect.requests == []


@pytest.mark.parametrize("engine", ["simple", "batched"])
def test_a_request_with_media_is_always_streamed(see, engine):
    """A repeated image fails or answers wrongly otherwise, on the simple engine."""
    model, dialect = see(engine=engine)
    assert model.invoke(ask(SHAPES["openai"])).content == "I see."
    assert dialect.requests[0]["stream"] is True


def test_a_picture_in_a_result_in_anthropics_form_is_streamed_too(see):
    """It stands one level deeper, in a message of the user's."""
    model, dialect = see()
    call = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    told = {"type": "tool_result", "tool_use_id": "1", "content": [SHAPES["anthropic"]]}
    model.invoke([HumanMessage("go"), AIMessage([call]), HumanMessage([told])])
    (body,) = dialect.requests
    assert body["stream"]
    assert body["messages"][-1]["content"][-1] == {"type": "image_url", "image_url": {"url": URL}}


def test_the_order_of_images_shows_in_the_text(see):
    """The batched engine's cache knows the set of images and the text, not their order."""
    model, dialect = see()
    for images in ((RED, BLUE), (BLUE, RED)):
        model.invoke(ask(*[inline(data) for data in images]))
    texts = [
        [block["text"] for block in body["messages"][0]["content"] if block["type"] == "text"]
        for body in dialect.requests
    ]
    assert texts[0] != texts[1]
    assert texts[0][1].startswith("Image 2 (")


def test_a_later_image_does_not_change_what_was_sent_before(see):
    """The history's bytes stay, so that the cache holds."""
    model, dialect = see()
    first = ask(inline(RED))
    model.invoke(first)
    model.invoke([*first, AIMessage("red"), *ask(inline(BLUE))])
    one, two = (json.dumps(body["messages"]) for body in dialect.requests)
    assert two.startswith(one[:-1])


def test_an_image_in_a_tool_result_is_shown_after_the_results(see):
    """The batched engine shows the model nothing of it where it is."""
    model, dialect = see()
    calls = [{"name": "look", "args": {}, "id": n} for n in ("1", "2")]
    history = [
        HumanMessage("look"),
        AIMessage("", tool_calls=calls),
        ToolMessage([{"type": "text", "text": "here"}, inline(RED)], tool_call_id="1"),
        ToolMessage("nothing", tool_call_id="2"),
    ]
    model.invoke(history)
    model.invoke([*history, AIMessage("red"), HumanMessage("sure?")])
    sent = dialect.requests[0]["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool", "user"]
    assert [m["content"] for m in sent[2:4]] == ["here", "nothing"]
    assert sent[4]["content"][0]["text"] == "Result of 1:"
    assert sent[4]["content"][1]["image_url"]["url"] == URL
    assert dialect.requests[1]["messages"][:5] == sent


@pytest.mark.parametrize("start", ["data:image/png;base64,", "data:image/png,", ""])
def test_what_is_too_large_is_refused_before_it_is_decoded(start: str):
    """However it is written, the memory does not hold it a second time."""
    text = start + "A" * (61 << 20)
    block = {"type": "image", "url": text} if start else {"type": "image", "base64": text}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match="too large: more than 20 MB"):
            read_medium(block)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The part behind the comma is one copy.
    assert peak < 100 << 20


def test_a_photograph_is_whole_with_what_a_camera_puts_around_it():
    """A preview has an end of its own, and behind the picture there may be a film."""
    preview = b"\xff\xd8\xff\xd9"
    scan = b"\xff\xda\0\x02" + b"\x11" * 9
    head = (
        b"\xff\xd8\xff\xe1" + struct.pack(">H", 2 + len(preview)) + preview + b"\xff\xff\xc4\0\x02"
    )
    whole = head + scan + b"\xff\xd9"
    for data in (whole, whole + VIDEO + b"\0" * 5000):
        assert read_medium(inline(data)).mime_type == "image/jpeg"
    for end in range(4, len(whole)):
        with pytest.raises(InvalidRequestError, match="cut off"):
            read_medium(inline(whole[:end]))
