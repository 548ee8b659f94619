"""The command line: which commands there are, and how errors end them."""

import errno
import io
import logging
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp
from typing import Annotated

import typer

from langchain_car_vllm.cli.bench import bench
from langchain_car_vllm.cli.completion import PROGRAM, completion
from langchain_car_vllm.cli.doctor import doctor
from langchain_car_vllm.cli.familiar import FamiliarCommand, FamiliarGroup, StartingCommand
from langchain_car_vllm.cli.install import install
from langchain_car_vllm.cli.models import list_models
from langchain_car_vllm.cli.output import discard, say
from langchain_car_vllm.cli.planning import plan, show
from langchain_car_vllm.cli.pull import pull
from langchain_car_vllm.cli.recommend import recommend
from langchain_car_vllm.cli.removal import rm
from langchain_car_vllm.cli.run import run
from langchain_car_vllm.cli.servers import logs, ps, stop
from langchain_car_vllm.cli.service import app as service
from langchain_car_vllm.cli.sharing import env, launch, serve
from langchain_car_vllm.cli.uninstall import uninstall
from langchain_car_vllm.errors import CarVllmError, ConfigurationError
from langchain_car_vllm.server.directory import run_state_error
from langchain_car_vllm.support.os_limits import hint_for_limit
from langchain_car_vllm.support.printable import printable

_FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    cls=FamiliarGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run local models with vllm-mlx and manage their servers",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from langchain_car_vllm import __version__  # noqa: PLC0415 - reads the metadata

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit",
        ),
    ] = False,
) -> None:
    """Run local models with vllm-mlx, and see and end their servers."""


def _help(words: Annotated[list[str] | None, typer.Argument(metavar="COMMAND")] = None) -> None:
    """Print the commands, or what one of them does."""
    app([*(words or ()), "--help"], prog_name=PROGRAM)


def _version() -> None:
    """Print the version."""
    _print_version(wanted=True)


def _add(cls: type[FamiliarCommand], *commands: Callable[..., None]) -> None:
    for command in commands:
        app.command(cls=cls)(command)


_add(StartingCommand, run, serve, env)
app.command(
    cls=StartingCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(launch)
app.add_typer(service, name="service")
_add(FamiliarCommand, ps, stop, logs)
app.command("list")(list_models)
_add(FamiliarCommand, rm, show)
_add(StartingCommand, plan, pull, install, recommend, bench)
_add(FamiliarCommand, doctor, uninstall, completion)
app.command("help", hidden=True)(_help)
app.command("version", hidden=True)(_version)


def main() -> None:
    """Run the command line.

    Exit codes: 0, 1 for an error that is told in one sentence, 2 for wrong usage, 3 for a fault of
    this program, 130 for Ctrl-C.
    """
    try:
        _run_to_its_end()
    finally:
        _discard_what_was_not_said()


def _run_to_its_end() -> None:
    _open_output()
    _show_log_records()
    _show_warnings()
    _accept_any_character()
    try:
        try:
            app(prog_name=PROGRAM)
        finally:
            _take_last_interrupt()
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        sys.exit(1)
    except CarVllmError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - a fault of ours, which is told like one
        if about_home := run_state_error(error):
            say(f"error: {about_home}")
            sys.exit(1)
        if isinstance(error, OSError) and error.errno:
            say(f"error: {_refusal(error)}")
            sys.exit(1)
        reason = printable(_first_line(error))
        say(f"error: {PROGRAM} failed unexpectedly: {reason}")
        if log := _log_fault():
            say(f"log: {log}")
        sys.exit(3)


def _take_last_interrupt() -> None:
    """Have a further Ctrl-C end at once what is ending, without a traceback of where it was."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _discard_what_was_not_said() -> None:
    """Have Python not fail when it ends over messages that went nowhere, as on a full disk."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            discard(sys.stderr.fileno())


def _discard_output() -> None:
    """Have nobody try once more, when the program ends, to write what could not be written."""
    discard(sys.stdout.fileno())


def _refusal(error: OSError) -> ConfigurationError:
    """Return what the system refused as an error: this program is not at fault."""
    if error.errno in _FULL:
        _discard_output()
        return ConfigurationError(f"the disk is full: {error.strerror}")
    place = f"`{printable(str(error.filename))}`: " if error.filename else ""
    return ConfigurationError(
        f"the system refused: {place}{error.strerror}",
        hint=hint_for_limit(error) or "`car-vllm doctor` checks what this program needs",
    )


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _log_fault() -> Path | None:
    """Write the traceback where only the user reads it; print it where no file can be made."""
    text = f"{shlex.join(sys.argv)}\n\n{traceback.format_exc()}"
    try:
        descriptor, name = mkstemp(prefix=f"{PROGRAM}-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError:
        say(text)
        return None
    return Path(name)


def _open_output() -> None:
    """Have what is printed come to nothing where standard output is closed: Python has none."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _show_log_records() -> None:
    """Put what the package logs on standard error: a wait that is not drawn, a warning."""
    log = logging.getLogger("langchain_car_vllm")
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)


def _show_warnings() -> None:
    """Tell a warning in a sentence, each time: the line that it is about is none of the user's."""
    warnings.filterwarnings("always", category=UserWarning, append=True)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")


def _accept_any_character() -> None:
    """Replace what a terminal or a pipe cannot encode, instead of failing over an answer."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
