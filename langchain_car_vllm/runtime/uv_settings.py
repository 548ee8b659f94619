"""The settings that uv gets: those of the network and the cache, none of somebody's project.

A set with hashes depends on nothing else. An age gate, constraints, overrides, link modes and
targets are meant for the user's own projects and would break it, so of the `UV_*` variables and of
the user's `uv.toml` only what is listed here stays.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from langchain_car_vllm import paths
from langchain_car_vllm.environment import is_off
from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.support.os_limits import hint_for_limit
from langchain_car_vllm.support.proxy_variables import proxy_variables

log = logging.getLogger(__name__)

_KEPT_VARIABLES = frozenset(
    f"UV_{name}"
    for name in (
        *("DEFAULT_INDEX", "INDEX", "INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS"),
        *("INDEX_STRATEGY", "KEYRING_PROVIDER", "CREDENTIALS_DIR", "INSECURE_HOST"),
        *("HTTP_TIMEOUT", "REQUEST_TIMEOUT", "HTTP_CONNECT_TIMEOUT", "HTTP_RETRIES"),
        *("CONCURRENT_DOWNLOADS", "CONCURRENT_INSTALLS", "OFFLINE", "SYSTEM_CERTS", "NATIVE_TLS"),
        *("CACHE_DIR", "NO_CACHE", "LOCK_TIMEOUT", "GITHUB_TOKEN"),
        *("PYTHON_DOWNLOADS", "PYTHON_DOWNLOADS_JSON_URL", "PYTHON_INSTALL_MIRROR"),
        *("PYTHON_INSTALL_DIR", "PYTHON_CACHE_DIR"),
        *("S3_ENDPOINT_URL", "GCS_ENDPOINT_URL", "AZURE_ENDPOINT_URL"),
    )
)
_INDEX_CREDENTIALS = re.compile(r"UV_INDEX_\w+_(?:USERNAME|PASSWORD)")
# They colour what is read here.
_COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE")

_PATHS = (
    *("UV_CACHE_DIR", "UV_CONFIG_FILE", "UV_CREDENTIALS_DIR", "UV_PYTHON_INSTALL_DIR"),
    *("UV_PYTHON_CACHE_DIR", "UV_TOOL_DIR", "UV_TOOL_BIN_DIR"),
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_BIN_HOME"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT", "NETRC", "CAR_UV", "CAR_VLLM_MLX_BIN"),
)
_PLACES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")

_INDEX_KEYS = frozenset(
    {
        *("index", "index-url", "extra-index-url", "find-links", "no-index"),
        *("index-strategy", "keyring-provider"),
    }
)
_KEPT_KEYS = _INDEX_KEYS | {
    *("allow-insecure-host", "offline", "no-cache", "cache-dir"),
    *("python-install-mirror", "python-downloads", "python-downloads-json-url"),
    *("concurrent-downloads", "concurrent-installs"),
}
_LISTS = frozenset({"index", "extra-index-url", "find-links", "allow-insecure-host"})
_PROXIES = {"http-proxy": "HTTP_PROXY", "https-proxy": "HTTPS_PROXY", "no-proxy": "NO_PROXY"}
# uv 0.11 has renamed it; an older one knows the second name only.
_CERTIFICATES = ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS")
_CERTIFICATE_KEYS = ("system-certs", "native-tls")
_LINUX_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def absolute_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that name files, so that they mean the same from any folder."""
    found = {
        name: os.path.abspath(os.path.expanduser(environment[name]))  # noqa: PTH100, PTH111
        for name in _PATHS
        if environment.get(name)
    }
    for name in _PLACES:
        if value := environment.get(name):
            found[name] = re.sub(r"[^\s,]+", lambda place: _absolute_place(place[0]), value)
    return found


def _absolute_place(place: str) -> str:
    """Return an index, such as `name=https://...` or `./wheels`, with an absolute path."""
    name, equals, path = place.rpartition("=")
    if "://" in place or not os.path.exists(os.path.expanduser(path)):  # noqa: PTH110, PTH111
        return place
    return f"{name}{equals}{os.path.abspath(os.path.expanduser(path))}"  # noqa: PTH100, PTH111


