"""What a lost supervisor left: its server is ended, its state says so."""

from langchain_car_vllm.errors import ServerError
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import acquire_exclusive, opened_lock
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.process import is_this_boot, kill_group
from langchain_car_vllm.server.state import (
    Reason,
    State,
    is_used_elsewhere,
    mark_stopped,
    read_any_state,
)

_LOCK_PATIENCE = 1.0


def end_lost_server(state: State, policy: Policy) -> bool:
    """Kill the server of a supervisor that was lost, if it is the one that was recorded.

    Returns:
        Whether nobody of its group is left.
    """
    if state.server is not None and is_this_boot(state.boot_id) and state.server.find():
        return kill_group(state.server.pid, policy.kill_grace)
    return True


def clean_up(directory: ServerDirectory, policy: Policy, reason: Reason) -> bool:
    """End what a lost supervisor left, and say in its place that the server is stopped.

    Returns:
        Whether there was anything to do.

    Raises:
        ServerError: The system cannot end the server.
    """
    with opened_lock(directory.supervisor_lock) as lock:
        if not acquire_exclusive(lock, _LOCK_PATIENCE):
            return False
        state = read_any_state(directory.state)
        if state is None or state.phase == "stopped" or is_used_elsewhere(state, directory.path):
            return False
        if not end_lost_server(state, policy):
            raise ServerError(
                f"the server of `{state.served_name}` does not end, not even by SIGKILL",
                hint="the system is stuck in a call for it; if that lasts, restart the machine",
            )
        mark_stopped(directory.state, reason)
        return True
