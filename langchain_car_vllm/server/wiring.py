"""How much of a model is wired, and beside whom. Pure.

Wiring in company, and with caches that come and go, is the published trigger of panics of macOS, so
only what is too slow without it is wired, and a server that wires answers one request at a time.
The mend `memory-limits` decides by the same rule with what Metal says at that moment.
"""

from collections.abc import Mapping

from langchain_car_vllm.environment import CAR_VLLM_MLX_WIRED
from langchain_car_vllm.server.spec import ServerSpec

_SHARE = 0.8


def wiring_mode(spec: ServerSpec, inherited: Mapping[str, str]) -> str:
    """Return `auto`, `0` or `1`: the server's own environment wins over this process's.

    Raises:
        ConfigurationError: `CAR_VLLM_MLX_WIRED` is none of them.
    """
    name = CAR_VLLM_MLX_WIRED.name
    return CAR_VLLM_MLX_WIRED.value_of(
        dict(spec.server_env).get(name) or inherited.get(name) or None
    )


def wired_bytes(weights: int, mode: str, working_set: int | None, by_others: int = 0) -> int:
    """Return how many bytes a server wires: its weights or nothing.

    Args:
        weights: Of its model.
        mode: See `wiring_mode`; `auto` wires weights above 0.8 of the working set.
        working_set: Bytes that Metal recommends, None where there is no Metal.
        by_others: Bytes that other servers wire; beside them at most 0.8 in all are wired.
    """
    if not working_set or mode == "0":
        return 0
    if mode == "auto" and weights <= _SHARE * working_set:
        return 0
    most = int(_SHARE * working_set) - by_others if by_others else working_set
    return weights if weights <= most else 0
