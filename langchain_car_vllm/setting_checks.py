"""What can be wrong with a setting, told in a sentence that says what to write instead."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from inspect import iscoroutinefunction
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, SecretStr, ValidationError

from langchain_car_vllm import environment
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.server.spec import can_be_passed, check_arguments
from langchain_car_vllm.support.printable import format_value
from langchain_car_vllm.support.process_state import import_whole
from langchain_car_vllm.support.user_warnings import warn_user_once
from langchain_car_vllm.wire.request.headers import check_headers, check_key

EXAMPLE = (
    "name one, such as `mlx-community/Qwen3-4B-4bit`; `car-vllm recommend` lists those that fit "
    "this machine"
)
"""What to do where no model is named."""

_PLAIN_URL = re.compile(r"\w+://[A-Za-z0-9._~-]+(:\d+)?(/[A-Za-z0-9._~-]+)*/*", re.ASCII)
_QUOTES = " \"'`<>"
_BEGINNING = r"(?:https?(?::/*|/+)|[a-z][a-z0-9+.\-]*:?//+)+"
_TWO_SCHEMES = r"https?://https?:?//"
_HOST = re.compile(r"[^\s/:*@?#\[\]]+|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*")
_MODEL_FOLDERS = frozenset(
    variable.name
    for variable in (
        environment.HF_HOME,
        environment.HF_HUB_CACHE,
        environment.HUGGINGFACE_HUB_CACHE,
    )
)
_MEMBERS = frozenset({"str", "float", "int", "bool"})
# Their values are shown to nobody, not even where they are wrong.
_SECRETS = frozenset(
    {"api_key", "base_url", "default_headers", "extra_body", "server_args", "server_env"}
)
_SCALARS = (str, int, float, bool, type(None))
# Where pydantic names one member of a union, or a kind that nobody types.
_TAKEN = {
    "reasoning": 'True, False, "low", "medium" or "high"',
    "disable_streaming": 'True, False or "tool_calling"',
    "draft": "True, False or the name of a draft model",
    "fetch_media": "True, False or a list of hosts",
    "keep_alive": 'seconds, or a string such as "10m"',
    "stop": "a string or a list of strings",
    "server_args": 'a list of words, such as `["--max-tokens", "4096"]`',
}
# Pydantic's kinds of errors, as what may be written instead.
_WANTED = {
    "bool": "True or False",
    "dict": "a dictionary",
    "finite": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "string": "a string",
}
# They are about a server that this package starts.
_OF_OUR_SERVER = (
    "revision",
    "keep_alive",
    "startup_timeout",
    "auto_install",
    "auto_pull",
    "server_args",
    "server_env",
)


def check_positive(name: str, value: float) -> None:
    """Refuse a setting of 0 or less."""
    if not value > 0:
        raise ConfigurationError(f"`{name}` must be more than 0, not {value:g}")


def check_listener(function: object) -> None:
    """Refuse an async `on_progress`, whose coroutines nobody would await."""
    asked = (function, getattr(function, "__call__", None))  # noqa: B004 - an object's own method
    if any(map(iscoroutinefunction, asked)):
        raise ConfigurationError(
            "`on_progress` must be a plain function: threads call it, and nothing awaits it",
            hint="hand over with `loop.call_soon_threadsafe(...)`, or use `astream_events`",
        )


def check_hosts(hosts: object) -> None:
    """Refuse what no host is called: it would allow nothing, without a word."""
    for host in hosts if isinstance(hosts, list) else ():
        if not _HOST.fullmatch(host):
            raise ConfigurationError(
                f"`fetch_media` holds `{host.rpartition('@')[2]}`, which is not a host",
                hint="name the host alone, such as `images.lan`: without scheme, port and path",
            )


def list_of_texts(texts: object) -> list[str]:
    """Return texts as a list, whatever held them.

    Raises:
        ConfigurationError: They are none. Each letter of a single text would be taken for a text,
            and each name in a dictionary.
    """
    if isinstance(texts, str | bytes):
        raise ConfigurationError(
            "a list of strings is expected, not one string", hint="put it in a list: `[text]`"
        )
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise ConfigurationError(
            f"a list of strings is expected, not a value of type `{type(texts).__name__}`"
        )
    found = list(texts)
    for text in found:
        check_is_text("each item of the list", text)
    return found


def check_is_text(what: str, value: object) -> None:
    """Refuse what is not a text."""
    if not isinstance(value, str):
        raise ConfigurationError(
            f"{what} must be a string, not a value of type `{type(value).__name__}`",
            hint="for a document, pass its `page_content`"
            if hasattr(value, "page_content")
            else None,
        )


def check_server(arguments: Iterable[str], variables: Mapping[str, SecretStr]) -> None:
    """Refuse what no process can be given, and what would contradict what this package sets."""
    check_arguments(arguments)
    for name, value in variables.items():
        if not name or "=" in name or not can_be_passed(name):
            raise ConfigurationError("`server_env` contains a name that no variable can have")
        if not can_be_passed(value.get_secret_value()):
            raise ConfigurationError(
                f"`server_env` contains a value for `{name}` that no variable can have"
            )
        if name in _MODEL_FOLDERS:
            raise ConfigurationError(
                f"`{name}` cannot be set in `server_env`: this program looks up models as well",
                hint=f"set {name} in the environment of this program",
            )


def endpoint_url() -> str | None:
    """Return the address that the environment brings as `base_url`, None for none."""
    url = environment.CAR_VLLM_MLX_BASE_URL.read()
    return url.strip().rstrip("/") if url else None


def endpoint_key() -> SecretStr | None:
    """Return the key of `base_url` that the environment brings, None for none."""
    key = environment.CAR_VLLM_MLX_API_KEY.read()
    return SecretStr(key.strip()) if key else None


def check_endpoint(key: SecretStr | None, headers: Mapping[str, str]) -> SecretStr | None:
    """Return a key without the line break that a file of it ends with.

    Raises:
        ConfigurationError: The key, or a header, cannot be sent.
    """
    check_headers("default_headers", headers)
    if key is None:
        return None
    stripped = key.get_secret_value().strip()
    is_brought = stripped and key == endpoint_key()
    check_key(stripped, environment.CAR_VLLM_MLX_API_KEY.name if is_brought else "`api_key`")
    return SecretStr(stripped)


def warn_of_no_effect(settings: BaseModel) -> None:
    """Say, once in this process, which settings leave each other without effect.

    Where the environment names the endpoint or its key, a program is written for both ways.
    """
    given = dict(settings)
    if given["base_url"] is None:
        if given["api_key"] not in (None, endpoint_key()):
            warn_user_once(
                "`api_key` has no effect without `base_url`, since a server that this package "
                "starts has its own key: set `base_url` to the key's endpoint, or leave the key "
                "out"
            )
        if given["revision"] is not None and given["model"].startswith(("/", "~", ".")):
            warn_user_once(
                "`revision` has no effect: only models on the Hub have revisions, directories "
                "do not"
            )
        return
    fields = type(settings).model_fields
    warn_beside_endpoint(
        given["base_url"],
        [
            name
            for name in _OF_OUR_SERVER
            if given[name] != fields[name].get_default(call_default_factory=True)
        ],
    )


def warn_beside_endpoint(base_url: str | None, names: Sequence[str]) -> None:
    """Say, once in this process, that settings mean nothing to somebody else's server.

    Args:
        base_url: Its address, None where this package starts the server.
        names: The settings.
    """
    if names and base_url not in (None, endpoint_url()):
        verb = "have" if len(names) > 1 else "has"
        warn_user_once(
            f"with `base_url`, {' and '.join(f'`{name}`' for name in names)} {verb} no effect, "
            "since somebody else runs that server: set it up there, or leave `base_url` out"
        )


def checked_url(url: str) -> str:
    """Return an address without its last slash, and without the line break of a file of it.

    Raises:
        ConfigurationError: It has no scheme, names no host, or is none that a request can go to.
    """
    name = "`base_url`"
    if url == environment.CAR_VLLM_MLX_BASE_URL.read():
        name = environment.CAR_VLLM_MLX_BASE_URL.name
    url = url.strip()
    try:
        is_address = _is_address(url)
    except ValueError as error:
        raise ConfigurationError(
            f"{name} cannot be `{_without_secrets(url)}`: {error}",
            hint="in a password, write `/` as %2F, `?` as %3F, `#` as %23" if "@" in url else None,
        ) from None
    if is_address:
        return url.rstrip("/")
    meant = _meant_url(_without_secrets(url))
    wanted = "begin with http:// or https://" if url == url.strip(_QUOTES) else "have no quotes"
    raise ConfigurationError(
        f"{name} must {wanted}, not `{_without_secrets(url)}`",
        hint=f"did you mean `{meant}`?"
        if meant
        else "write an address such as `http://127.0.0.1:8000/v1`",
    )


def _is_address(url: str) -> bool:
    """Return whether a text has the form of an address.

    Raises:
        ValueError: It has, and no request could go there.
    """
    parts = _split(url)
    has_scheme = parts.scheme in ("http", "https") and not re.match(_TWO_SCHEMES, url)
    if not has_scheme or not parts.netloc or url != url.strip(_QUOTES):
        return False
    _check_host(url, parts)
    return True


def _without_secrets(url: str) -> str:
    scheme, mark, _ = url.rpartition("@")[0].partition("://")
    shown = f"{scheme if mark else ''}{mark}{url.rpartition('@')[2]}" if "@" in url else url
    return re.sub(r"[?#].*", "?***", shown, flags=re.DOTALL)


def _meant_url(shown: str) -> str | None:
    """Return the address that may be meant by what is none, None for one that is none either."""
    shown = shown.strip(_QUOTES)
    bare = re.sub(_BEGINNING, "", shown, flags=re.IGNORECASE).strip("/")
    scheme = "https" if re.match("https:?/", shown, re.IGNORECASE) else "http"
    if set(bare) & set(_QUOTES):
        return None
    meant = f"{scheme}://{bare}" if "/" in bare else f"{scheme}://{bare}/v1"
    with suppress(ValueError):
        if _is_address(meant) and not re.match(r"v\d+(/|$)", bare, re.IGNORECASE):
            return meant
    return None


def _split(url: str) -> SplitResult:
    """Return the parts of an address; Python's own errors quote what may be a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("its host or its port cannot be read") from None
    return parts


