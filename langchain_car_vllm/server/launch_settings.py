"""What the launcher is told beside the server's arguments."""

from collections.abc import Mapping

from langchain_car_vllm.environment import (
    CAR_VLLM_LAUNCH_ADAPTER,
    CAR_VLLM_LAUNCH_MEMORY,
    CAR_VLLM_LAUNCH_TEXT_ONLY,
    CAR_VLLM_LAUNCH_WIRED_BY_OTHERS,
    CAR_VLLM_MLX_WIRED,
)
from langchain_car_vllm.models.adapter import find_adapter
from langchain_car_vllm.server.command import Launch
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.wiring import wiring_mode

_BUFFERS = "MLX_BUFFER_CACHE_LIMIT"
_OWN_LIMITS = ("--gpu-memory-utilization", _BUFFERS)
# Freed buffers that a server may keep in any case.
_LEAST_BUFFERS = 256 * 2**20


def launch_settings(
    spec: ServerSpec, launch: Launch, inherited: Mapping[str, str], wired_by_others: int = 0
) -> dict[str, str]:
    """Return the variables that `launch.py`, its mends and the server read for its memory.

    Args:
        spec: What the user wants; a user who sets limits of his own is left alone.
        launch: How the model is served.
        inherited: The environment of this process.
        wired_by_others: Bytes that other servers wire.

    Raises:
        ConfigurationError: `CAR_VLLM_MLX_WIRED` is none of `auto`, `0` and `1`.
    """
    settings = {CAR_VLLM_MLX_WIRED.name: wiring_mode(spec, inherited)}
    if wired_by_others:
        settings[CAR_VLLM_LAUNCH_WIRED_BY_OTHERS.name] = str(wired_by_others)
    # Where the cost of a conversation is unknown, nobody knows what the server needs.
    if launch.memory.room is not None and not has_own_limits(spec, inherited):
        needed = launch.granted.needed
        settings[CAR_VLLM_LAUNCH_MEMORY.name] = str(needed)
        settings[_BUFFERS] = str(max(needed - launch.memory.weights, _LEAST_BUFFERS))
    if spec.adapter is not None and (adapter := find_adapter(spec.adapter)) is not None:
        settings[CAR_VLLM_LAUNCH_ADAPTER.name] = str(adapter)
    if launch.serving.multimodal is False:
        settings[CAR_VLLM_LAUNCH_TEXT_ONLY.name] = "1"
    return settings


def has_own_limits(spec: ServerSpec, inherited: Mapping[str, str]) -> bool:
    """Tell whether the user limits the server's memory himself."""
    own = {name.partition("=")[0] for name in spec.server_args}
    own |= {name for name, _ in spec.server_env} | inherited.keys()
    return any(name in own for name in _OWN_LIMITS)
