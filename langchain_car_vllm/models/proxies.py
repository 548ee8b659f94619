"""The way to the Hub through a proxy: that of its own client, SOCKS and `ALL_PROXY` too."""

import base64
import socket
import traceback
import urllib.request
from collections.abc import Mapping
from functools import partial
from http.client import HTTPConnection
from urllib.parse import unquote, urlsplit

from langchain_car_vllm.support.bounded_http import (
    HttpResponse,
    Trust,
    connect_to,
    fetch,
    is_loopback,
)
from langchain_car_vllm.support.process_state import import_whole
from langchain_car_vllm.support.proxy_variables import is_socks

_STEP = 10.0
"""Seconds for a connection, and for each byte of an answer."""
_SCHEMES = {"socks": "socks5", "socks5h": "socks5", "socks4a": "socks4"}


def find_proxies() -> dict[str, str]:
    """Return the proxy of each scheme, as the environment or the system says."""
    found = urllib.request.getproxies()
    rest = found.get("all")
    return {name: proxy for name in ("http", "https") if (proxy := found.get(name) or rest)}


def find_proxy(url: str) -> str | None:
    """Return the proxy that an address goes through, None where it goes through none."""
    parts = urlsplit(url)
    return None if _is_direct(parts.hostname or "") else find_proxies().get(parts.scheme)


def _is_direct(host: str) -> bool:
    return is_loopback(host) or bool(urllib.request.proxy_bypass(host))


def fetch_through_proxies(
    url: str, *, seconds: float, most_bytes: int, headers: Mapping[str, str], trust: Trust
) -> HttpResponse:
    """Get an address once, the way that the environment says; else as `bounded_http.fetch`.

    Raises:
        HttpError: There is no answer, or none in time.
        ValueError: It is not an address.
    """
    get = partial(fetch, seconds=seconds, most_bytes=most_bytes, trust=trust)
    proxy = find_proxy(url)
    if proxy is None:
        return get(url, headers=headers, connect=_connect)
    if is_socks(proxy):
        return get(url, headers=headers, connect=partial(_connect_through_socks, proxy))
    place, credentials = _place_and_credentials(proxy)
    if url.startswith("https:"):
        return get(url, headers=headers, connect=partial(_connect_by_tunnel, place, credentials))
    # Many make no tunnels to what is not encrypted.
    return get(place, whole=url, headers={**headers, **credentials}, connect=_connect)


def _connect(host: str, port: int, seconds: float) -> socket.socket:
    return connect_to(host, port, min(seconds, _STEP))


def _place_and_credentials(proxy: str) -> tuple[str, dict[str, str]]:
    """Return the address of a proxy, and what opens it; people write passwords as they are."""
    scheme, _, rest = proxy.strip().rpartition("://")
    user, _, place = rest.rpartition("@")
    said = base64.b64encode(unquote(user).encode()).decode()
    credentials = {"proxy-authorization": f"Basic {said}"} if ":" in user else {}
    return f"{scheme or 'http'}://{place}", credentials


class _Tunnel(HTTPConnection):
    """A connection that a proxy makes; its own addresses share the time."""

    def connect(self) -> None:
        self._create_connection = lambda at, seconds, *_: connect_to(at[0], at[1], seconds)
        super().connect()


def _connect_by_tunnel(
    place: str, credentials: Mapping[str, str], host: str, port: int, seconds: float
) -> socket.socket:
    parts = urlsplit(place)
    tunnel = _Tunnel(parts.hostname or "", parts.port or 80, timeout=min(seconds, _STEP))
    tunnel.set_tunnel(host, port, dict(credentials))
    try:
        tunnel.connect()
    except BaseException as error:
        tunnel.close()
        # Before Python 3.11.4 the proxy's refusal stays open there, and its socket with it.
        traceback.clear_frames(error.__traceback__)
        raise
    return tunnel.sock


def _connect_through_socks(proxy: str, host: str, port: int, seconds: float) -> socket.socket:
    import_whole("python_socks.sync")
    from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError  # noqa: PLC0415
    from python_socks.sync import Proxy  # noqa: PLC0415

    scheme, _, place = proxy.strip().partition("://")
    known = _SCHEMES.get(scheme.lower(), scheme.lower())
    try:
        way = Proxy.from_url(f"{known}://{place}", rdns=True)
        return way.connect(host, port, timeout=min(seconds, _STEP))
    except (ProxyError, ProxyConnectionError, ProxyTimeoutError, ValueError) as error:
        raise OSError(str(error)) from error
