"""The checks of `doctor` that try what the package needs of a machine."""

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import psutil

from langchain_car_vllm.cli import install_checks
from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.cli.models import odd_models, refusal_of
from langchain_car_vllm.cli.output import model_id, size
from langchain_car_vllm.cli.servers import closed_servers
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.identity import real_path
from langchain_car_vllm.models.lm_studio import lm_studio_folders, lost_folders
from langchain_car_vllm.models.snapshot import hub_cache
from langchain_car_vllm.paths import RECONNECT, car_home, existing_part, lost_disk, run_root
from langchain_car_vllm.runtime.locate import binary_to_launch
from langchain_car_vllm.runtime.metal import known_working_set
from langchain_car_vllm.runtime.requirements import needed_mb
from langchain_car_vllm.server import lost_servers, running_servers, stop_server
from langchain_car_vllm.server.directory import explain_os_errors, make_checked
from langchain_car_vllm.server.locks import is_held, opened_lock
from langchain_car_vllm.server.machine_memory import machine_memory
from langchain_car_vllm.server.memory import budget_bytes
from langchain_car_vllm.server.plan import learn_budget
from langchain_car_vllm.server.port import HeldPort, is_free
from langchain_car_vllm.server.process import Identity, boot_id, host_name, machine_id
from langchain_car_vllm.server.state import is_of_this_machine
from langchain_car_vllm.support.file_presence import entries_of, is_present

_MB = 1_000_000
_MOST_NAMED = 3
_EPHEMERAL_TRIES = 2000
_PATIENCE = 20.0
_CONNECT_PATIENCE = 5.0

_HOLDS_LOCK = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
_LISTENS = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


def _home() -> str:
    home = car_home()
    with _scratch_folder() as folder:
        if home.stat().st_uid != os.geteuid():
            raise Finding(f"`{home}` belongs to another user", "set CAR_HOME to one of your own")
        _check_spellings(folder)
        with explain_os_errors(home):  # of a quota no free space tells
            (folder / "written").write_bytes(os.urandom(_MB))
        free = shutil.disk_usage(folder).free
    if free < needed_mb() * _MB and binary_to_launch() is None:
        raise Warned(f"`{home}` has {size(free)} free, the runtime needs {needed_mb()} MB")
    return f"`{home}` is writable, with {size(free)} free"


def _check_spellings(folder: Path) -> None:
    """Prove that one folder is one, where the disk takes several spellings for it."""
    kept = folder / "\u00e9t\u00e9"
    try:
        kept.mkdir()
    except (OSError, UnicodeEncodeError):  # neither the disk nor this program has such names
        return
    for other in (folder / "\u00c9T\u00c9", folder / "e\u0301te\u0301"):
        if is_present(other) and real_path(str(other)) != real_path(str(kept)):
            raise Finding(
                f"the disk of `{folder.parent}` accepts several spellings of a folder's name and "
                "does not say which one it keeps: a model may be loaded twice",
                "always spell a model's name the same way",
            )


def _locks() -> str:
    """Prove that `flock` excludes, shares and ends with its holder, on the disk of CAR_HOME."""
    with _scratch_folder() as folder:
        lock = folder / "lock"
        with opened_lock(lock) as first:
            _check_lock(first, lock)
    return "locks can be exclusive or shared, and end with the process that holds them"


def _check_lock(first: int, lock: Path) -> None:
    where = "set CAR_HOME to a directory on a local disk"
    with _child(_HOLDS_LOCK, str(lock)) as (child, said):
        if said != "held" or not is_held(first):
            raise Finding("a lock that another process holds is not seen", where)
        child.kill()
        child.wait()
    fcntl.flock(first, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with opened_lock(lock) as second:
        fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise Finding("a shared lock does not keep out an exclusive one", where)


def _port() -> str:
    """Prove that a port can be held for a server, and that everybody else is kept off it."""
    with closing(HeldPort()) as held:
        if not is_free(held.number):
            raise Finding(f"the server cannot bind the reserved port {held.number}")
        for address in ("127.0.0.1", "0.0.0.0"):  # noqa: S104
            if _can_bind(address, held.number):
                raise Finding(f"another program can bind the reserved port on {address}")
        if held.number in _ephemeral_ports():
            raise Finding("the system gives the reserved port to programs that ask for any port")
        with closing(socket.create_server(("127.0.0.1", held.number))):
            if is_free(held.number) or not _can_connect(held.number):
                raise Finding("a server on the reserved port cannot be reached")
        if not is_free(held.number) or _can_bind("127.0.0.1", held.number):
            raise Finding("the port is lost when the server on it ends")
    return (
        "a port can be reserved for the server, kept from others, and kept after the server has "
        "ended"
    )


def _can_connect(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), _CONNECT_PATIENCE).close()
        return True
    return False


def _can_bind(address: str, port: int) -> bool:
    with closing(socket.socket()) as stranger:
        try:
            stranger.bind((address, port))
        except OSError:
            return False
    return True


def _ephemeral_ports() -> set[int]:
    found = set()
    for _ in range(_EPHEMERAL_TRIES):
        with closing(socket.socket()) as asking:
            asking.bind(("127.0.0.1", 0))
            found.add(asking.getsockname()[1])
    return found


