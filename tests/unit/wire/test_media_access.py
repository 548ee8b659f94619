"""What messages may reach: no file by its name, no address of this machine or network, no limit."""

import asyncio
import base64
import ipaddress
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fakes.reply import Reply
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_car_vllm.support.bounded_http import HttpError, fetch
from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.request.media import read_medium
from langchain_car_vllm.wire.request.media_access import MediaAccess, is_public

RED_DATA = (
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAEElEQVR4nGP4z8AARwzEcQCukw/x0F8jngAA"
    "AABJRU5ErkJggg=="
)
RED = base64.b64decode(RED_DATA)
URL = f"data:image/png;base64,{RED_DATA}"
LISTED = ["127.0.0.1"]


@contextmanager
def web(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[str]]]:
    """Serve on loopback; give the root and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.handle_error = lambda *_: None
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}", asked
        finally:
            http.shutdown()


def picture(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(RED)


def conversation(place: str, block: object) -> list:
    """Return a conversation in which a block stands in the user's message or a tool's result."""
    if place == "user":
        return [HumanMessage([block])]
    if place == "system":
        return [SystemMessage([block]), HumanMessage("look")]
    call = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}])
    return [HumanMessage("look"), call, ToolMessage([block], tool_call_id="1")]


@pytest.fixture
def see(serve):
    """Return a model that takes images, and what it was sent."""
    return lambda **fields: serve(
        Reply(text="I see."), dialect={"multimodal": True, "engine": "batched"}, **fields
    )


def named(file: Path) -> list[object]:
    """Return the ways to name a file by text."""
    address = file.as_uri()
    return [
        {"type": "image", "url": address},
        {"type": "image", "url": address.upper().replace(str(file).upper(), str(file))},
        {"type": "image", "url": f" {address}"},
        {"type": "image", "path": str(file)},
        {"type": "image", "image": str(file)},
        {"type": "image", "url": str(file)},
        {"type": "image_url", "image_url": address},
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "image", "source": {"type": "url", "url": address}},
        {"type": "image", "source_type": "url", "url": address},
    ]


@pytest.mark.parametrize("place", ["user", "system", "tool"])
def test_text_never_names_a_file(see, tmp_path: Path, place: str):
    """Wherever it stands; nothing of the file goes out, nor whether it exists."""
    file = tmp_path / "secret.png"
    model, dialect = see()
    for block in named(file):
        told = []
        for exists in (False, True):
            file.write_bytes(RED) if exists else file.unlink(missing_ok=True)
            told.append(outcome(lambda b=block: model.invoke(conversation(place, b))))
        assert told[0] == told[1] != ""
    assert URL not in str(dialect.requests)
    assert bool(dialect.requests) == (place != "user")


def outcome(call: Callable[[], object]) -> str:
    """Return the warning or the error that a call ends with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except InvalidRequestError as error:
            return str(error)
    return " ".join(str(warning.message) for warning in caught)


HIDDEN = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0.0.0.0"]


@pytest.mark.parametrize("place", ["user", "tool"])
def test_addresses_of_this_machine_are_not_asked(see, place: str):
    """However they are written; a tool's result becomes a line of text instead of an error."""
    model, dialect = see(fetch_media=True)
    with web(picture) as (root, asked):
        for host in HIDDEN:
            block = {"type": "image", "url": root.replace("127.0.0.1", host)}
            told = outcome(lambda b=block: model.invoke(conversation(place, b)))
            assert ("not attached" if place == "tool" else "fetched") in told
    assert asked == []
    assert len(dialect.requests) == (len(HIDDEN) if place == "tool" else 0)
    assert all("not attached" in body["messages"][-1]["content"] for body in dialect.requests)


@pytest.mark.parametrize(
    ("fetching", "place", "fetched"),
    [
        (LISTED, "user", True),
        (LISTED, "tool", True),
        (["example.org"], "user", False),
        (False, "user", False),
        (None, "tool", False),
        (None, "user", False),
        (True, "user", False),
    ],
)
def test_fetch_media_says_what_may_be_asked(see, fetching, place: str, fetched: bool):
    """Hosts that are listed may lead anywhere; nothing else leads to this machine."""
    model, dialect = see(fetch_media=fetching)
    with web(picture) as (root, asked):
        block = {"type": "image", "url": f"{root}/red.png"}
        told = outcome(lambda: model.invoke(conversation(place, block)))
    assert bool(asked) == fetched == (told == "")
    assert (URL in str(dialect.requests)) == fetched


@pytest.mark.parametrize(
    ("code", "target"),
    [
        (301, "http://localhost:{port}/x"),
        (302, "file:///etc/passwd"),
        (303, "ftp://127.0.0.1/b"),
        (307, "//localhost:{port}/x"),
        (308, "data:image/png;base64,QUJD"),
    ],
)
def test_a_redirect_leads_to_no_other_place(see, code: int, target: str):
    """Each hop is looked at as if the user had written it."""

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        port = handler.server.server_address[1]
        handler.send_header("location", target.format(port=port))
        handler.end_headers()

    model, dialect = see(fetch_media=LISTED)
    with web(redirect) as (root, asked), pytest.raises(InvalidRequestError, match="fetch"):
        model.invoke(conversation("user", {"type": "image", "url": root}))
    assert asked == ["/"]
    assert dialect.requests == []


