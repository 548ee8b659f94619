"""Programs that are led to a model: by `env`, by the line to try, and by `launch`."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from faults.support import PATIENCE, Fake
from unit.cli.conftest import Cli, command
from unit.cli.model_folders import fill

from langchain_car_vllm.cli.gateway_process import find_key_file

_ASKS = """
import os, urllib.request
for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):  # each is the first that some library reads
    request = urllib.request.Request(os.environ[name] + "/models")
    request.add_header("Authorization", "Bearer " + os.environ["OPENAI_API_KEY"])
    print(urllib.request.urlopen(request).status)
"""
ELSEWHERE = "http://127.0.0.1:1"


@pytest.fixture
def led_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of a user's that lead programs to other servers, or through a proxy."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_BASE_URL"):
        monkeypatch.setenv(name, f"{ELSEWHERE}/v1")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, ELSEWHERE)


@pytest.mark.usefixtures("led_elsewhere")
def test_variables_for_a_shell(fake: Fake):
    """`eval "$(car-vllm env MODEL)"` is all that another program needs, wherever it went before."""
    script = (
        f'eval "$({shlex.join(command("env", str(fake.model)))})"; '
        f"{shlex.quote(sys.executable)} -c {shlex.quote(_ASKS)}"
    )
    shell = subprocess.run(
        ["/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        start_new_session=True,
        check=False,
    )
    assert shell.stdout == "200\n200\n", shell.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="it is a line for curl")
@pytest.mark.usefixtures("led_elsewhere")
def test_the_line_to_try_shows_its_key_to_nobody(fake: Fake, tmp_path: Path):
    """A proxy would hear key and prompt, and all users of the machine see a command line."""
    curl = tmp_path / "bin" / "curl"
    curl.parent.mkdir()
    arguments = tmp_path / "arguments"
    curl.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {arguments}\nexec {shutil.which("curl")} "$@"\n'
    )
    curl.chmod(0o755)
    with subprocess.Popen(
        command("serve", str(fake.model), "--port", "0"),
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    ) as process:
        try:
            line = next(line for line in process.stdout if line.startswith("try it"))
            done = subprocess.run(
                ["/bin/sh", "-c", line.removeprefix("try it")],
                capture_output=True,
                env=os.environ | {"PATH": f"{curl.parent}{os.pathsep}{os.environ['PATH']}"},
                timeout=PATIENCE,
                check=True,
            )
        finally:
            process.terminate()
    assert json.loads(done.stdout)["choices"]
    words = arguments.read_text().splitlines()
    assert words[words.index("--noproxy") + 1] == "*"
    assert find_key_file(None, "127.0.0.1").read_text().strip() not in arguments.read_text()


@pytest.mark.parametrize("name", ["aider", "dcode"])
@pytest.mark.usefixtures("led_elsewhere")
def test_a_tool_is_launched_on_a_model(cli: Cli, fake: Fake, tmp_path: Path, name: str):
    """The tool gets address, key and model, its own arguments, and its exit code comes back."""
    tool = tmp_path / "bin" / name
    tool.parent.mkdir()
    asks = f"{shlex.quote(sys.executable)} -c {shlex.quote(_ASKS)}"
    tool.write_text(f'#!/bin/sh\necho "$@"\n{asks}\nexit 7\n')
    tool.chmod(0o755)
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    done = cli("launch", name, str(fake.model), "--", "--no-git", PATH=path)
    assert done.returncode == 7, done.stderr
    said, *statuses = done.stdout.splitlines()
    assert said.endswith(f"{fake.model} --no-git")
    assert statuses == ["200", "200"]


def test_all_that_claude_code_asks_goes_to_the_model(cli: Cli):
    """Its subagents and its work in the background ask for models by their rank."""
    done = cli("launch", "claude", "org/model", "--dry-run", CLAUDE_CODE_USE_BEDROCK="1")
    said = dict(line.split("=", 1) for line in done.stdout.splitlines()[:-1])
    ranks = [said[f"ANTHROPIC_DEFAULT_{rank}_MODEL"] for rank in ("HAIKU", "SONNET", "OPUS")]
    assert [*ranks, said["CLAUDE_CODE_SUBAGENT_MODEL"]] == ["org/model"] * 4
    assert said["CLAUDE_CODE_USE_BEDROCK"] == "''"


@pytest.mark.parametrize("tool", ["aider", "claude", "codex", "dcode", "opencode"])
def test_a_dry_run_starts_nothing(cli: Cli, tool: str):
    """What would be run is shown for every tool, for a model that need not be here."""
    done = cli("launch", tool, "mlx-community/Qwen3-4B-4bit", "--dry-run", "--", "hello there")
    assert done.returncode == 0, done.stderr
    last = shlex.split(done.stdout.splitlines()[-1])
    assert last[0] == tool
    assert last[-1] == "hello there"
    assert "Qwen3-4B-4bit" in done.stdout


def test_any_folder_is_named_to_codex(cli: Cli, tmp_path: Path):
    """Its settings are TOML, in which JSON's escapes are not all known."""
    folder = tmp_path / '\U0001f917 "b" \\ {c}'
    fill(folder)
    done = cli("launch", "codex", str(folder), "--dry-run")
    words = shlex.split(done.stdout.splitlines()[-1])
    settings = tomllib.loads("\n".join(words[2::2]))
    assert settings["model"] == str(folder)


def test_a_tool_that_is_missing(cli: Cli, fake: Fake):
    """The error says how to install it; nothing is started."""
    done = cli("launch", "codex", str(fake.model), PATH="/nonexistent")
    assert (done.returncode, fake.starts()) == (1, [])
    assert "hint: install it: `npm install" in done.stderr
