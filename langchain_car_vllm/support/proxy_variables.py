"""The variables that name proxies, as all the programs that are started understand them."""

from collections.abc import Mapping

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_EXCEPTIONS = "no_proxy"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DESKTOP, _KNOWN = "socks://", "socks5h://"
"""How desktops write a SOCKS proxy, and how libraries do where it looks names up."""


def is_proxy_variable(name: str) -> bool:
    """Tell whether a variable names a proxy, or what goes through none."""
    return name.lower() in {*_PROXIES, _EXCEPTIONS}


def is_socks(proxy: str) -> bool:
    """Tell whether a proxy speaks SOCKS."""
    return proxy.strip().lower().startswith("socks")


def proxy_variables(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of proxies for a program that is started.

    What this machine serves to itself goes through no proxy, whatever the variables say.
    """
    found = {name: value for name, value in inherited.items() if is_proxy_variable(name) and value}
    proxies = {n: _known(v) for n, v in found.items() if n.lower() != _EXCEPTIONS}
    # Exceptions alone would hide the proxies that macOS knows of from Python.
    return proxies | proxy_exceptions(inherited) if proxies else found


def proxy_exceptions(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that except this machine from the proxies; none without a proxy."""
    if not any(value and name.lower() in _PROXIES for name, value in inherited.items()):
        return {}
    exceptions = inherited.get(_EXCEPTIONS) or inherited.get(_EXCEPTIONS.upper()) or ""
    if exceptions.strip() != "*":
        listed = [name for part in exceptions.split(",") if (name := part.strip())]
        exceptions = ",".join(dict.fromkeys([*listed, *_LOOPBACK]))
    return dict.fromkeys((_EXCEPTIONS, _EXCEPTIONS.upper()), exceptions)


def _known(proxy: str) -> str:
    text = proxy.strip()
    return _KNOWN + text[len(_DESKTOP) :] if text.lower().startswith(_DESKTOP) else text