def _check_host(url: str, parts: SplitResult) -> None:
    """Raise a ValueError where no name or port can be read."""
    if not parts.hostname or parts.port == 0:
        raise ValueError("it names no host and port")
    if parts.query or parts.fragment:
        raise ValueError("the root of an API ends before `?` and `#`")
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("it holds white space or control characters")
    if not parts.hostname.startswith("[") and ":" not in parts.hostname:
        try:
            parts.hostname.encode("idna")
        except UnicodeError as error:
            raise ValueError(f"its host is not a name ({error})") from error
    if not _PLAIN_URL.fullmatch(url):
        import_whole("httpx2")
        import httpx2  # noqa: PLC0415 - the client's own reading, which takes long to import

        try:
            httpx2.URL(url)
        except httpx2.InvalidURL:
            raise ValueError("the client cannot read its host or its path") from None


def check_texts(given: Mapping[str, object]) -> None:
    """Refuse texts that cannot be written, as the name of a file in another encoding is."""
    for name, value in given.items():
        try:
            if isinstance(value, str):
                value.encode()
        except UnicodeEncodeError:
            raise encoding_error(f"`{name}`") from None


def encoding_error(what: str) -> ConfigurationError:
    """Return the error for a setting that cannot be written, without what it holds."""
    return ConfigurationError(
        f"{what} contains characters that cannot be written in UTF-8",
        hint="rename the file or folder, or correct the text",
    )


