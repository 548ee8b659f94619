"""The way to the Hub through a proxy: that of its own client, SOCKS and `ALL_PROXY` too."""

import socket
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from langchain_car_vllm.support.bounded_http import connect_to, is_loopback
from langchain_car_vllm.support.process_state import import_whole
from langchain_car_vllm.support.proxy_variables import is_socks

Connect = Callable[..., socket.socket]
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


class HttpProxies(urllib.request.ProxyHandler):
    """Sends requests through the proxies that speak HTTP; those of SOCKS are the connection's.

    Args:
        proxies: By scheme.
    """

    def __init__(self, proxies: Mapping[str, str]) -> None:
        super().__init__({name: url for name, url in proxies.items() if not is_socks(url)})

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:  # noqa: A002
        """Go the direct way where there is one."""
        if _is_direct(urlsplit(req.full_url).hostname or ""):
            return None
        return super().proxy_open(req, proxy, type)


def connect_with(proxy: str | None) -> Connect:
    """Return what makes the connections of a scheme, instead of `socket.create_connection`."""

    def connect(address: tuple[str, int], timeout: float, *_: Any) -> socket.socket:
        if proxy is None or not is_socks(proxy) or _is_direct(address[0]):
            return connect_to(*address, timeout)
        return _connect_through(proxy, address, timeout)

    return connect


def _connect_through(proxy: str, address: tuple[str, int], timeout: float) -> socket.socket:
    import_whole("python_socks.sync")
    from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError  # noqa: PLC0415
    from python_socks.sync import Proxy  # noqa: PLC0415

    scheme, _, place = proxy.strip().partition("://")
    known = _SCHEMES.get(scheme.lower(), scheme.lower())
    try:
        way = Proxy.from_url(f"{known}://{place}", rdns=True)
        return way.connect(*address, timeout=timeout)
    except (ProxyError, ProxyConnectionError, ProxyTimeoutError, ValueError) as error:
        raise OSError(str(error)) from error
