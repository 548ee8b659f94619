"""Responses that break with what HTTP says of them: a typed error, whatever it is."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
from langchain_car_vllm.errors import AnswerError, InvalidRequestError


@contextmanager
def answering(raw: bytes) -> Iterator[str]:
    """Answer every request with the same bytes; the address is that of the API."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                head = b""
                while b"\r\n\r\n" not in head and (part := connection.recv(1 << 16)):
                    head += part
                connection.sendall(raw)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def response(status: int, kind: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d Odd" % status, b"content-type: " + kind, b"connection: close", *headers]
    lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def calls(base_url: str):
    llm = ChatVllmMlx(model="m", base_url=base_url, max_retries=0)
    embeddings = VllmMlxEmbeddings(model="m", base_url=base_url)

    async def collect() -> None:
        async for _ in llm.astream("x"):
            pass

    yield lambda: llm.invoke("x")
    yield lambda: list(llm.stream("x"))
    yield lambda: asyncio.run(collect())
    yield lambda: embeddings.embed_query("x")
    yield lambda: asyncio.run(embeddings.aembed_query("x"))


# Codecs that Python knows and no text is written in, those that need what is not there, and none.
CHARSETS = b"hex zlib bz2 uu rot13 idna punycode undefined utf-16 utf-32 utf-7 x-none".split()


@pytest.mark.parametrize("charset", CHARSETS)
def test_a_character_set_that_is_none_hides_no_error(charset: bytes):
    """The status and the text are told as well as they can be."""
    kind = b"; charset=" + charset
    for body in (b"\xffno", b'{"error": {"message": "no"}}'):
        with answering(response(400, b"text/plain" + kind, body)) as base_url:
            for call in calls(base_url):
                with pytest.raises(InvalidRequestError):
                    call()
            llm = ChatVllmMlx(model="m", base_url=base_url)
            assert llm.get_num_tokens("some words") > 0


@pytest.mark.parametrize(
    "raw",
    [
        response(302, b"text/plain", b"", b"location: \xff\xfe"),
        response(429, b"text/plain", b"", b"retry-after: 1e400", b"x-request-id: \xc3\xa4\xff"),
        response(500, b"\xff", b"\xff"),
        b"HTTP/1.1 204 Odd\r\n\r\n",
        b"HTTP/1.1 101 Odd\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 Odd\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 Odd\r\ncontent-length: -5\r\n\r\n",
    ],
)
def test_odd_headers_are_a_typed_error(raw: bytes):
    """Also where they hold bytes that are no text."""
    with answering(raw) as base_url:
        for call in calls(base_url):
            with pytest.raises(AnswerError):
                call()


@pytest.mark.parametrize("status", ["300 Multiple Choices", "302 Found", "304 Not Modified"])
def test_a_redirect_without_an_address_is_told_as_that(status: str):
    """No address of that name is there to be trusted."""
    raw = f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode()
    with (
        answering(raw) as base_url,
        pytest.raises(InvalidRequestError, match="does not say where to") as caught,
    ):
        ChatVllmMlx(model="m", base_url=base_url).invoke("hi")
    assert "None" not in str(caught.value)


MANY = 900_000
LONG = {
    "blanks": ("404 Not Found", " " * MANY + "x"),
    "titles": ("500 Oh no", "<html>" + "<title>" * (MANY // 7)),
    "blanks-before-a-page": ("500 Oh no", " " * MANY + "<html"),
    "words": ("400 Bad", "context length " * (MANY // 15)),
    "lengths": ("400 Bad", "prompt length (" * (MANY // 15)),
    "models": ("400 Bad", "model '" + "x" * MANY),
    "addresses": ("400 Bad", "http://a:" * (MANY // 9)),
    "parameters": ("400 Bad", "?key=" * (MANY // 5)),
    "users": ("400 Bad", "//" + "a@" * (MANY // 2)),
    "brackets": ("400 Bad", "[" * MANY),
    "escapes": ("400 Bad", "\x1b[" * (MANY // 2)),
}


@pytest.mark.parametrize("name", LONG)
def test_no_text_of_an_error_takes_longer_than_it_is_long(name: str):
    """Looking through it holds up the whole program, and no limit of time ends that."""
    status, text = LONG[name]
    raw = f"HTTP/1.1 {status}\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()
    with answering(raw) as base_url, pytest.raises(AnswerError) as caught:
        ChatVllmMlx(model="m", base_url=base_url).invoke("hi")
    assert len(str(caught.value)) < 3000
