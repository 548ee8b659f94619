"""How long supervisors and their clients wait for what, so that tests can run them fast."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from langchain_car_vllm.environment import CAR_VLLM_MLX_DOWNLOAD_STALL, CAR_VLLM_MLX_LOAD_STALL


@dataclass(frozen=True, slots=True)
class Policy:
    """How long the supervisor and its clients wait for what. All in seconds.

    Attributes:
        idle_tick: Between two looks at a ready server.
        awake_linger: How long a Mac is kept awake after the last request.
        start_tick: Between two looks at a server that is starting.
        download_tick: Between two looks at a download.
        client_tick: Between two looks of a waiting client.
        handshake: For a supervisor to take its lock and write its first state.
        probe_timeout: For one answer of a server that is starting.
        download_stall: Without a byte, a log line or CPU time while downloading; 0 waits forever.
        load_stall: The same while loading.
        stop_grace: For a server that has nothing left to save to end after SIGINT.
        save_stall: Without CPU time or a log line while the server saves its prefix cache.
        save_limit: Most for a stop, however busily the server saves.
        kill_grace: For the kernel to end a killed group.
        stop_patience: For a supervisor to begin the stop it was asked for.
        settle: For the state to tell what became of a server whose connection broke.
        backoff: Before the first, second, ... restart after a crash.
        crash_budget: Restarts allowed within `crash_window`.
        crash_window: See `crash_budget`.
        stable_after: Ready this long, with an answer given, a server's crashes are forgotten.
        own_memory: For memory that the waiting process itself may be holding.
        drain_patience: For others to make room before a start asks more of them.
        abandoned_patience: For somebody to want a start that nobody waits for any more.
        suspended_patience: For a suspended client to go on before its lease counts no more.
        key_lifetime: Since a key's last server for its folder to be removed; 0 keeps all.
        memory_tick: Between two looks at a memory budget that is taken.
        log_limit: Bytes that the server's log may grow to before it is cut.
    """

    idle_tick: float = 1.0
    awake_linger: float = 30.0
    start_tick: float = 0.02
    download_tick: float = 0.25
    client_tick: float = 0.02
    handshake: float = 30.0
    probe_timeout: float = 3.0
    download_stall: float = CAR_VLLM_MLX_DOWNLOAD_STALL.default
    load_stall: float = CAR_VLLM_MLX_LOAD_STALL.default
    stop_grace: float = 5.0
    save_stall: float = 10.0
    save_limit: float = 120.0
    kill_grace: float = 10.0
    stop_patience: float = 10.0
    settle: float = 5.0
    backoff: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 30.0)
    crash_budget: int = 5
    crash_window: float = 180.0
    stable_after: float = 60.0
    own_memory: float = 30.0
    drain_patience: float = 60.0
    abandoned_patience: float = 5.0
    suspended_patience: float = 30.0
    key_lifetime: float = 30 * 86_400.0
    memory_tick: float = 0.1
    log_limit: int = 50_000_000

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Policy":
        """Rebuild what `to_dict` gave; timings that only another version knows are left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        if "backoff" in known:
            known["backoff"] = tuple(known["backoff"])
        return cls(**known)


def policy_from_environment() -> Policy:
    """Return the default policy with the stall limits of the environment.

    Raises:
        ConfigurationError: One of them is not a number of seconds.
    """
    return Policy(
        download_stall=CAR_VLLM_MLX_DOWNLOAD_STALL.read(), load_stall=CAR_VLLM_MLX_LOAD_STALL.read()
    )
