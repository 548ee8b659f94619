"""`serve`, `env` and `launch`: a model for other programs."""

import asyncio
import errno
import ipaddress
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import typer

from langchain_car_vllm.cli.gateway_process import (
    GatewayProcess,
    Published,
    find_key_file,
    noted_gateway,
    shared_gateway,
)
from langchain_car_vllm.cli.options import (
    AsJson,
    EngineOption,
    HeldKeepAlive,
    KeepAlive,
    ModelArgument,
    Revision,
    ServerArguments,
    options_of_server,
    server_of_options,
)
from langchain_car_vllm.cli.output import discard, print_facts, print_json, say
from langchain_car_vllm.durations import seconds
from langchain_car_vllm.environment import find_program, inherited_environment
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.progress.display import Display
from langchain_car_vllm.server.supervisor.limits import allow_files
from langchain_car_vllm.support.bounded_http import is_loopback
from langchain_car_vllm.support.proxy_variables import proxy_exceptions

DEFAULT_PORT = 8000
_WATCH_SECONDS = 1.0
_CONNECT_SECONDS = 1.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def serve(
    model: ModelArgument,
    *,
    keep_alive: HeldKeepAlive = None,
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any")
    ] = DEFAULT_PORT,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the key; by default `car-vllm` keeps one of its own"),
    ] = None,
    revision: Revision = None,
    engine: EngineOption = "auto",
    server_arg: ServerArguments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON")] = False,
    until_pid: Annotated[int | None, typer.Option(hidden=True)] = None,
    tag: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve a model to other programs until Ctrl-C.

    Answers at an OpenAI-compatible address, and on Anthropic's `/v1/messages`. Your Python programs
    share the same server.
    """
    allow_files()
    key_file, idle_seconds = check_can_serve(host, api_key_file, keep_alive)
    spec = server_of_options(model, revision, engine, server_arg)
    spec = replace(spec, keep_alive=idle_seconds)
    with closing(Display(model)) as display, _listener(host, port) as listener, noted_gateway(tag):
        number = listener.getsockname()[1]
        published = Published(
            f"http://{_reachable(host)}:{number}/v1", str(key_file), spec.served_name
        )

        def announce() -> None:
            display.close()
            _announce(published, host, as_json=as_json)
            if until_pid is not None:
                # Nothing stays open whose end the caller may wait for.
                discard(1, 2)

        from langchain_car_vllm.gateway import Gateway  # noqa: PLC0415 - imports httpcore

        gateway = Gateway(spec, key_file.read_text().strip(), on_progress=display)
        with suppress(KeyboardInterrupt):
            asyncio.run(
                _serve(gateway, listener, announce, holds=keep_alive is None, until=until_pid)
            )
        if not as_json:
            say("stopped")


def env(
    model: ModelArgument,
    *,
    keep_alive: KeepAlive,
    revision: Revision = None,
    engine: EngineOption = "auto",
    server_arg: ServerArguments = None,
    as_json: AsJson = False,
) -> None:
    """Print the variables that make other programs use a model.

    For `eval "$(car-vllm env MODEL)"`. The address works as long as this terminal is open.
    """
    # Inside `$(...)` the parent is a subshell; what lasts is the leader of the session.
    published = shared_gateway(
        model_anywhere(model),
        keep_alive=keep_alive,
        until_pid=os.getsid(0),
        options=options_of_server(revision, engine, server_arg),
    )
    variables = shared_variables(published)
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


def launch(
    context: typer.Context,
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="Such as claude, codex or aider")],
    model: ModelArgument,
    *,
    revision: Revision = None,
    engine: EngineOption = "auto",
    server_arg: ServerArguments = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run, without starting it")
    ] = False,
) -> None:
    """Run a coding agent or another tool on a model.

    What follows `--` goes to the tool. The model is served as long as the tool runs.
    """
    known = _tools()
    if tool not in known:
        raise typer.BadParameter(f"`{tool}` is not known; choose one of {', '.join(sorted(known))}")
    entry = known[tool]
    if dry_run:
        name = parse_model_id(model).name
        plan = Published("http://127.0.0.1:PORT/v1", "KEYFILE", name)
        command, variables = entry.invocation(plan, key="KEY")
        for variable, value in variables.items():
            print(f"{variable}={shlex.quote(value)}")
        print(shlex.join([*command, *context.args]))
        return
    program = find_program(entry.command[0])
    if program is None:
        raise ConfigurationError(
            f"`{entry.command[0]}` is not on the PATH", hint=f"install it: `{entry.install}`"
        )
    options = options_of_server(revision, engine, server_arg)
    with closing(GatewayProcess.start(model, until_pid=os.getpid(), options=options)) as gateway:
        command, variables = entry.invocation(gateway.published, gateway.published.read_key())
        words = [program, *command[1:], *context.args]
        inherited = inherited_environment()
        variables |= proxy_exceptions(inherited)
        raise typer.Exit(_run_in_foreground(words, inherited | variables))


class _Tool(NamedTuple):
    """A program that can be told where its model is.

    Attributes:
        command: Its command line, with placeholders.
        environment: Its variables, with placeholders.
        key_in: The variables that take the key.
        install: How to get it.
    """

    command: list[str]
    environment: dict[str, str]
    key_in: list[str]
    install: str

    def invocation(self, published: Published, key: str) -> tuple[list[str], dict[str, str]]:
        """Return the command line and the variables for a served model."""
        words = {
            "model": published.model,
            "base_url": published.base_url,
            "root": published.base_url.removesuffix("/v1"),
        }
        # TOML, which codex reads, knows no surrogate pairs.
        words |= {f"{n}_json": json.dumps(value, ensure_ascii=False) for n, value in words.items()}
        command = [part.format_map(words) for part in self.command]
        variables = {name: value.format_map(words) for name, value in self.environment.items()}
        return command, variables | dict.fromkeys(self.key_in, key)


def _tools() -> dict[str, _Tool]:
    table = json.loads(files(__package__).joinpath("tools.json").read_bytes())
    return {name: _Tool(**entry) for name, entry in table["tools"].items()}


def shared_variables(published: Published) -> dict[str, str]:
    """Return the variables that OpenAI's and Anthropic's clients read, and those of proxies."""
    key = published.read_key()
    return {
        "OPENAI_BASE_URL": published.base_url,
        "OPENAI_API_BASE": published.base_url,
        "OPENAI_API_KEY": key,
        "OPENAI_MODEL": published.model,
        "ANTHROPIC_BASE_URL": published.base_url.removesuffix("/v1"),
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_MODEL": published.model,
        **proxy_exceptions(inherited_environment()),
    }


async def _serve(
    gateway: Any, listener: socket.socket, announce: Any, *, holds: bool, until: int | None
) -> None:
    from langchain_car_vllm.cli.gateway_server import gateway_server  # noqa: PLC0415 - slow

    server = gateway_server(gateway)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(gateway.hold())
        if not holds:
            await stack.aclose()
        announce()
        watching = asyncio.create_task(_end_with(until, server)) if until else None
        try:
            await server.serve(sockets=[listener])
        finally:
            if watching is not None:
                watching.cancel()


async def _end_with(pid: int, server: Any) -> None:
    """End the service when a process is gone, or is only not reaped yet."""
    with suppress(psutil.NoSuchProcess):
        watched = psutil.Process(pid)
        while _lives(watched):  # noqa: ASYNC110 - the kernel tells nobody else
            await asyncio.sleep(_WATCH_SECONDS)
    server.should_exit = True


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _announce(published: Published, host: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(published._asdict()), flush=True)
        return
    question = {"model": published.model, "messages": [{"role": "user", "content": "Say hello"}]}
    direct = "--noproxy '*' " if proxy_exceptions(inherited_environment()) else ""
    words = [  # the shell prints by itself: the key stands in no list of processes
        f"printf 'Authorization: Bearer %s' \"$(cat {shlex.quote(published.api_key_file)})\" |",
        f"curl {direct}{published.base_url}/chat/completions",
        "-H @- -H 'Content-Type: application/json'",
        f"-d {shlex.quote(json.dumps(question))}",
    ]
    print_facts(
        [
            ("base_url", published.base_url),
            ("model", published.model),
            ("key file", published.api_key_file),
            ("try it", " ".join(words)),
        ]
    )
    sys.stdout.flush()  # whoever reads a pipe waits for it, and nothing follows
    if not is_loopback(host):
        say(
            f"listens on `{host}`: every machine that can reach this one and has the key can use "
            "the model; what they send is not encrypted"
        )
    say("Ctrl-C stops it")


def model_anywhere(model: str) -> str:
    """Return a model as it is meant in any folder."""
    found = parse_model_id(model)
    return found.source if found.is_local else model


def check_can_serve(
    host: str, api_key_file: Path | None, keep_alive: str | None
) -> tuple[Path, float]:
    """Return the file with the key, and the seconds that the model outlives a request.

    Raises:
        ConfigurationError: A model cannot be served so.
    """
    lasting = 0.0 if keep_alive is None else seconds(keep_alive, "keep_alive", lowest=-1)
    return find_key_file(api_key_file, host), lasting


def check_can_listen(host: str, port: int) -> None:
    """Try an address.

    Raises:
        ConfigurationError: Nobody can listen there.
    """
    with _listener(host, port):
        pass


def _reachable(host: str) -> str:
    """Return a name under which an address can be reached."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if address.version == 6 else host  # noqa: PLR2004


