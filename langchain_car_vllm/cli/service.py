"""`service`: a model that is served from login on, by launchd or systemd."""

import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

import typer

from langchain_car_vllm import environment, paths
from langchain_car_vllm.cli.familiar import FamiliarCommand
from langchain_car_vllm.cli.output import AsJson, ModelArgument, print_facts, print_json, say
from langchain_car_vllm.cli.sharing import DEFAULT_PORT
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.server.directory import make_checked

_LABEL = "dev.car.vllm-mlx"
_UNIT = "car-vllm.service"
_SERVED = Path("gateway.log")
_PATIENCE = 60

app = typer.Typer(help="Serve a model from login on", no_args_is_help=True, rich_markup_mode=None)


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


class Supervisor(Protocol):
    """The system's own keeper of services; launchd or systemd."""

    @property
    def file(self) -> Path:
        """Where it reads what is to run."""

    def encode(self, service: Service) -> bytes:
        """Return the content of that file."""

    def start(self) -> list[list[str]]:
        """Return the commands that make it read the file and run the service."""

    def stop(self) -> list[list[str]]:
        """Return the commands that end the service and make it forget the file."""

    def status(self) -> list[str]:
        """Return the command whose exit code is 0 while the service runs."""


class Launchd:
    """macOS.

    Args:
        home: The user's home.
        uid: The user's number.
    """

    def __init__(self, home: Path, uid: int) -> None:
        self.file = home / "Library" / "LaunchAgents" / f"{_LABEL}.plist"
        self._domain = f"gui/{uid}"

    def encode(self, service: Service) -> bytes:
        """Return a property list."""
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

    def start(self) -> list[list[str]]:
        """Return the command that loads the agent."""
        return [["launchctl", "bootstrap", self._domain, str(self.file)]]

    def stop(self) -> list[list[str]]:
        """Return the command that unloads it."""
        return [["launchctl", "bootout", f"{self._domain}/{_LABEL}"]]

    def status(self) -> list[str]:
        """Return the command that prints it."""
        return ["launchctl", "print", f"{self._domain}/{_LABEL}"]


class Systemd:
    """Linux.

    Args:
        home: The user's home.
    """

    def __init__(self, home: Path) -> None:
        configuration = environment.XDG_CONFIG_HOME.read()
        root = Path(configuration) if configuration else home / ".config"
        self.file = root / "systemd" / "user" / _UNIT

    def encode(self, service: Service) -> bytes:
        """Return a unit file."""
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
        return "\n".join(lines).encode()

    def start(self) -> list[list[str]]:
        """Return the commands that enable the unit."""
        return [
            ["systemctl", "--user", "daemon-reload"],
            ["systemctl", "--user", "enable", "--now", _UNIT],
        ]

    def stop(self) -> list[list[str]]:
        """Return the command that disables it."""
        return [["systemctl", "--user", "disable", "--now", _UNIT]]

    def status(self) -> list[str]:
        """Return the command that asks for it."""
        return ["systemctl", "--user", "is-active", _UNIT]


def find_supervisor(platform: str, home: Path | None, uid: int) -> Supervisor:
    """Return the system's keeper of services.

    Raises:
        ConfigurationError: There is no home to keep the file in.
    """
    if home is None:
        raise ConfigurationError("a service needs a home directory", hint="set HOME")
    return Launchd(home, uid) if platform == "darwin" else Systemd(home)


@app.command(cls=FamiliarCommand)
def install(
    model: ModelArgument,
    *,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on")] = DEFAULT_PORT,
    keep_alive: Annotated[
        str | None, typer.Option(help="As for `serve`; without it the model stays in memory")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="As for `serve`")] = None,
    host: Annotated[str, typer.Option(help="As for `serve`")] = "127.0.0.1",
) -> None:
    """Serve a model now and from every login on."""
    parse_model_id(model)
    command = [sys.executable, "-c", "from langchain_car_vllm.cli import main; main()", "serve"]
    command += [model, "--host", host, "--port", str(port)]
    if keep_alive is not None:
        command += ["--keep-alive", keep_alive]
    if api_key_file is not None:
        command += ["--api-key-file", str(api_key_file.absolute())]
    log = paths.run_root().with_name(_SERVED.name)
    make_checked(log.parent)
    variables = {v.name: text for v in _KEPT if (text := v.text()) is not None}
    supervisor = _ours()
    if supervisor.file.exists():
        _run_all(supervisor.stop(), check=False)
    supervisor.file.parent.mkdir(parents=True, exist_ok=True)
    supervisor.file.write_bytes(supervisor.encode(Service(command, variables, log)))
    _run_all(supervisor.start(), check=True)
    print_facts([("file", str(supervisor.file)), ("log", str(log))])
    say(f"`{model}` is served on port {port} from now on; `car-vllm service status` tells more")


@app.command(cls=FamiliarCommand)
def status(*, as_json: AsJson = False) -> None:
    """Tell whether a model is served; the exit code is 1 where none is."""
    supervisor = _ours()
    runs = supervisor.file.exists() and _runs(supervisor.status())
    if as_json:
        print_json({"file": str(supervisor.file), "running": runs})
    else:
        print_facts([("file", str(supervisor.file)), ("running", "yes" if runs else "no")])
    if not runs:
        raise typer.Exit(1)


@app.command(cls=FamiliarCommand)
def remove() -> None:
    """Serve no model any more, neither now nor from login on."""
    supervisor = _ours()
    if not supervisor.file.exists():
        say("there is no service")
        return
    _run_all(supervisor.stop(), check=False)
    supervisor.file.unlink()
    say("the service is removed")


def service_file() -> Path | None:
    """Return where the file of a service would be, None where there is no home for it."""
    return _ours().file if paths.home() is not None else None


def remove_service() -> None:
    """Remove the service, also where the program that ran it is gone."""
    supervisor = _ours()
    with suppress(ConfigurationError):
        _run_all(supervisor.stop(), check=False)
    supervisor.file.unlink(missing_ok=True)


# What decides where things are; keys and tokens stay out of a file that lasts.
_KEPT = (
    environment.CAR_HOME,
    environment.CAR_VLLM_MLX_BIN,
    environment.CAR_VLLM_MLX_MEMORY_GB,
    environment.HF_HOME,
    environment.HF_HUB_CACHE,
)


def _ours() -> Supervisor:
    return find_supervisor(sys.platform, paths.home(), os.getuid())


def _run_all(commands: list[list[str]], *, check: bool) -> None:
    for command in commands:
        done = _run(command)
        if check and done.returncode:
            raise ConfigurationError(
                f"`{shlex.join(command)}` failed: {(done.stderr or done.stdout).strip()}",
                hint="run it by hand to see more; the file of the service was written",
            )


def _runs(command: list[str]) -> bool:
    return _run(command).returncode == 0


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    program = shutil.which(command[0])
    if program is None:
        raise ConfigurationError(
            f"`{command[0]}` is not on the PATH, so no service can be kept here",
            hint="run `car-vllm serve` in a terminal instead",
        )
    try:
        return subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(
            f"`{shlex.join(command)}` did not answer within {_PATIENCE} s",
            hint="run it by hand to see more",
        ) from error


def _quoted_word(word: str) -> str:
    """Return a word as systemd reads it: quoted, without specifiers."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace(chr(10), " ")}"'
