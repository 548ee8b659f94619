"""What became of a server whose connection broke."""

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import CarVllmError, ServerCrashedError, ServerStoppedError
from langchain_car_vllm.server.state import Reason, State, decode_error

_CRASHES: tuple[Reason, ...] = ("crash", "lost")


def verdict(state: State | None, endpoint: Endpoint, *, supervised: bool) -> CarVllmError | None:
    """Return the error that a state tells, None while it tells none."""
    reason = _reason_of_end(state, endpoint)
    if reason == "unknown":
        return crash_error(endpoint, "died")
    if state is None or reason not in (None, *_CRASHES):
        return ServerStoppedError(
            f"the server of `{endpoint.served_model}` was stopped before it answered",
            hint="call again: it starts automatically",
            reason=reason or "user",
            log_path=endpoint.log_path,
        )
    if reason == "crash" and state.error is not None:
        return decode_error(state.error)
    return None if supervised else crash_error(endpoint, "was killed with its supervisor")


def _reason_of_end(state: State | None, endpoint: Endpoint) -> str | None:
    """Return why the endpoint's generation ended, `unknown` where no state tells, None if alive."""
    if state is None:
        return "unknown"
    if state.generation == endpoint.generation:
        return "user" if state.phase == "stopping" else state.reason
    told = state.generation == endpoint.generation + 1 and state.previous not in (None, *_CRASHES)
    return state.previous if told else "unknown"


def crash_error(endpoint: Endpoint, how: str) -> ServerCrashedError:
    """Return the error for a death that no supervisor diagnosed."""
    return ServerCrashedError(
        f"the server of `{endpoint.served_model}` {how}", log_path=endpoint.log_path
    )
