"""`service`: a model that is served from login on, by launchd or systemd."""

import os
import plistlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from langchain_car_vllm import environment, paths
from langchain_car_vllm.cli.familiar import FamiliarCommand, ServiceGroup, StartingCommand
from langchain_car_vllm.cli.gateway_process import SERVE
from langchain_car_vllm.cli.options import (
    AsJson,
    EngineOption,
    HeldKeepAlive,
    ModelArgument,
    Revision,
    ServerArguments,
    options_of_server,
    server_of_options,
)
from langchain_car_vllm.cli.output import print_facts, print_json, say
from langchain_car_vllm.cli.pull import check_hub_gives
from langchain_car_vllm.cli.sharing import (
    DEFAULT_PORT,
    check_can_listen,
    check_can_serve,
    model_anywhere,
)
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.server.directory import make_checked
from langchain_car_vllm.server.plan import check_may_fetch, learn_budget, plan_for
from langchain_car_vllm.server.service_variables import lasting_variables
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.support.file_presence import is_present
from langchain_car_vllm.support.programs import ask_program
from langchain_car_vllm.support.replaced_files import replaced_file

_LABEL = "dev.car.vllm-mlx"
_UNIT = "car-vllm.service"
_PATIENCE = 60
_LOOK = 0.2
_BY_HAND = "run it by hand to see more; the service file was written"
_NOBODY_IN = (
    "nobody is logged in at this Mac's screen: the service starts at the next login there or "
    "over Screen Sharing; until then run `car-vllm serve`"
)
_PRIVATE = ("Desktop", "Documents", "Downloads", "Library/Mobile Documents")