def test_a_redirect_to_an_allowed_place_is_followed_but_not_forever(see):
    """A few hops are ordinary, a circle is an error."""

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/red.png":
            return picture(handler)
        handler.send_response(302)
        handler.send_header("location", "/red.png" if handler.path == "/once" else "/circle")
        return handler.end_headers()

    model, dialect = see(fetch_media=LISTED)
    with web(redirect) as (root, _):
        model.invoke(conversation("user", {"type": "image", "url": f"{root}/once"}))
        with pytest.raises(InvalidRequestError, match="too many times"):
            model.invoke(conversation("user", {"type": "image", "url": f"{root}/circle"}))
    assert URL in str(dialect.requests)


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"\x89P")
        time.sleep(0.05)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        handler.wfile.write(b"a")
        time.sleep(0.05)


def continue_forever(handler: BaseHTTPRequestHandler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def flood(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"\0" * (1 << 20))


@pytest.mark.parametrize(
    ("fault", "way"),
    [(drip, "sync"), (drip_headers, "async"), (continue_forever, "sync"), (flood, "async")],
)
def test_an_address_is_read_within_timeout_and_bytes(see, fault, way: str):
    """Whatever the other side does."""
    model, _ = see(fetch_media=LISTED, timeout=1.0)
    began = time.monotonic()
    with web(fault) as (root, _):
        messages = conversation("user", {"type": "image", "url": root})
        with pytest.raises(InvalidRequestError, match=r"fetched|20 MB"):
            model.invoke(messages) if way == "sync" else asyncio.run(model.ainvoke(messages))
    assert time.monotonic() - began < 15


def test_one_limit_of_time_holds_for_all_addresses_together(see):
    """Ten slow pictures take no longer than one."""

    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.6)
        picture(handler)

    model, dialect = see(fetch_media=LISTED, timeout=1.0)
    with web(slow) as (root, asked), pytest.raises(InvalidRequestError):
        model.invoke([HumanMessage([{"type": "image", "url": f"{root}/{n}"} for n in range(10)])])
    assert len(asked) <= 2
    assert dialect.requests == []


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "nul", "endless"])
def test_only_regular_files_are_read(see, tmp_path: Path, kind: str):
    """A pipe would be waited for, a device never ends."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = {
        "fifo": fifo,
        "device": Path("/dev/zero"),
        "folder": tmp_path,
        "nul": Path("a\0b"),
        "endless": Path("~nobody-of-that-name/x"),
    }[kind]
    model, dialect = see()
    with pytest.raises(InvalidRequestError, match=r"regular|cannot be read"):
        model.invoke(conversation("user", {"type": "image", "url": path}))
    assert dialect.requests == []


@given(st.ip_addresses())
def test_an_address_is_public_in_none_of_its_forms_or_in_all(address):
    """An address of a private network may be hidden in one of version six."""
    if isinstance(address, ipaddress.IPv4Address):
        number = int(address)
        forms = [
            ipaddress.IPv6Address((0xFFFF << 32) | number),
            ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
            ipaddress.IPv6Address((0x64FF9B << 96) | number),
        ]
        assert {is_public(str(form)) for form in forms} == {is_public(str(address))}
    # Whether Python calls these private themselves changes with its releases.
    inner = [getattr(address, form, None) for form in ("ipv4_mapped", "sixtofour")]
    if not any(inner) and (address.is_private or address.is_link_local or address.is_multicast):
        assert not is_public(str(address))


def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch):
    """A name that stands for something else the second time gains nothing."""
    real, lookups, checked = socket.getaddrinfo, [], []

    def changing(host, port, *args, **kwargs):
        if host != "rebinding.test":
            return real(host, port, *args, **kwargs)
        lookups.append(host)
        address = "127.0.0.1" if len(lookups) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    with web(picture) as (root, asked):
        url = root.replace("127.0.0.1", "rebinding.test")
        response = fetch(
            url,
            seconds=10,
            most_bytes=1 << 20,
            may_connect=lambda address: not checked.append(address),
        )
    assert (checked, lookups, asked) == (["127.0.0.1"], ["rebinding.test"], ["/"])
    assert response.body == RED


def test_a_resolver_that_never_answers_is_not_waited_for(monkeypatch):
    """It knows no limit of its own."""
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait(30) and [])
    began = time.monotonic()
    with pytest.raises(HttpError, match="within"):
        fetch("http://slow.test/", seconds=0.2, most_bytes=1)
    assert time.monotonic() - began < 10
    never.set()


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://", "http://[", "data:"]))
def test_any_text_for_an_address_is_refused_with_a_typed_error(text: str, start: str):
    """No text is a raw exception, and none is asked for."""
    with pytest.raises(InvalidRequestError):
        read_medium({"type": "image", "url": start + text}, MediaAccess(fetching=False))


@pytest.mark.parametrize(
    "address",
    [
        *("fec0::1", "feff::1", "192.0.0.8", "192.0.0.170", "64:ff9b::c000:8", "2001::1"),
        *("100.64.0.1", "198.18.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "fe80::1%eth0"),
    ],
)
def test_an_address_of_a_special_purpose_is_not_public(address: str):
    """On every release of Python, whose own lists differ."""
    assert not is_public(address)
