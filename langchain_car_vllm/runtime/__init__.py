"""The installed software: host check, locating and provisioning `vllm-mlx`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_car_vllm.runtime.console_scripts import installed_version, interpreter_of
    from langchain_car_vllm.runtime.locate import (
        VllmRuntime,
        resolve_existing,
        search_dirs,
    )
    from langchain_car_vllm.runtime.runtime import (
        ensure_runtime,
        install_runtime,
        upgrade_runtime,
    )

__all__ = [
    "VllmRuntime",
    "ensure_runtime",
    "install_runtime",
    "installed_version",
    "interpreter_of",
    "resolve_existing",
    "search_dirs",
    "upgrade_runtime",
]

_HOMES = {
    "VllmRuntime": "locate",
    "ensure_runtime": "runtime",
    "install_runtime": "runtime",
    "installed_version": "console_scripts",
    "interpreter_of": "console_scripts",
    "resolve_existing": "locate",
    "search_dirs": "locate",
    "upgrade_runtime": "runtime",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: a model is constructed without what installs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found
