"""HTTP requests whose answers are bounded in bytes and time, whatever the other side does.

For everything that is not a model's answer: what a server says of itself, and files from the web.
The limit of time is for the whole: looking the name up, connecting, TLS, each byte of the headers
and the body. Redirects are never followed here, and nothing is read from the environment.
"""

import base64
import errno
import http.client
import io
import ipaddress
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from email.message import Message
from functools import partial
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, quote, unquote, urlsplit

from langchain_car_vllm.support.process_state import import_whole

MayConnect = Callable[[str], bool]
Trust = Callable[[], ssl.SSLContext]
IsOurs = Callable[[int, int], bool]
Connect = Callable[[str, int, float], socket.socket]
Left = Callable[[], float]
_PART = 1 << 16
_ONE_OF_SEVERAL_SECONDS = 2.0
"""For an address to answer where there is another one to try."""
_SAFE = "/%:=&?~#+!$,;'@()*[]|"
_HASHED = re.compile(r"[0-9a-f]{8}\.\d")
"""How OpenSSL finds a certificate in a folder."""


class HttpError(Exception):
    """The request did not bring an answer.

    Attributes:
        is_late: Whether the time ran out.
    """

    is_late = False


class ForbiddenAddressError(HttpError):
    """The name leads only to addresses that may not be asked."""


class HttpResponse(NamedTuple):
    """What came back.

    Attributes:
        status: The HTTP status.
        reason: What is said beside it.
        headers: Names are matched in any case.
        body: As many bytes as were wanted at most.
    """

    status: int
    reason: str
    headers: Message
    body: bytes


def fetch(
    url: str,
    *,
    seconds: float,
    most_bytes: int,
    headers: Mapping[str, str] | None = None,
    may_connect: MayConnect | None = None,
    is_ours: IsOurs | None = None,
    trust: Trust | None = None,
    connect: Connect | None = None,
    whole: str | None = None,
) -> HttpResponse:
    """Get an address once.

    Args:
        url: An http: or https: address; a user and password in it are sent as such.
        seconds: For everything together.
        most_bytes: Of the body; the rest is left unread.
        headers: Sent along.
        may_connect: Asked for each address that the name stands for; the connection goes to the
            very address that was asked for.
        is_ours: Asked once the connection stands, before a byte is sent: whether it leads from its
            own port to the server that is meant, at the other port.
        trust: Returns what tells whose certificates are trusted, by default those that Python
            brings, or else those of the system.
        connect: Makes the connection, as `connect_to` does; its limit holds for each read.
        whole: What is asked for where the address is that of a proxy.

    Raises:
        ForbiddenAddressError: `may_connect` refused every address.
        HttpError: There is no answer, or none in time.
    """
    deadline = time.monotonic() + seconds
    try:
        parts = urlsplit(url)
        connect = connect or partial(connect_to, may_connect=may_connect)
        connection = _Connection(parts, deadline, connect, is_ours, trust or _usual_trust)
        try:
            sent = {"accept-encoding": "identity", **(headers or {})}
            if parts.username is not None:
                sent["authorization"] = f"Basic {basic_credentials(url)}"
            connection.request("GET", whole or _target(parts), headers=sent)
            with connection.getresponse() as response:
                body = _read(response, most_bytes)
                return HttpResponse(response.status, response.reason, response.headers, body)
        finally:
            connection.end()
    except HttpError:
        raise
    except TimeoutError as error:
        late = HttpError(f"there was no complete answer within {seconds:g} s")
        late.is_late = True
        raise late from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise HttpError(str(error) or type(error).__name__) from error


def _usual_trust() -> ssl.SSLContext:
    """Return what trusts the certificates that Python brings; python.org's for macOS has none."""
    paths = ssl.get_default_verify_paths()
    hashed = os.listdir(paths.capath) if paths.capath else []  # noqa: PTH208
    if paths.cafile or any(map(_HASHED.fullmatch, hashed)):
        return ssl.create_default_context()
    import_whole("truststore")
    import truststore  # noqa: PLC0415 - it enters Apple's frameworks

    trust = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.set_default_verify_paths()  # which may be several folders
    return trust