def configuration_error(error: ValidationError) -> ConfigurationError:
    """Return what pydantic found as this package's error; no secret is shown."""
    first = error.errors(include_url=False)[0]
    cause = (first.get("ctx") or {}).get("error")
    if isinstance(cause, ConfigurationError):
        return cause
    # Of a union, pydantic names the member too, such as `is-instance[BaseCache]`.
    parts = [part for part in map(str, first["loc"]) if part not in _MEMBERS and part[-1:] != "]"]
    name = ".".join(parts) or "the configuration"
    if first["type"] == "missing":
        return ConfigurationError(f"`{name}` is missing")
    given = first["input"]
    is_shown = bool(parts) and parts[0] not in _SECRETS and isinstance(given, _SCALARS)
    instead = f", not `{format_value(given)}`" if is_shown else ""
    if parts and (taken := _TAKEN.get(parts[0])):
        return ConfigurationError(f"`{parts[0]}` must be {taken}{instead}")
    wanted = _WANTED.get(first["type"].partition("_")[0])
    if first["type"] == "literal_error":
        wanted = str(first["ctx"]["expected"]).replace("'", "`")
    if parts and wanted:
        return ConfigurationError(f"`{name}` must be {wanted}{instead}")
    # The input of an error of the whole is the whole, secrets and all.
    if not is_shown:
        return ConfigurationError(f"`{name}` cannot be used: {first['msg']}")
    return ConfigurationError(f"`{name}` cannot be `{format_value(given)}`: {first['msg']}")
