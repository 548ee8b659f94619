"""What the launcher is told beside the server's arguments. Pure."""

from collections.abc import Mapping

from langchain_car_vllm.environment import (
    CAR_VLLM_LAUNCH_MEMORY,
    CAR_VLLM_LAUNCH_TEXT_ONLY,
    CAR_VLLM_MLX_WIRED,
)
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.server.command import Launch
from langchain_car_vllm.server.spec import ServerSpec

_WIRED = CAR_VLLM_MLX_WIRED.name
_OWN_LIMITS = ("--gpu-memory-utilization", "MLX_BUFFER_CACHE_LIMIT")


def launch_settings(
    spec: ServerSpec, launch: Launch, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that `launch.py` and its mends read.

    Args:
        spec: What the user wants; a user who sets limits of his own is left alone.
        launch: How the model is served.
        inherited: The environment of this process.

    Raises:
        ConfigurationError: `CAR_VLLM_MLX_WIRED` is none of `auto`, `0` and `1`.
    """
    added = dict(spec.server_env)
    wired = added.get(_WIRED) or inherited.get(_WIRED) or "auto"
    if wired not in ("auto", "0", "1"):
        raise ConfigurationError(f"{_WIRED} must be `auto`, `0` or `1`, not `{wired}`")
    settings = {_WIRED: wired}
    named = (*spec.server_args, *added, *inherited)
    # Where the cost of a conversation is unknown, nobody knows what the server needs.
    if launch.memory.room is not None and not any(own in named for own in _OWN_LIMITS):
        settings[CAR_VLLM_LAUNCH_MEMORY.name] = str(launch.memory.needed)
    if launch.serving.multimodal is False:
        settings[CAR_VLLM_LAUNCH_TEXT_ONLY.name] = "1"
    return settings