def _listeners() -> str:
    """Prove that the ports of a child of ours can be seen."""
    with _child(_LISTENS) as (child, said):
        seen = {
            c.laddr.port
            for c in psutil.Process(child.pid).net_connections("tcp4")
            if c.status == psutil.CONN_LISTEN
        }
        if not said.isdigit() or int(said) not in seen:
            raise Finding(
                f"process {child.pid} listens on port `{said}`, but the system shows {sorted(seen)}"
            )
    return "the ports that a child process listens on are visible"


def _identity() -> str:
    """Prove that a process is told from others, alive and dead, and so are boots."""
    tag = secrets.token_hex(8)
    with _child(_LISTENS, tag) as (child, _):
        who = Identity(child.pid, tag)
        if who.find() is None:
            raise Finding(f"process {child.pid} is not recognised while it runs")
        child.kill()
        child.wait()
        if who.find() is not None:
            raise Finding(f"process {child.pid} is still seen after it has ended")
    if not boot_id() or not machine_id():
        raise Warned(
            "processes are recognised, but the ids of this machine and this boot cannot be read",
            "a sandbox forbids it; the machine's name is used instead",
        )
    return f"processes are recognised; boot {boot_id()} of `{host_name()}`"


def _memory() -> str:
    learn_budget()
    budget = budget_bytes()
    set_aside = sum(state.reservation for _, state in running_servers())
    try:
        whole, available = machine_memory(), psutil.virtual_memory().available
    except ConfigurationError:
        # A budget of the user's is enough.
        told = f"models may take {size(budget)}; {size(set_aside)} are set aside"
    else:
        told = (
            f"models may take {size(budget)} of {size(whole)}; {size(set_aside)} are set aside, "
            f"{size(available)} are available"
        )
    figure = known_working_set()
    return f"{told}; Metal recommends at most {size(figure)}" if figure else told


def _holds_models(cache: Path) -> bool:
    try:
        return bool(entries_of(cache, "models--*"))
    except OSError:  # what cannot be read cannot be served either
        return False


def _models() -> str:
    cache = hub_cache()
    if cache is None:
        raise Finding("there is no folder for models: HOME is not set", "set HOME, or HF_HOME")
    if broken := lost_disk(cache):
        raise Finding(broken, f"{RECONNECT}, or set HF_HOME")
    if refusal := refusal_of(cache):
        raise Finding(refusal.message, f"{refusal.hint}; or set HF_HOME")
    folder = existing_part(cache)
    try:
        Path(mkdtemp(dir=folder, prefix=".doctor-")).rmdir()
    except OSError as error:
        unwritable, hint = f"`{folder}` cannot be written to", "set HF_HOME to a folder of your own"
        if _holds_models(cache):
            said = f"{unwritable}: models that are there can be served, but none can be downloaded"
            raise Warned(said, hint) from error
        raise Finding(f"{unwritable}: {error.strerror}", hint) from error
    if odd := odd_models():
        names = "; ".join(f"`{entry.model}`: {entry.problem}" for entry in odd[:_MOST_NAMED])
        more = len(odd) - _MOST_NAMED
        raise Warned(
            f"cannot be served: {names}{f'; and {more} more' if more > 0 else ''}",
            "the others are fine; `car-vllm rm` removes one, `car-vllm pull` fetches it again",
        )
    _check_lm_studio()
    return f"`{cache}`, {size(shutil.disk_usage(folder).free)} free"


def _check_lm_studio() -> None:
    for refusal in filter(None, map(refusal_of, lm_studio_folders())):
        raise Warned(refusal.message, refusal.hint)
    if lost := lost_folders():
        raise Warned("; ".join(lost), f"{RECONNECT}: what is on it would be downloaded again")


def _servers() -> str:
    """Tell what runs, and mend what a supervisor that was killed left behind."""
    if closed := closed_servers():
        raise closed
    for directory, state in lost_servers():
        name = f"`{model_id(state.served_name)}`"
        if not stop_server(directory):
            raise Warned(
                f"machine `{state.host}` may be using `{directory.path}` for {name}",
                "set CAR_HOME to a directory that only this machine uses",
            )
        whose = "was killed" if is_of_this_machine(state) else f"ran on `{state.host}`"
        raise Warned(f"the supervisor of {name} {whose}; what it left behind is cleaned up now")
    return f"{len(running_servers())} running in `{run_root()}`"


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Yield a new folder in CAR_HOME; a CAR_HOME that had to be made for it goes too."""
    home = car_home()
    is_new = not is_present(home)
    make_checked(home, *([run_root()] if is_present(run_root()) else []))
    with explain_os_errors(home):
        folder = TemporaryDirectory(dir=home, prefix=".doctor-")
    with folder:
        yield Path(folder.name)
    if is_new:
        with suppress(OSError):
            home.rmdir()


@contextmanager
def _child(code: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run Python in a process of its own; yields it and its first line."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child, child.stdout.readline().strip() if child.stdout else ""
    finally:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=_PATIENCE)


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    *install_checks.CHECKS,
    ("home", _home),
    ("locks", _locks),
    ("port", _port),
    ("listeners", _listeners),
    ("processes", _identity),
    ("memory", _memory),
    ("models", _models),
    ("servers", _servers),
)
