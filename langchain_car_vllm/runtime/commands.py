"""Running one step of an installation: its environment, its output line by line, its failure."""

import errno
import os
import selectors
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from langchain_car_vllm.environment import (
    CAR_VLLM_MLX_LOAD_STALL,
    UV_OFFLINE,
    Variable,
    inherited_environment,
    is_off,
)
from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime.mounts import ELSEWHERE
from langchain_car_vllm.support.os_limits import HINTS
from langchain_car_vllm.support.stall import Stall, cpu_seconds

_TICK = 0.5
_TAIL = 200
_DETAIL_LINES = 3
_PATIENCE = 5.0
NO_ANSWER = "did not answer"
"""What is said of a program that neither says nor computes anything."""

# They describe the Python that runs this package, or the one it was started from.
_FOREIGN = ("PYTHON", "VIRTUAL_ENV", "CONDA_", "__PYVENV_LAUNCHER__")

OnLine = Callable[[str | None], None]


def clean_environment() -> dict[str, str]:
    """Return the environment without what belongs to the Python that runs this package."""
    return {
        name: value
        for name, value in inherited_environment().items()
        if not name.startswith(_FOREIGN)
    }


def run_step(
    step: str,
    command: Sequence[object],
    *,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    on_line: OnLine | None = None,
    keep_open: tuple[int, ...] = (),
    limit: Variable[float] = CAR_VLLM_MLX_LOAD_STALL,
) -> str:
    """Run one step of the installation to its end and return what it said.

    Args:
        step: Its name in errors.
        command: Program and arguments, strings and paths.
        directory: Where it runs.
        environment: By default the clean one.
        on_line: Called with each line as it comes, and with None twice a second without one. An
            exception that it raises ends the program and passes through.
        keep_open: File descriptors that the program inherits.
        limit: Holds the seconds that it may neither say nor compute anything. What uv downloads on
            a slow line costs it processor time; a line that is dead it notices by itself.

    Raises:
        ProvisionError: It could not be started, failed or showed no sign of life; carries its last
            words.
    """
    said: deque[str] = deque(maxlen=_TAIL)
    seconds = limit.read()
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=clean_environment() if environment is None else environment,
            pass_fds=keep_open,
            umask=0o022,  # what the user's group may write to is not run
        )
    except OSError as error:
        raise ProvisionError(step, f"`{command[0]}` cannot be run: {error}") from error
    count = 0
    stall = Stall(seconds, lambda: (count, round(cpu_seconds(process.pid), 2)))
    with _ensure_end(process):
        for line in _lines(process):
            if line is not None:
                said.append(line)
                count += 1
            elif stall.is_stalled():
                silence = f"`{Path(str(command[0])).name}` {NO_ANSWER}"
                stalled = ProvisionError(
                    step,
                    f"{silence}: no sign of life for {seconds:g} s",
                    hint=f"try again; {limit.name}=0 waits forever",
                )
                stalled.is_retryable = True
                raise stalled
            if on_line is not None:
                on_line(line)
        code = process.wait()
    text = "\n".join(said)
    if code != 0:
        failed = ProvisionError(step, _failure(command, code, said), hint=hint_for(text))
        failed.is_retryable = failed.hint == _OFFLINE
        raise failed
    return text


def _failure(command: Sequence[object], code: int, said: Sequence[str]) -> str:
    end = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
    words = "\n".join(_last_words(said))
    return f"`{Path(str(command[0])).name}` {end}" + (f": {words}" if words else "")


def _last_words(said: Sequence[str]) -> list[str]:
    """Return what a program said of its failure: uv names it first, Python at the end.

    The hints of uv are about options that the user does not type.
    """
    lines = []
    is_hint = False
    for line in said:
        is_hint = line.startswith("hint:") or (is_hint and line.startswith(" "))
        if line.strip() and not is_hint:
            lines.append(line)
    began = next((n for n, line in enumerate(lines) if line.startswith(_UV_ERRORS)), None)
    if began is None:
        return lines[-_DETAIL_LINES:]
    causes = [n for n, line in enumerate(lines) if n > began and _is_cause(line)]
    if not causes:
        return lines[began : began + _DETAIL_LINES]
    return [lines[began], *lines[causes[-1] :][: _DETAIL_LINES - 1]]


def _is_cause(line: str) -> bool:
    return line.lstrip().startswith(_UV_CAUSES)


_UV_CAUSES = ("cause:", "Caused by:", "\u251c\u2500\u25b6", "\u2570\u2500\u25b6")
_UV_ERRORS = ("error:", "  \u00d7 ")
_OFFLINE = "connect to the network and try again (HTTPS_PROXY and UV_DEFAULT_INDEX are respected)"
_HINTS = (
    (
        ("No space left on device", "os error 28", "Disk quota exceeded", "Disc quota exceeded"),
        "free some disk space and try again",
    ),
    (("Too many open files", "(os error 24)"), HINTS[errno.EMFILE]),
    (
        ("invalid peer certificate", "UnknownIssuer", "certificate verify failed"),
        "a proxy seems to inspect TLS: have the system trust its certificate, or set SSL_CERT_FILE",
    ),
    (
        ("SOCKS error", "socks connect error", "proxy connect"),
        "the proxy blocks the connection: check HTTPS_PROXY, ALL_PROXY and NO_PROXY",
    ),
    (
        (
            "dns error",
            "Could not connect",
            "error sending request",
            "Connection refused",
            "timed out",
        ),
        _OFFLINE,
    ),
    (
        (
            *("Permission denied", "os error 13", "Read-only file system", "os error 30"),
            *("Operation not permitted", "(os error 1)"),
        ),
        "make the folder writable for you, or set CAR_VLLM_MLX_RUNTIME to another one",
    ),
    (
        ("Operation not supported", "os error 45", "os error 95"),
        f"its disk does not support what an environment needs, such as links: {ELSEWHERE}",
    ),
    (("No interpreter found",), "run `uv python install 3.12` and try again"),
    (
        ("there is no version of", "No solution found"),
        "the package index does not have what is needed: set UV_DEFAULT_INDEX to another one",
    ),
    (("Hash mismatch",), "run `uv cache clean`, or use a package index that is not modified"),
)


def hint_for(text: str) -> str | None:
    """Return what to do about a failed installation, judged by what uv said.

    Offline, uv says only that there is no such version.
    """
    if not is_off(UV_OFFLINE.read() or "0"):
        return "unset UV_OFFLINE, connect to the network and try again"
    if "network was disabled" in text:
        return "remove `offline` from your `uv.toml`, connect to the network and try again"
    return next((hint for marks, hint in _HINTS if any(mark in text for mark in marks)), None)


@contextmanager
def _ensure_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            _end(process)
        if process.stdout is not None:
            process.stdout.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it has started, as far as the system lets anybody."""
    started = []
    with suppress(psutil.Error, OSError):
        started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    for each in started:
        with suppress(psutil.Error):
            each.kill()
    if process.poll() is None:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Yield each line, and None twice a second without one, until the program has ended."""
    if process.stdout is None:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        rest = b""
        while True:
            if not selector.select(_TICK):
                yield None
                if process.poll() is not None:
                    # A grandchild may hold the pipe open forever.
                    break
                continue
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            *complete, rest = (rest + chunk).split(b"\n")
            yield from (line.decode("utf-8", errors="replace").rstrip() for line in complete)
        if rest:
            yield rest.decode("utf-8", errors="replace").rstrip()