def _read(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    body = bytearray()
    while len(body) < most_bytes and (part := response.read(_PART)):
        body += part
    return bytes(body[:most_bytes])


def basic_credentials(url: str) -> str:
    """Return the user and password of an address as a `Basic` header has them."""
    parts = urlsplit(url)
    said = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return base64.b64encode(said.encode()).decode()


def _target(parts: SplitResult) -> str:
    path = quote(parts.path or "/", safe=_SAFE)
    return f"{path}?{quote(parts.query, safe=_SAFE)}" if parts.query else path


def as_address(host: str) -> str | None:
    """Return the IP address that is written as a host, None for a name."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(host))
    return None


def is_loopback(host: str) -> bool:
    """Whether an address or a name is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_addresses(host: str, port: int, deadline: float) -> list[str]:
    """Return what a name stands for; the resolver knows no limit of time, so a thread asks it.

    Raises:
        OSError: The name is unknown, there is no thread left, or the time has run out.
    """
    if address := as_address(host):
        return [address]
    found: list[str] = []
    errors: list[Exception] = []

    def resolve() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(entry[4][0]) for entry in entries))
        except (OSError, ValueError) as error:
            errors.append(error)

    thread = threading.Thread(target=resolve, name="langchain_car_vllm.resolve", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"`{host}` cannot be looked up: {error}") from error
    thread.join(_left(deadline))
    if errors:
        raise OSError(f"`{host}` is not known: {errors[0]}") from errors[0]
    if not found:
        raise TimeoutError
    return found


def turns(addresses: Sequence[str], deadline: float) -> Iterator[tuple[str, float]]:
    """Yield the addresses of a name, each with the seconds that it has to answer in.

    One that nobody answers at must leave time for the others.

    Raises:
        TimeoutError: The time has run out.
    """
    for place, address in enumerate(addresses, 1):
        left, others = _left(deadline), len(addresses) - place
        yield address, min(left / (others + 1), _ONE_OF_SEVERAL_SECONDS) if others else left


def connect_to(
    host: str, port: int, seconds: float, may_connect: MayConnect | None = None
) -> socket.socket:
    """Return a connection to a name, whose addresses share the time; each read has as much again.

    Raises:
        ForbiddenAddressError: `may_connect` refused every address.
        OSError: Nobody answers there, or not in time.
    """
    deadline = time.monotonic() + seconds
    addresses = find_addresses(host, port, deadline)
    if may_connect is not None:
        found, addresses = addresses, [a for a in addresses if may_connect(a)]
        if not addresses:
            raise ForbiddenAddressError(
                f"`{host}` resolves to {found[0]}, which is not a public address"
            )
    connected = _connect_to_one(addresses, port, deadline)
    connected.settimeout(seconds)
    return connected


def _connect_to_one(addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
    failure = OSError()
    for address, seconds in turns(addresses, deadline):
        try:
            return socket.create_connection((address, port), seconds)
        except OSError as error:
            failure = error
    raise failure


def _left(deadline: float, most: float = math.inf) -> float:
    """Return the seconds until then, not more than `most`.

    Raises:
        TimeoutError: There are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, most)


class _Timed(Protocol):
    """The part of a socket that is used here, of a TLS one too."""

    def settimeout(self, value: float | None, /) -> None: ...
    def recv_into(self, buffer: memoryview, /) -> int: ...
    def sendall(self, data: bytes, /) -> None: ...


class _Reading(io.RawIOBase):
    """The bytes of a socket until a deadline."""

    def __init__(self, connected: _Timed, left: Left) -> None:
        self._connected = connected
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._connected.settimeout(self._left())
        return self._connected.recv_into(buffer)


class _DeadlineSocket:
    """What `http.client` needs of a socket; nothing lasts beyond the deadline."""

    def __init__(self, connected: _Timed, left: Left) -> None:
        self._connected = connected
        self._left = left

    def sendall(self, data: bytes) -> None:
        self._connected.settimeout(self._left())
        self._connected.sendall(data)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Reading(self._connected, self._left))

    def close(self) -> None:
        """Do nothing: `http.client` closes what a response is still read from."""


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was looked up and allowed."""

    def __init__(
        self,
        parts: SplitResult,
        deadline: float,
        connect: Connect,
        is_ours: IsOurs | None,
        trust: Trust,
    ) -> None:
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HttpError("it is not an http: or https: address")
        self._is_secure = parts.scheme == "https"
        if self._is_secure:
            self.default_port = http.client.HTTPS_PORT
        super().__init__(parts.hostname, parts.port or self.default_port)
        self._deadline = deadline
        self._connect = connect
        self._is_ours = is_ours
        self._trust = trust
        self._connected: socket.socket | None = None

    def connect(self) -> None:
        connected = self._connect(self.host, self.port, _left(self._deadline))
        left = partial(_left, self._deadline, connected.gettimeout() or math.inf)
        try:
            self._check(connected)
            if self._is_secure:
                connected.settimeout(left())
                connected = self._trust().wrap_socket(connected, server_hostname=self.host)
        except BaseException:
            connected.close()
            raise
        self._connected = connected
        self.sock = _DeadlineSocket(connected, left)

    def _check(self, connected: socket.socket) -> None:
        if self._is_ours is None:
            return
        if not self._is_ours(connected.getsockname()[1], connected.getpeername()[1]):
            raise HttpError("the server is gone, and another program listens on its port")

    def end(self) -> None:
        """Close the connection."""
        self.close()
        if self._connected is not None:
            self._connected.close()