app = typer.Typer(
    cls=ServiceGroup,
    help="Serve a model from login.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Service(NamedTuple):
    """What is to run from login on.

    Attributes:
        command: The command line of `car-vllm serve`.
        environment: The variables that it needs, such as CAR_HOME.
        log: Where its output goes.
    """

    command: Sequence[str]
    environment: dict[str, str]
    log: Path


class Supervisor(NamedTuple):
    """The system's own keeper of services: launchd or systemd.

    Attributes:
        file: Where it reads what is to run.
        encode: Returns the content of that file.
        program: Returns the program that a content has run.
        start: The commands that make it read the file and run the service.
        stop: The command that ends the service and makes it forget the file.
        status: The command whose exit code is 0 while the service is known.
        is_idle: Tells by what that command says whether one that is known does not run.
        session: A command that fails where there is nothing yet to keep a service in.
    """

    file: Path
    encode: Callable[[Service], bytes]
    program: Callable[[bytes], str]
    start: list[list[str]]
    stop: list[str]
    status: list[str]
    is_idle: Callable[[str], bool]
    session: list[str] | None = None


def launchd(home: Path, uid: int) -> Supervisor:
    """Return the keeper of macOS."""
    file = home / "Library" / "LaunchAgents" / f"{_LABEL}.plist"
    domain = f"gui/{uid}"
    return Supervisor(
        file,
        _encode_agent,
        lambda content: str(plistlib.loads(content)["ProgramArguments"][0]),
        # One that was ever disabled would be refused with an input/output error.
        start=[
            ["launchctl", "enable", f"{domain}/{_LABEL}"],
            ["launchctl", "bootstrap", domain, str(file)],
        ],
        stop=["launchctl", "bootout", f"{domain}/{_LABEL}"],
        status=["launchctl", "print", f"{domain}/{_LABEL}"],
        is_idle=_is_idle_agent,
        session=["launchctl", "print", domain],
    )


def systemd(home: Path) -> Supervisor:
    """Return the keeper of Linux."""
    configuration = environment.XDG_CONFIG_HOME.read()
    root = Path(configuration) if configuration else home / ".config"
    control = ["systemctl", "--user"]
    return Supervisor(
        root / "systemd" / "user" / _UNIT,
        _encode_unit,
        _program_of_unit,
        start=[[*control, "daemon-reload"], [*control, "enable", "--now", _UNIT]],
        stop=[*control, "disable", "--now", _UNIT],
        status=[*control, "is-active", _UNIT],
        is_idle=lambda _: False,
    )


def find_supervisor(platform: str, home: Path | None, uid: int) -> Supervisor:
    """Return the system's keeper of services.

    Raises:
        ConfigurationError: There is no home to keep the file in.
    """
    if home is None:
        raise ConfigurationError("a service needs a home directory", hint="set HOME")
    return launchd(home, uid) if platform == "darwin" else systemd(home)


@app.command(cls=StartingCommand)
def install(
    model: ModelArgument,
    *,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on")] = DEFAULT_PORT,
    keep_alive: HeldKeepAlive = None,
    api_key_file: Annotated[Path | None, typer.Option(help="As for `serve`")] = None,
    host: Annotated[str, typer.Option(help="As for `serve`")] = "127.0.0.1",
    revision: Revision = None,
    engine: EngineOption = "auto",
    server_arg: ServerArguments = None,
) -> None:
    """Serve a model now and after every login."""
    meant = model_anywhere(model)  # it is started from another folder
    # It would be started again and again, and fail each time where nobody looks.
    check_can_serve(host, api_key_file, keep_alive)
    _check_can_start(server_of_options(meant, revision, engine, server_arg))
    command = [*SERVE, meant, "--host", host, "--port", str(port)]
    command += options_of_server(revision, engine, server_arg)
    if keep_alive is not None:
        command += ["--keep-alive", keep_alive]
    if api_key_file is not None:
        command += ["--api-key-file", str(api_key_file.absolute())]
    log = paths.run_root().with_name("gateway.log")
    make_checked(log.parent)
    supervisor = _ours()
    if is_present(supervisor.file):
        _end(supervisor)
    check_can_listen(host, port)
    # Whatever the umask: launchd refuses what a group may write to.
    paths.make_with_parents(supervisor.file.parent)
    service = Service(command, lasting_variables(), log)
    with replaced_file(supervisor.file) as file:
        file.write(supervisor.encode(service))
    _start(supervisor)
    print_facts([("file", str(supervisor.file)), ("log", str(log))])
    say(f"`{model}` is served on port {port} from now on; `car-vllm service status` shows more")
    if closed := private_folders(service, paths.home(), sys.platform):
        say(
            f"macOS keeps services out of {', '.join(f'`{folder}`' for folder in closed)}: if "
            f"`{log}` says that an operation is not permitted, move the files elsewhere, or give "
            f"`{command[0]}` Full Disk Access in System Settings"
        )


@app.command(cls=FamiliarCommand)
def status(*, as_json: AsJson = False) -> None:
    """Show whether a model is served; the exit code is 1 if none is."""
    supervisor = _ours()
    runs = is_present(supervisor.file) and _runs(supervisor)
    if as_json:
        print_json({"file": str(supervisor.file), "running": runs})
    else:
        print_facts([("file", str(supervisor.file)), ("running", "yes" if runs else "no")])
    if not runs:
        if gone := _missing_program(supervisor):
            say(
                f"\nthe program that it runs, `{gone}`, is gone\n\nhint: run `car-vllm service "
                "install` again"
            )
        raise typer.Exit(1)


@app.command(cls=FamiliarCommand)
def remove() -> None:
    """Stop serving the model, now and after login."""
    supervisor = _ours()
    if not is_present(supervisor.file):
        say("no service is installed")
        return
    _end(supervisor)
    supervisor.file.unlink()
    say("the service was removed")


def _check_can_start(spec: ServerSpec) -> None:
    """Refuse a model that is known not to start here.

    Raises:
        CarVllmError: It would not; the type tells why.
    """
    learn_budget()
    if spec.find_snapshot() is None:
        check_may_fetch(spec)
        check_hub_gives(spec)
    plan_for(spec).check()


def service_file() -> Path | None:
    """Return where the file of a service would be, None where there is no home for it."""
    return _ours().file if paths.home() is not None else None


def remove_service() -> None:
    """Remove the service, also where the program that ran it is gone."""
    supervisor = _ours()
    with suppress(ConfigurationError):
        _end(supervisor)
    supervisor.file.unlink(missing_ok=True)


def private_folders(service: Service, home: Path | None, platform: str) -> list[str]:
    """Return the folders that macOS lets a service read with leave only, of those that it needs.

    A terminal has such a leave, or asks for it; a service cannot.
    """
    if platform != "darwin" or home is None:
        return []
    words = [*service.command, *service.environment.values(), str(service.log)]
    places = [*(home / name for name in _PRIVATE), Path("/Volumes")]
    found = [next((p for p in places if Path(word).is_relative_to(p)), None) for word in words]
    return list(dict.fromkeys(str(place) for place in found if place is not None))


def _runs(supervisor: Supervisor) -> bool:
    done = _run(supervisor.status)
    return done.returncode == 0 and not supervisor.is_idle(done.stdout)


def _is_idle_agent(said: str) -> bool:
    """Return whether launchd knows an agent that does not run; what it cannot start it keeps."""
    state = re.search(r"^\s*state = (.+)$", said, re.MULTILINE)
    return state is not None and state[1] != "running"


def _missing_program(supervisor: Supervisor) -> str | None:
    """Return the program of a service that is no longer there, as after its Python was upgraded."""
    with suppress(OSError, ValueError, LookupError, TypeError, plistlib.InvalidFileException):
        program = supervisor.program(supervisor.file.read_bytes())
        return None if os.path.exists(program) else program  # noqa: PTH110
    return None


def _end(supervisor: Supervisor) -> None:
    """Stop a service and wait until it is gone.

    Before that launchd refuses to start it anew, and it may start a server that is being removed.
    """
    _run(supervisor.stop)
    give_up_at = time.monotonic() + _PATIENCE
    while _run(supervisor.status).returncode == 0 and time.monotonic() < give_up_at:
        time.sleep(_LOOK)


def _ours() -> Supervisor:
    return find_supervisor(sys.platform, paths.home(), os.getuid())


def _start(supervisor: Supervisor) -> None:
    for command in supervisor.start:
        done = _run(command)
        if done.returncode:
            nobody_in = supervisor.session is not None and _run(supervisor.session).returncode
            raise ConfigurationError(
                f"`{shlex.join(command)}` failed: {(done.stderr or done.stdout).strip()}",
                hint=_NOBODY_IN if nobody_in else _BY_HAND,
            )


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    program = environment.find_program(command[0])
    if program is None:
        raise ConfigurationError(
            f"`{command[0]}` is not on the PATH, so no service can be installed here",
            hint="run `car-vllm serve` in a terminal instead",
        )
    done = ask_program([program, *command[1:]], _PATIENCE)
    if done is None:
        raise ConfigurationError(
            f"`{shlex.join(command)}` did not answer within {_PATIENCE} s",
            hint="run it by hand to see more",
        )
    return done


def _encode_agent(service: Service) -> bytes:
    """Return a property list for launchd."""
    return plistlib.dumps(
        {
            "Label": _LABEL,
            "ProgramArguments": list(service.command),
            "EnvironmentVariables": service.environment,
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ProcessType": "Interactive",
            "StandardOutPath": str(service.log),
            "StandardErrorPath": str(service.log),
        }
    )


def _program_of_unit(content: bytes) -> str:
    """Return the program that a unit file of ours has run."""
    written = re.search(r'^ExecStart="((?:[^"\\]|\\.)*)"', os.fsdecode(content), re.MULTILINE)
    return re.sub(r"([\\%$])(.)", r"\2", written[1] if written else "")


def _encode_unit(service: Service) -> bytes:
    """Return a unit file for systemd."""
    command = " ".join(_quoted_word(word).replace("$", "$$") for word in service.command)
    log = str(service.log).replace("%", "%%")
    lines = [
        "[Unit]",
        "Description=A local model for other programs (car-vllm serve)",
        "",
        "[Service]",
        f"ExecStart={command}",
        *(f"Environment={_quoted_word(f'{k}={v}')}" for k, v in service.environment.items()),
        "Restart=on-failure",
        "RestartSec=10",
        f"StandardOutput=append:{log}",
        f"StandardError=append:{log}",
        "",
        "[Install]",
        "WantedBy=default.target",
        "",
    ]
    return os.fsencode("\n".join(lines))


def _quoted_word(word: str) -> str:
    """Return a word as systemd reads it: quoted, without specifiers."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace(chr(10), " ")}"'
