"""A gateway in a process of its own, for as long as another process lives, and its key."""

import errno
import hashlib
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple, Self

import psutil
import typer

from langchain_car_vllm.cli.output import say
from langchain_car_vllm.environment import VARIABLES
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.paths import run_root
from langchain_car_vllm.server.directory import explain_os_errors, make_checked
from langchain_car_vllm.server.locks import (
    acquire_exclusive,
    is_file_held,
    opened_lock,
    try_exclusive,
)
from langchain_car_vllm.server.process import Identity
from langchain_car_vllm.support.bounded_http import is_loopback
from langchain_car_vllm.support.file_presence import entries_of, is_present
from langchain_car_vllm.support.replaced_files import replaced_file
from langchain_car_vllm.version import VERSION

_END_SECONDS = 10.0
_KEY_SECONDS = 10.0
# More does not pass as a header.
_MOST_OF_A_KEY = 4096
# Nothing is imported from the folder that somebody happens to be in, such as a cloned repository.
SERVE = (sys.executable, "-P", "-c", "from langchain_car_vllm.cli import main; main()", "serve")


class Published(NamedTuple):
    """What others need to use a served model.

    Attributes:
        base_url: Root of the OpenAI API, with `/v1`.
        api_key_file: Where the key is.
        model: The name to put into requests.
    """

    base_url: str
    api_key_file: str
    model: str

    def read_key(self) -> str:
        """Return the key."""
        return Path(self.api_key_file).read_text(encoding="ascii").strip()


