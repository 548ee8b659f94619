"""How much memory a server needs, how much there is, and whose turn it is to go."""

from collections.abc import Sequence

import psutil

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.paths import variable
from langchain_car_vllm.server.directory import ServerDirectory, server_directories
from langchain_car_vllm.server.locks import is_held, opened_lock
from langchain_car_vllm.server.spec import argument_value
from langchain_car_vllm.server.state import State, read_state

_SHARE = 0.75
_CONTEXT_TOKENS = 8192
_CACHE_SHARE = 0.1
_CACHE_MB = (256, 8192)
_MB = 1_000_000


def budget_bytes() -> int:
    """Return the memory that all servers may take together.

    `CAR_VLLM_MLX_MEMORY_GB` in GB of 10^9 bytes, by default three quarters of the machine's.

    Raises:
        ConfigurationError: The variable is no positive number.
    """
    value = variable("CAR_VLLM_MLX_MEMORY_GB")
    if value is None:
        return int(psutil.virtual_memory().total * _SHARE)
    try:
        gigabytes = float(value)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < float("inf"):
        raise ConfigurationError(f"CAR_VLLM_MLX_MEMORY_GB must be a number of GB, not `{value}`")
    return int(gigabytes * 1e9)


def cache_limit_mb(budget: int) -> int:
    """Return what the batched engine may keep of earlier prompts, in MB."""
    least, most = _CACHE_MB
    return min(max(int(budget * _CACHE_SHARE / _MB), least), most)


def needed_bytes(
    weights: int,
    kv_per_token: int | None,
    context_window: int | None,
    cache_mb: int,
    server_args: Sequence[str] = (),
) -> int:
    """Return what a server is to set aside.

    Args:
        weights: Bytes of the weights on the disk.
        kv_per_token: Bytes of cache that a token of context takes, None where unknown.
        context_window: Tokens, None where unknown.
        cache_mb: Limit of the prompt cache, 0 for an engine without one.
        server_args: The user's; `--max-kv-size` and `--cache-memory-mb` count.
    """
    tokens = min(context_window or _CONTEXT_TOKENS, _CONTEXT_TOKENS)
    tokens = _number(server_args, "--max-kv-size", tokens)
    cache = _number(server_args, "--cache-memory-mb", cache_mb)
    return weights + (kv_per_token or 0) * tokens + cache * _MB


def _number(arguments: Sequence[str], flag: str, default: int) -> int:
    value = argument_value(arguments, flag)
    return int(value) if value and value.isdigit() else default


def reserving(apart_from: str) -> list[tuple[ServerDirectory, State]]:
    """Return the live servers that have memory set aside, but for one key."""
    found = []
    for directory in server_directories():
        state = read_state(directory.state)
        if state is not None and state.reservation and directory.key != apart_from:
            with opened_lock(directory.supervisor_lock) as descriptor:
                if is_held(descriptor):
                    found.append((directory, state))
    return found
