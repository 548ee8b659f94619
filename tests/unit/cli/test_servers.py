"""`ps`, `stop` and `logs` on real servers of the fake installation."""

import json
import os
import pty
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from faults.support import FAST, PATIENCE, Fake, eventually
from unit.cli.conftest import Cli, command, interrupt

from langchain_car_vllm.server import lease, stop_server
from langchain_car_vllm.server.client.stop import idle_seconds
from langchain_car_vllm.server.port import is_free


def start(fake: Fake) -> None:
    with lease(fake.spec(), policy=FAST):
        pass


def test_nothing_runs(cli_here: Cli):
    """Without servers there is no data, and a word about it."""
    done = cli_here("ps")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "no server is running\n"
    assert json.loads(cli_here("ps", "--json").stdout) == []


def test_a_lock_file_that_is_gone_is_held_by_nobody(fake: Fake):
    """Something that tidies up may have removed it; looking makes none."""
    start(fake)
    state, lock = fake.state(), fake.directory().lease_lock
    fake.stop()
    lock.unlink()
    assert idle_seconds(fake.directory(), state, time.monotonic())
    assert not lock.exists()


def test_running_servers_are_listed(cli_here: Cli, fake: Fake):
    """A table for a person, JSON for a program, the key in neither."""
    start(fake)
    state = fake.state()
    assert state.server is not None
    done = cli_here("ps")
    header, row = done.stdout.splitlines()
    assert header.split() == [
        "MODEL",
        "KIND",
        "STAGE",
        "ENGINE",
        "PORT",
        "PID",
        "MEMORY",
        "UP",
        "UNTIL",
    ]
    port, pid = str(state.port), str(state.server.pid)
    assert row.split()[:6] == [str(fake.model), "chat", "ready", "batched", port, pid]
    assert row.split()[-2] == "in"
    as_json = cli_here("ps", "--json").stdout
    (described,) = json.loads(as_json)
    assert described["base_url"] == f"http://127.0.0.1:{state.port}/v1"
    assert described["memory_bytes"] == state.reservation
    assert 0 < described["idle_seconds_left"] <= 60.0 * 2
    assert described["kind"] == "chat"
    assert state.api_key is not None
    assert state.api_key not in done.stdout + as_json


def test_servers_have_the_ids_that_commands_take(cli_here: Cli, fake: Fake):
    """A catalog model is listed with its prefix, as whoever stops it writes it, in any spelling."""
    with lease(fake.spec(served_name="qwen3.6-35b-a3b:4bit"), policy=FAST):
        pass
    (described,) = json.loads(cli_here("ps", "--json").stdout)
    assert described["model"] == "vllm-mlx/qwen3.6-35b-a3b:4bit"
    assert described["served_model"] == "qwen3.6-35b-a3b:4bit"
    done = cli_here("stop", "vllm-mlx/Qwen3.6-35B-A3B-4bit")
    assert done.stderr == "stopped `vllm-mlx/qwen3.6-35b-a3b:4bit`\n"


@pytest.mark.parametrize("wanted", ["model", "--all"])
def test_stop_ends_the_server(cli_here: Cli, fake: Fake, wanted: str):
    """When the command returns, nobody listens any more."""
    start(fake)
    port = fake.state().port
    assert port is not None
    done = cli_here("stop", str(fake.model) if wanted == "model" else wanted)
    assert done.returncode == 0
    assert done.stderr == f"stopped `{fake.model}`\n"
    assert is_free(port)
    assert fake.state().reason == "user"


def test_stop_of_what_does_not_run(cli_here: Cli, fake: Fake):
    """An error for one model, none for all."""
    done = cli_here("stop", str(fake.model))
    assert done.returncode == 1
    assert "is not running" in done.stderr
    done = cli_here("stop", "--all")
    assert (done.returncode, done.stderr) == (0, "no server is running\n")


def test_several_are_stopped_and_what_does_not_run_is_told(cli_here: Cli, fake: Fake):
    """What runs is stopped, what does not is an error that names what does."""
    start(fake)
    done = cli_here("stop", "smol")
    assert done.returncode == 1
    assert f"hint: `{fake.model}` is running; --all stops every server" in done.stderr
    done = cli_here("stop", "smol", str(fake.model), "other")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"stopped `{fake.model}`",
        "error: `smol` is not running",
        "error: `other` is not running",
        "",
        "hint: no server is running",
    ]