class GatewayProcess:
    """`car-vllm serve` on a free port, detached from the terminal."""

    def __init__(self, process: "subprocess.Popen[str]", published: Published, tag: str) -> None:
        self.published = published
        self.tag = tag
        self._process = process

    @classmethod
    def start(
        cls,
        model: str,
        *,
        until_pid: int,
        keep_alive: str | None = None,
        options: Sequence[str] = (),
    ) -> Self:
        """Start one and wait until it answers; it shows the wait on standard error itself.

        Args:
            model: What to serve.
            until_pid: The process with which it ends.
            keep_alive: How long the model outlives a request, None for as long as the gateway.
            options: What else `serve` is told of the server.

        Raises:
            typer.Exit: It could not start, and has said why.
        """
        tag = f"gateway-{secrets.token_hex(8)}"
        arguments = ["--port", "0", "--json", "--until-pid", str(until_pid), "--tag", tag, *options]
        if keep_alive is not None:
            arguments += ["--keep-alive", keep_alive]
        process = subprocess.Popen(
            [*SERVE, *arguments, "--", model],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            with process.stdout as output:
                line = output.readline()
        except BaseException:
            process.terminate()
            raise
        if not line:
            raise typer.Exit(process.wait() or 1)
        return cls(process, Published(**json.loads(line)), tag)

    def close(self) -> None:
        """End it; the model stays in memory for those who use it otherwise."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)


def shared_gateway(
    model: str, *, until_pid: int, keep_alive: str, options: Sequence[str]
) -> Published:
    """Return one that lasts as long as a process, started where none of its kind runs.

    Args:
        model: What to serve, as it is meant in any folder.
        until_pid: The process.
        keep_alive: How long the model outlives a request.
        options: What else `serve` is told of the server.
    """
    settings = {name: variable.text() for name, variable in VARIABLES.items()}
    folder = os.getcwd() if options else None  # noqa: PTH109 - a file may be named from there
    wanted = [model, _began(until_pid), keep_alive, *options, folder, VERSION, settings]
    digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    file = _notes() / f"shared-{digest[:16]}"
    for other in entries_of(_notes(), "shared-*"):
        if (found := _running(other)) and other == file:
            return found
        if found is None:
            other.unlink(missing_ok=True)
    started = GatewayProcess.start(
        model, until_pid=until_pid, keep_alive=keep_alive, options=options
    )
    note = {"tag": started.tag, "published": started.published._asdict()}
    # Another shell that asks at this moment would remove a half note.
    with explain_os_errors(file), replaced_file(file, many_writers=True) as draft:
        draft.write(json.dumps(note).encode())
    return started.published


def _began(pid: int) -> tuple[int, float | None]:
    """Return what tells a process from a later one of the same number."""
    with suppress(psutil.Error):
        return pid, psutil.Process(pid).create_time()
    return pid, None


def _running(file: Path) -> Published | None:
    """Return what a note of a shared gateway says, None where that is gone, or its key is new."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        note = json.loads(file.read_bytes())
        published = Published(**note["published"])
        is_same_key = Path(published.api_key_file).stat().st_mtime_ns <= file.stat().st_mtime_ns
        return published if is_same_key and is_file_held(_notes() / note["tag"]) else None
    return None


@contextmanager
def noted_gateway(tag: str | None) -> Iterator[None]:
    """Note where this process can be found, as long as it serves.

    SIGTERM, which ends it, is taken for Ctrl-C: at once, it would leave the note and the terminal's
    cursor as they are.

    Args:
        tag: Stands on its command line, None for one that somebody runs in a terminal.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with nullcontext() if tag is None else _held_note(_notes() / tag):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _held_note(file: Path) -> Iterator[None]:
    """Keep a note of this process, and its lock, which nobody holds in a copy of the folder."""
    make_checked(file.parent)
    with ExitStack() as stack:
        with explain_os_errors(file):
            lock = stack.enter_context(opened_lock(file))
            stack.callback(file.unlink, missing_ok=True)
            try_exclusive(lock)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield


def end_gateways() -> None:
    """End all that were started here and are detached from a terminal."""
    for file in entries_of(_notes(), "gateway-*"):
        with suppress(OSError, ValueError, psutil.Error):
            if not is_file_held(file):
                continue
            process = Identity(int(file.read_text(encoding="ascii")), file.name).find()
            if process is not None:
                process.terminate()
                process.wait(_END_SECONDS)


def _notes() -> Path:
    return run_root().with_name("gateways")


def find_key_file(given: Path | None, host: str) -> Path:
    """Return the file with the key, made where it is our own and missing.

    Raises:
        ConfigurationError: Other machines could use the model without a key of the user's, or the
            file cannot be used.
    """
    if given is None:
        if not is_loopback(host):
            raise ConfigurationError(
                f"`--host {host}` lets other machines connect, so it needs a key that you choose",
                hint="write one to a file that only you can read, and pass it with --api-key-file",
            )
        return _own_key_file()
    return _checked_key_file(given)


def _checked_key_file(path: Path) -> Path:
    try:
        text, mode = _read_key(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not text" if isinstance(error, ValueError) else error.strerror
        raise ConfigurationError(
            f"the key file `{path}` cannot be read: {reason}",
            hint="make one with `openssl rand -hex 32 > FILE && chmod 600 FILE`",
        ) from error
    is_line = text.isascii() and text.isprintable() and " " not in text
    if not 0 < len(text) <= _MOST_OF_A_KEY or not is_line:
        raise ConfigurationError(
            f"`{path}` does not hold a key, which is one line of ASCII without spaces",
            hint="write one into it, or remove it if it is `car-vllm`'s own, which is then made "
            "again",
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        say(f"warning: others can read `{path}`; run `chmod 600` on it")
    return path


def _read_key(path: Path) -> tuple[str, int]:
    """Return what may be a key, and the mode of its file; the key of a pipe could be read once.

    Raises:
        OSError: It is not a file, or cannot be read.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a file on a disk")
    with path.open(encoding="utf-8") as file:
        return file.read(_MOST_OF_A_KEY + 2).strip(), mode


def _own_key_file() -> Path:
    path, mutex = run_root().with_name("gateway.key"), _notes() / "key.lock"
    make_checked(mutex.parent)
    # A hard link would do without a lock, but not every disk knows them.
    with explain_os_errors(path), ExitStack() as stack:
        if not is_present(path):
            lock = stack.enter_context(opened_lock(mutex))
            acquire_exclusive(lock, _KEY_SECONDS)
        if not is_present(path):
            with replaced_file(path, many_writers=True) as draft:
                draft.write(f"{secrets.token_urlsafe(32)}\n".encode("ascii"))
    return _checked_key_file(path)