@contextmanager
def uv_environment(inherited: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield the environment for uv; what it keeps of the user's `uv.toml` lies in a private file.

    Raises:
        ProvisionError: A settings file cannot be read, or its copy be written.
    """
    absolute = {**inherited, **absolute_settings(inherited)}
    environment = {name: value for name, value in absolute.items() if _is_kept(name)}
    environment["NO_COLOR"] = "1"
    settings = _user_settings(absolute)
    for key, name in _PROXIES.items():
        if (proxy := settings.pop(key, None)) is not None and not _has(environment, name):
            environment[name] = ",".join(proxy) if isinstance(proxy, list) else str(proxy)
    environment.update(proxy_variables(environment))
    trusted = [settings.pop(key, None) for key in _CERTIFICATE_KEYS]
    environment.update(_certificates(environment, trusted))
    if not settings:
        yield {**environment, "UV_NO_CONFIG": "1"}
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(TemporaryDirectory(prefix="car-vllm-uv-"))
            file = Path(folder) / "uv.toml"
            file.write_text("".join(f"{k} = {_toml(v)}\n" for k, v in settings.items()), "utf-8")
        except OSError as error:
            raise ProvisionError(
                "settings",
                f"no temporary file can be written for uv: {error.strerror}",
                hint=hint_for_limit(error) or "free space there, or set TMPDIR to another folder",
            ) from error
        yield {**environment, "UV_CONFIG_FILE": str(file)}


def _is_kept(name: str) -> bool:
    if name in _COLOURS:
        return False
    if not name.startswith("UV_"):
        return True
    return name in _KEPT_VARIABLES or _INDEX_CREDENTIALS.fullmatch(name) is not None


def _has(environment: Mapping[str, str], name: str) -> bool:
    return bool(environment.get(name) or environment.get(name.lower()))


def _certificates(environment: Mapping[str, str], trusted: list[Any]) -> dict[str, str]:
    """Return what makes uv trust what the system trusts, unless the user says otherwise."""
    if any(environment.get(name) for name in (*_CERTIFICATES, "SSL_CERT_FILE", "SSL_CERT_DIR")):
        return {}
    wishes = [wish for wish in trusted if wish is not None]
    if wishes:
        return dict.fromkeys(_CERTIFICATES, "1" if any(wishes) else "0")
    return dict.fromkeys(_CERTIFICATES, "1") if has_system_certificates() else {}


def has_system_certificates(platform: str = sys.platform) -> bool:
    """Tell whether the system has certificates: a bare container has none, uv brings its own."""
    return platform == "darwin" or any(map(os.path.exists, _LINUX_STORES))


def _user_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what is kept of the files that uv would read, the user's own before the system's."""
    found: dict[str, Any] = {}
    for file in _settings_files(environment):
        for key, value in _read_settings(file).items():
            if key in _LISTS and key in found:
                found[key] = [*found[key], *value]
            else:
                found.setdefault(key, value)
    return found


def _settings_files(environment: Mapping[str, str]) -> list[Path]:
    if not is_off(environment.get("UV_NO_CONFIG") or "0"):
        return []
    if named := environment.get("UV_CONFIG_FILE"):
        return [Path(named)]
    home = paths.home()
    user = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
    system = [*(environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep), "/etc"]
    candidates = [Path(folder, "uv", "uv.toml") for folder in system if folder]
    present = [file for file in candidates if os.path.isfile(file)][:1]  # noqa: PTH113
    own = Path(user, "uv", "uv.toml") if user else None
    return [*([own] if own and os.path.isfile(own) else []), *present]  # noqa: PTH113


def _read_settings(file: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 - most supervisors install nothing

    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _settings_error(file, f"cannot be read: {error}") from error
    wanted = _KEPT_KEYS | _PROXIES.keys() | set(_CERTIFICATE_KEYS)
    kept = {key: value for key, value in settings.items() if key in wanted}
    pip = settings.get("pip")
    if isinstance(pip, dict):
        # For `uv pip` its own table goes before the general one.
        kept |= {key: value for key, value in pip.items() if key in _INDEX_KEYS}
    for key, value in kept.items():
        if (kind := _wanted_kind(key, value)) is not None:
            raise _settings_error(file, f"does not work with uv: `{key}` must be {kind}")
    return {key: _absolute_value(key, value, file.parent) for key, value in kept.items()}


def _wanted_kind(key: str, value: Any) -> str | None:
    """Return what a setting must be and is not; of what is merely handed on, uv itself judges."""
    if key in _LISTS and not isinstance(value, list):
        return "a list"
    if key not in _PROXIES:
        return None
    texts = value if key == "no-proxy" and isinstance(value, list) else [value]
    return None if all(isinstance(t, str) and "\0" not in t for t in texts) else "a string"


def _settings_error(file: Path, what: str) -> ProvisionError:
    return ProvisionError("settings", f"`{file}` {what}", hint=f"correct `{file}`")


def _absolute_value(key: str, value: Any, folder: Path) -> Any:
    """Return a setting whose relative paths are read from the folder of its file, as uv does."""
    if isinstance(value, list):
        return [_absolute_value(key, item, folder) for item in value]
    if isinstance(value, dict):
        return {k: _absolute_value(k, v, folder) for k, v in value.items()}
    is_place = key in {"url", "index-url", "extra-index-url", "find-links", "cache-dir"}
    if is_place and isinstance(value, str) and "://" not in value:
        return str(folder / os.path.expanduser(value))  # noqa: PTH111 - `Path` may raise
    return value


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(k)} = {_toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, str):
        # The one character that JSON allows and TOML does not.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()
