"""A supervisor of an older release, as far as others can see it: its locks, state and signals.

    python old_supervisor.py TAG DIRECTORY GOLDEN CHANGES BINARY MODEL

GOLDEN is the folder of the state files that the release wrote, CHANGES a JSON object of fields that
are put into each. On SIGTERM it stops; on SIGUSR1 it makes room if nobody holds the lease.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

tag, directory, golden, changes, binary, model = sys.argv[1:]
directory, golden, changes = Path(directory), Path(golden), json.loads(changes)
key = secrets.token_hex(16)
wake = threading.Event()
asked = []


def lock(name):
    descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def write(phase, **more):
    values = json.loads((golden / f"{phase}.json").read_text()) | changes | more
    values["supervisor"] = {"pid": os.getpid(), "marker": tag}
    if values["server"]:
        values["server"] = {"pid": server.pid, "marker": key}
        values["port"], values["api_key"] = port, key
    scratch = directory / "state.new"
    scratch.write_text(json.dumps(values))
    scratch.replace(directory / "state.json")


def note(number, _):
    asked.append(number)


def is_unused():
    descriptor = os.open(directory / "lease.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True


signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGUSR1, note)
lock("supervisor.lock")
lock(f"life-{tag}.lock")
held = lock("server.lock")
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen(
    [
        sys.executable,
        binary,
        "serve",
        model,
        "--port",
        str(port),
        "--served-model-name",
        model,
        "--api-key",
        key,
    ],
    pass_fds=(held,),
    stderr=subprocess.PIPE,
    start_new_session=True,
)
os.close(held)
while b"running on" not in server.stderr.readline():
    pass
write("ready")
print("ready", flush=True)
reason = None
while reason is None:
    signal.pause() if not asked else None
    number = asked.pop()
    if number == signal.SIGTERM:
        reason = "user"
    elif is_unused():
        reason = "evicted"
write("draining")
server.kill()
server.wait()
write("stopped", reason=reason)
