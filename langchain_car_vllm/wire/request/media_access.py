"""What a request may read to get at its media: which addresses, and for how long.

Messages come from tools, web pages and other people. So text never names a file, and an address is
fetched only where the user asked for it, from public addresses, within bounds.
"""

import ipaddress
import os
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from langchain_car_vllm import __version__
from langchain_car_vllm.support.bounded_http import (
    ForbiddenAddressError,
    HttpError,
    HttpResponse,
    fetch,
)
from langchain_car_vllm.support.file_reading import open_to_read
from langchain_car_vllm.wire.errors import InvalidRequestError

_SECONDS = 60.0
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# Of IETF's protocols: which of them Python calls global changes with its releases.
_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Fetching = bool | Collection[str] | None


@dataclass(frozen=True)
class MediaAccess:
    """What may be fetched for the messages of one request.

    Attributes:
        fetching: None for public addresses in the user's own messages, True for those in tool
            results too, False for none, names of hosts for these alone, wherever they lead.
        deadline: Monotonic seconds by which all of it has to be there, None for no limit but that
            of a single address.
    """

    fetching: Fetching = None
    deadline: float | None = None

    def fetch(self, url: str, most_bytes: int, *, is_own: bool) -> bytes:
        """Return the bytes at an address, at most one more than `most_bytes`.

        Args:
            url: Where.
            most_bytes: How many may be wanted.
            is_own: Whether the address stands in a message of the user's own.

        Raises:
            InvalidRequestError: It may not be fetched, or cannot.
        """
        place = url
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._get(place, url, most_bytes, is_own=is_own)
            target = response.headers.get("location")
            if response.status not in _REDIRECTS or not target:
                break
            place = urljoin(place, target)
        else:
            raise _fetch_error(url, "it redirects too many times")
        if response.status != HTTPStatus.OK:
            raise _fetch_error(url, f"the answer was {response.status}")
        return response.body

    def _get(self, place: str, url: str, most_bytes: int, *, is_own: bool) -> HttpResponse:
        host = _host_of(place)
        is_listed = self._check_wanted(host, url, is_own=is_own)
        try:
            return fetch(
                place,
                seconds=self._seconds(),
                most_bytes=most_bytes + 1,
                headers={"user-agent": f"langchain-car-vllm/{__version__}"},
                may_connect=None if is_listed else is_public,
            )
        except ForbiddenAddressError as error:
            raise InvalidRequestError(
                f"`{shorten_url(url)}` is not fetched: {error}",
                hint=f'give its bytes, or allow the host: `fetch_media=["{host}"]`',
            ) from error
        except HttpError as error:
            hint = None
            if not error.is_late and has_proxy(place):
                hint = "the environment's proxy is not used for media: give its bytes"
            raise _fetch_error(url, str(error), hint) from error

    def _check_wanted(self, host: str, url: str, *, is_own: bool) -> bool:
        """Return whether the host may lead anywhere; refuse it where it may not be asked."""
        fetching = self.fetching
        if isinstance(fetching, Collection):
            if host in {name.lower() for name in fetching}:
                return True
            reason = f"`{host}` is not among the hosts of `fetch_media`"
        elif fetching is False:
            reason = "`fetch_media` is False"
        elif fetching is None and not is_own:
            reason = "addresses in tool results are fetched with `fetch_media=True` only"
        else:
            return False
        raise InvalidRequestError(f"`{shorten_url(url)}` is not fetched: {reason}")

    def _seconds(self) -> float:
        if self.deadline is None:
            return _SECONDS
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise InvalidRequestError("the media could not be fetched within `timeout`")
        return min(left, _SECONDS)


NO_ACCESS = MediaAccess(fetching=False)
"""For what asks nobody, such as counting tokens."""


def has_proxy(url: str) -> bool:
    """Tell whether the environment sends an address through a proxy."""
    parts = urlsplit(url)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the internet's, whatever form it is hidden in."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.is_site_local:
            return False
    elif found in _PROTOCOLS:
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved)


def read_file(path: Path, most_bytes: int) -> bytes:
    """Return the bytes of a regular file, at most one more than `most_bytes`.

    Raises:
        InvalidRequestError: It cannot be read, or is not a file.
    """
    try:
        path = path.expanduser()
        descriptor = open_to_read(path)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidRequestError(f"`{path}` is not a regular file")
            return file.read(most_bytes + 1) or b""
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequestError(f"`{path}` cannot be read: {reason}") from error


def shorten_url(url: str) -> str:
    """Return an address for a message: without its user, password and query, and not too long."""
    try:
        parts = urlsplit(url)
        start = f"{parts.scheme}://" if parts.scheme else ""
        shown = f"{start}{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        shown = url
    return shown if len(shown) <= 80 else f"{shown[:77]}..."  # noqa: PLR2004


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError as error:
        raise _fetch_error(url, str(error)) from error


def _fetch_error(url: str, reason: str, hint: str | None = None) -> InvalidRequestError:
    return InvalidRequestError(f"`{shorten_url(url)}` cannot be fetched: {reason}", hint=hint)