def _check_nobody_answers(address: str, port: int) -> None:
    """Refuse a port that another program listens on, be it on other addresses as well.

    macOS lets one program listen on all addresses and another on a single one, which takes the
    requests of the first away.

    Raises:
        OSError: Somebody answers there.
    """
    try:
        place = (_LOOPBACK.get(address, address), port)
        connected = socket.create_connection(place, _CONNECT_SECONDS)
    except OSError:
        return
    own = None
    with connected, suppress(OSError):  # whoever hung up at once was there, too
        own = connected.getsockname()[1]
    # Where nobody listens, Linux may connect a port to itself.
    if own != port:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


@contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server((host, 0), family=family).close()  # it is an address of this machine
        if port:
            _check_nobody_answers(str(place[0]), port)
        listener = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.EADDRINUSE, errno.EACCES):
            reason, hint = os.strerror(code), "choose another port with --port, 1024 or above"
        elif isinstance(error, UnicodeError | socket.gaierror) or code == errno.EADDRNOTAVAIL:
            reason = "that is not an address of this machine"
            hint = "leave --host out, or use `--host 0.0.0.0` for every address of this machine"
        else:
            reason, hint = str(error), "choose another address with --host, or another --port"
        raise ConfigurationError(
            f"cannot listen on `{host}:{port}`: {reason}", hint=hint
        ) from error
    with listener:
        yield listener


def _run_in_foreground(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a program that owns the terminal; Ctrl-C is for it, not for us."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # a program that is run gets the default
    try:
        code = subprocess.Popen(command, env=environment).wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code
