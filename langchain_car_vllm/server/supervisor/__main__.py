"""The supervisor process: `python -P -m langchain_car_vllm.server.supervisor DIRECTORY MARKER`.

Standard input carries the start order as JSON, so that secrets reach no disk and no process list.
The process forks; the parent ends once the child holds `supervisor.lock` and has written its first
state, with 0, or with 1 and the reason on standard output. Everything is imported before that: the
virtual environment it was started from may vanish later.
"""

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from langchain_car_vllm.environment import adopt, inherited_environment
from langchain_car_vllm.errors import CarVllmError, ServerStartError
from langchain_car_vllm.models.hub_account import absolute_folders, hub_variables
from langchain_car_vllm.runtime.uv_settings import absolute_settings
from langchain_car_vllm.server.directory import ServerDirectory, explain_os_errors
from langchain_car_vllm.server.locks import acquire_exclusive, open_lock
from langchain_car_vllm.server.order import decode_order
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.process import adopt_orphans
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.state import encode_error
from langchain_car_vllm.server.supervisor.context import SupervisorLock
from langchain_car_vllm.server.supervisor.lifecycle import Supervisor
from langchain_car_vllm.server.supervisor.limits import shed_limits

_LOCK_PATIENCE = 1.0
_STANDARD_ERROR = 2


def main() -> None:
    """Fork, and leave the child behind as the supervisor."""
    # Signals that the client's thread had blocked would never be heard.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _close_inherited()
    directory = ServerDirectory(Path(sys.argv[1]))
    try:
        spec, policy = decode_order(sys.stdin.readline())
    except CarVllmError as error:
        sys.stdout.write(json.dumps({"ok": False, "error": encode_error(error)}) + "\n")
        sys.stdout.flush()
        os._exit(1)
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading) as pipe:
            report = pipe.read()
        sys.stdout.write(f"{report}\n" if report else "")
        sys.stdout.flush()
        os._exit(0 if report and json.loads(report)["ok"] else 1)
    os.close(reading)
    adopt(absolute_folders(inherited_environment()) | absolute_settings(inherited_environment()))
    # What the user wrote is meant from where he started; the supervisor and its children leave it.
    added = dict(spec.server_env) | absolute_folders(dict(spec.server_env))
    spec = replace(spec, server_env=tuple(added.items()))
    _detach(directory)
    adopt_orphans()
    left = shed_limits()
    # Where the user's Hub cache and token are holds for finding the model as well.
    adopt(hub_variables(added))
    try:
        life = _begin(directory, spec, policy, writing)
        if left:
            print(f"limits of the calling program still apply: {', '.join(left)}", flush=True)  # noqa: T201
        if life is not None:
            life.run()
    except BaseException:
        traceback.print_exc()
        raise


def _close_inherited() -> None:
    """Keep nothing open that the client passes on, such as a pipe whose end somebody waits for."""
    for name in os.listdir("/dev/fd"):  # noqa: PTH208
        if int(name) > _STANDARD_ERROR:
            with suppress(OSError):  # the listing's own is closed already
                os.close(int(name))


def _begin(
    directory: ServerDirectory, spec: ServerSpec, policy: Policy, report: int
) -> Supervisor | None:
    """Take the lock, write the first state and tell the parent how it went."""
    try:
        with explain_os_errors(directory.path):
            lock = open_lock(directory.supervisor_lock)
            if not acquire_exclusive(lock, _LOCK_PATIENCE):
                _tell(report, {"ok": False, "taken": True})
                return None
            _empty_log()
            life = Supervisor(directory, spec, policy, SupervisorLock(lock, sys.argv[2]))
    except CarVllmError as error:
        _tell(report, {"ok": False, "error": encode_error(error)})
        return None
    except BaseException as error:
        failure = ServerStartError(f"the supervisor failed: {error!r}")
        _tell(report, {"ok": False, "error": encode_error(failure)})
        raise
    _tell(report, {"ok": True})
    return life


def _empty_log() -> None:
    with suppress(OSError):
        os.ftruncate(1, 0)


def _tell(report: int, verdict: dict[str, Any]) -> None:
    with os.fdopen(report, "w") as pipe:
        json.dump(verdict, pipe)


def _detach(directory: ServerDirectory) -> None:
    """Keep nothing of the client's: neither its files, its folder nor its umask."""
    os.umask(0o077)
    os.chdir(directory.path)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        log = os.open(directory.supervisor_log, flags, 0o600)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nowhere)
    os.close(log)


if __name__ == "__main__":
    main()