def test_logs_of_the_only_server(cli_here: Cli, fake: Fake):
    """It need not be named; where nothing ever ran, that is said."""
    done = cli_here("logs")
    assert done.returncode == 2
    assert "no server is running" in done.stderr
    start(fake)
    assert "Uvicorn running" in cli_here("logs").stdout
    stop_server(fake.directory(), policy=FAST)
    assert "Uvicorn running" in cli_here("logs").stdout


@pytest.mark.parametrize("arguments", [["stop"], ["stop", "x/y", "--all"], ["stop", "--none"]])
def test_wrong_usage(cli_here: Cli, arguments: list[str]):
    """Wrong usage is exit code 2, said on standard error."""
    done = cli_here(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr


def test_logs_are_printed(cli_here: Cli, fake: Fake):
    """The whole log, its last lines, and also after the server has stopped."""
    start(fake)
    whole = cli_here("logs", str(fake.model)).stdout
    assert whole == fake.directory().log.read_text()
    assert "Uvicorn running" in whole
    assert (
        cli_here("logs", str(fake.model), "-n", "1").stdout == whole.splitlines(keepends=True)[-1]
    )
    stop_server(fake.directory(), policy=FAST)
    assert cli_here("logs", str(fake.model)).stdout.startswith(whole)


def test_a_log_gives_a_terminal_no_orders(fake: Fake):
    """Prompts stand in logs, and anybody may have written them."""
    start(fake)
    with fake.directory().log.open("ab") as log:
        log.write("\x1b]52;c;aGk=\x07 na\u00efve\n".encode())
    ours, theirs = pty.openpty()
    with subprocess.Popen(command("logs", str(fake.model), "-n", "1"), stdout=theirs) as printing:
        assert printing.wait(PATIENCE) == 0
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    assert shown.strip() == "\\x1b]52;c;aGk=\\x07 na\u00efve"


def test_logs_of_what_never_ran(cli_here: Cli, fake: Fake):
    """No log is an error."""
    done = cli_here("logs", str(fake.model))
    assert done.returncode == 1
    assert "has no log" in done.stderr


def test_logs_are_followed_into_the_next_start(fake: Fake, tmp_path: Path):
    """What is added appears, a new start's log from its beginning; Ctrl-C is exit code 130."""
    start(fake)
    output = tmp_path / "output"
    with output.open("wb") as file:
        following = subprocess.Popen(command("logs", "-f", str(fake.model)), stdout=file)
    try:
        eventually(lambda: output.read_text().count("Uvicorn running") == 1, "the first log")
        stop_server(fake.directory(), policy=FAST)
        eventually(lambda: "Saving prefix cache" in output.read_text(), "what was added")
        start(fake)
        eventually(lambda: output.read_text().count("Uvicorn running") == 2, "the second log")
        assert interrupt(following) == 130
    finally:
        following.kill()
        following.wait()


def test_a_reader_that_leaves_is_no_bug(fake: Fake):
    """`car-vllm logs ... | head` ends without a traceback."""
    fake.switch(load_lines=20_000)
    start(fake)
    with subprocess.Popen(
        command("logs", str(fake.model)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as printing:
        assert printing.stdout is not None
        assert printing.stderr is not None
        assert printing.stdout.readline()
        printing.stdout.close()
        assert printing.stderr.read() == b""


def test_version(cli_here: Cli):
    """The version of the package is the data."""
    assert cli_here("--version").stdout.strip() == version("langchain-car-vllm")


def test_errors_are_sentences(cli_here: Cli):
    """A mistake is told with what to do about it, without a traceback."""
    done = cli_here("show", "vllm-mlx/qwen3.6-35b-a3c:4bit")
    assert done.returncode == 1
    assert done.stderr.startswith("error: `vllm-mlx/qwen3.6-35b-a3c:4bit` is not a model id")
    assert "hint: did you mean `vllm-mlx/qwen3.6-35b-a3b:4bit`" in done.stderr
    assert "Traceback" not in done.stderr
