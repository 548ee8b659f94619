"""Models by name: `init_chat_model("vllm_mlx:mlx-community/Qwen3-4B-4bit")` and all that uses it.

LangChain's table of providers is private and has no way in, so its form is checked before it is
written to and the result is tried afterwards.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.reasoning import PROVIDER

_TABLE = "_BUILTIN_PROVIDERS"
_PATTERN = "openai"
_ANY_MODEL = "some/model"


def register() -> None:
    """Make `vllm_mlx:MODEL` a name that LangChain knows, for chat models and embeddings.

    It then works in `init_chat_model`, `init_embeddings`, `create_agent`, middleware, deepagents
    and `langgraph.json`, with every model id of this package. May be called again and again.

    Raises:
        ConfigurationError: `langchain` is not installed, or keeps its providers in another way.
    """
    _add("langchain.chat_models.base", "init_chat_model", "ChatVllmMlx")
    _add("langchain.embeddings.base", "init_embeddings", "VllmMlxEmbeddings")


def _add(module_name: str, function: str, class_name: str) -> None:
    try:
        module: Any = import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            "`langchain` is not installed, so there is nothing to register with",
            hint="run `pip install langchain`, or construct the model itself",
        ) from error
    table: Any = getattr(module, _TABLE, None)
    if not _is_known_form(table):
        raise _unknown_form(class_name)
    known = table.get(PROVIDER)
    table[PROVIDER] = ("langchain_car_vllm", class_name, table[_PATTERN][2])
    try:
        _check(getattr(module, function), class_name)
    except BaseException:
        table.pop(PROVIDER) if known is None else table.update({PROVIDER: known})
        raise


def _is_known_form(table: Any) -> bool:
    """Return whether a table maps a provider to a module, a class and what makes one of it."""
    entry = table.get(_PATTERN) if isinstance(table, dict) else None
    if not isinstance(entry, tuple) or [type(part) for part in entry[:2]] != [str, str]:
        return False
    return [callable(part) for part in entry[2:]] == [True]


def _check(create: Callable[..., Any], class_name: str) -> None:
    try:
        made = create(f"{PROVIDER}:{_ANY_MODEL}")
    except ConfigurationError:
        raise
    except Exception as error:
        raise _unknown_form(class_name) from error
    if type(made).__name__ != class_name or made.model != _ANY_MODEL:
        raise _unknown_form(class_name)


def _unknown_form(class_name: str) -> ConfigurationError:
    try:
        installed = version("langchain")
    except PackageNotFoundError:
        installed = "of unknown version"
    return ConfigurationError(
        f"langchain {installed} registers its providers in a way that this package does not know",
        hint=f"construct `{class_name}(model=...)` itself, or update langchain-car-vllm",
    )
