"""Whether a model's files ask for code of the model's own to be run.

The server loads `model_file` whatever it was told (mlx-lm 0.31.3), and what `auto_map` names
wherever a processor is loaded (mlx-vlm 0.6.12 trusts it by default). So such a model is refused
before it is fetched, unless the user trusts it by name. What cannot be read to its end is refused,
too: the server may read what this package does not.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from langchain_car_vllm.errors import UnservableModelError
from langchain_car_vllm.models.config import is_multimodal
from langchain_car_vllm.models.families import has_own_code
from langchain_car_vllm.support.printable import on_one_line

TRUST = "--trust-remote-code"
CODE = "*.py"
# Large and never read for code.
_DATA = ("tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json")
# Names no code, and the server does without it where it is broken.
_HARMLESS = "generation_config.json"
_CONFIG = "config.json"
_MOST_NODES = 100_000


def is_trusted(arguments: Iterable[str]) -> bool:
    """Return whether the user's own `server_args` trust the code of the model."""
    return TRUST in arguments


def find_code(names: Iterable[str], read: Callable[[str], Mapping[str, Any] | None]) -> str | None:
    """Return which of a model's files asks for which code, None where none does.

    Raises:
        UnservableModelError: A file that may ask for code cannot be read.
    """
    for name in sorted(_settings(names), key=lambda name: (_lower(name) != _CONFIG, name)):
        values = read(name)
        if values is None:
            if may_ask_for_code(name):
                raise _unreadable(name)
            continue
        is_config = _lower(name) == _CONFIG
        if is_config and values.get("model_file") is not None:
            return _describe(name, "model_file", values["model_file"])
        mapped = _find_mapped(name, values)
        if mapped is not None and not (is_config and _is_never_asked(values)):
            return _describe(name, "auto_map", mapped)
    return None


def may_ask_for_code(name: str) -> bool:
    """Return whether a file is one in which the server looks for the names of code."""
    lower = _lower(name)
    is_seen = "/" not in name and not name.startswith(".")
    return is_seen and lower.endswith(_CONFIG) and lower != _HARMLESS


def _lower(name: str) -> str:
    """Return a name as disks that ignore case compare it, macOS's among them."""
    return name.casefold()


def _settings(names: Iterable[str]) -> set[str]:
    return {
        name
        for name in names
        if _lower(name).endswith(".json") and "/" not in name and name not in _DATA
    }


def _is_never_asked(values: Mapping[str, Any]) -> bool:
    """Return whether the server has code of its own for this model and asks for no other.

    Repositories of some families carry code for other programs. On the server's route for text it
    is not looked at, which `--trust-remote-code` would change; media are loaded with trust.
    """
    return has_own_code(values.get("model_type")) and not is_multimodal(values)


def _find_mapped(name: str, values: Mapping[str, Any]) -> object:
    """Return what the first `auto_map` in an object or in what it holds names, None without one.

    Raises:
        UnservableModelError: A file that may ask for code holds too much to be looked through.
    """
    waiting: list[Any] = [values]
    for _ in range(_MOST_NODES):
        if not waiting:
            return None
        found = waiting.pop()
        if isinstance(found, Mapping):
            mapped = found.get("auto_map")
            if mapped:
                return mapped
            found = found.values()
        waiting.extend(inner for inner in found if isinstance(inner, Mapping | list))
    if may_ask_for_code(name):
        raise _unreadable(name)
    return None


def _unreadable(name: str) -> UnservableModelError:
    return UnservableModelError(
        f"`{on_one_line(name)}` cannot be read completely, so it may ask for code",
        hint="download the model again, or choose another conversion",
    )


def _describe(name: str, key: str, value: object) -> str:
    named = next(iter(value.values()), "") if isinstance(value, Mapping) else value
    shown = "".join(c if c.isprintable() and c.isascii() else "?" for c in str(named)[:80])
    return f"`{key}` of `{name}` names `{shown}`"
