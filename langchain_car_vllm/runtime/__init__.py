"""The installed software: host check, locating and provisioning `vllm-mlx`."""

from langchain_car_vllm.runtime.locate import (
    VllmRuntime,
    binary_passed_over,
    binary_to_launch,
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
