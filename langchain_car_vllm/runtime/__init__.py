"""The installed software: host check, locating and provisioning `vllm-mlx`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_car_vllm.runtime.locate import (
        VllmRuntime,
        binary_passed_over,
        binary_to_launch,
        console_script,
        installed_version,
        interpreter_of,
        overriding_binary,
        resolve_existing,
        search_dirs,
    )
    from langchain_car_vllm.runtime.runtime import (
        ensure_runtime,
        install_runtime,
        upgrade_runtime,
        warn_about_what_is_passed_over,
    )
    from langchain_car_vllm.runtime.uv_settings import absolute_settings
    from langchain_car_vllm.runtime.versions import version_warning, warn_about

__all__ = [
    "VllmRuntime",
    "absolute_settings",
    "binary_passed_over",
    "binary_to_launch",
    "console_script",
    "ensure_runtime",
    "install_runtime",
    "installed_version",
    "interpreter_of",
    "overriding_binary",
    "resolve_existing",
    "search_dirs",
    "upgrade_runtime",
    "version_warning",
    "warn_about",
    "warn_about_what_is_passed_over",
]

_HOMES = {
    "VllmRuntime": "locate",
    "absolute_settings": "uv_settings",
    "binary_passed_over": "locate",
    "binary_to_launch": "locate",
    "console_script": "locate",
    "ensure_runtime": "runtime",
    "install_runtime": "runtime",
    "installed_version": "locate",
    "interpreter_of": "locate",
    "overriding_binary": "locate",
    "resolve_existing": "locate",
    "search_dirs": "locate",
    "upgrade_runtime": "runtime",
    "version_warning": "versions",
    "warn_about": "versions",
    "warn_about_what_is_passed_over": "runtime",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: a model is constructed without what installs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found
