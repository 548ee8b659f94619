"""`service`, with the system's own programs replaced by executables that note their arguments."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.hub import running_hub, write_model
from unit.cli.conftest import Cli
from unit.cli.model_folders import fill
from unit.cli.services import SERVICE

from langchain_car_vllm.cli.service import (
    Supervisor,
    find_supervisor,
    launchd,
    systemd,
)
from langchain_car_vllm.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "64")


@pytest.fixture
def _folder_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)


def free_port() -> str:
    """Return one that a service can have."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


@pytest.fixture
def port() -> str:
    """One that a service can have."""
    return free_port()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A `systemctl` that notes what it is asked for."""
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    running = shlex.quote(str(tmp_path / "running"))
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {shlex.quote(str(tmp_path / "notes"))}
case "$2" in
enable) touch {running} ;;
disable) rm {running} ;;
is-active) test -e {running} ;;
esac
"""
    )
    program.chmod(0o755)
    return tmp_path / "notes"


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_installed_seen_and_removed(cli_here: Cli, notes: Path, home: Path, port: str):
    """The unit is written, started, seen and removed again; nothing is left."""
    path = f"{notes.parent / 'bin'}:/usr/bin:/bin"
    unit = home / ".config" / "systemd" / "user" / "car-vllm.service"
    assert cli_here("service", "status", PATH=path).returncode == 1
    done = cli_here("service", "install", "mlx-community/Qwen3-4B-4bit", "--port", port, PATH=path)
    assert done.returncode == 0, done.stderr
    assert f'Environment="PATH={path}"' in unit.read_text()
    assert (
        f'"mlx-community/Qwen3-4B-4bit" "--host" "127.0.0.1" "--port" "{port}"' in unit.read_text()
    )
    assert cli_here("service", "status", PATH=path).returncode == 0
    assert json.loads(cli_here("service", "status", "--json", PATH=path).stdout) == {
        "file": str(unit),
        "running": True,
    }
    assert cli_here("service", "remove", PATH=path).returncode == 0
    assert not unit.exists()
    assert notes.read_text().splitlines() == [
        "--user daemon-reload",
        "--user enable --now car-vllm.service",
        "--user is-active car-vllm.service",
        "--user is-active car-vllm.service",
        "--user disable --now car-vllm.service",
        "--user is-active car-vllm.service",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_what_is_meant_here_is_meant_there(
    cli_here: Cli,
    notes: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """A relative model and all settings hold for a service, which starts elsewhere; no secrets."""
    fill(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    given = {
        "CAR_VLLM_MLX_RUNTIME": "/srv/runtime",
        "CAR_VLLM_MLX_WIRED": "0",
        "CAR_VLLM_MLX_API_KEY": "sk-secret",
        "CAR_UV": "bin/uv",
        "HUGGINGFACE_HUB_CACHE": "models",
        "HF_TOKEN": "hf_secret",
        "HF_ENDPOINT": "https://me:secret@hub.example.com",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HTTPS_PROXY": "http://proxy.example.com:3128",
        "http_proxy": "me:secret@proxy.example.com:3128",
        "NO_PROXY": "intern.example.com",
        "UV_DEFAULT_INDEX": "https://pypi.example.com/simple",
        "UV_INDEX": "a=https://a.example.com b=https://me:secret@b.example.com",
        "UV_INDEX_A_PASSWORD": "secret",
        "UV_INDEX_B_USERNAME": "secret",
        "UV_INDEX_URL": "https://pypi.example.com/simple?token=secret",
        "UV_EXTRA_INDEX_URL": "https://a.example.com https://me:secret@b.example.com",
        "UV_GITHUB_TOKEN": "secret",
        "HF_APIKEY": "secret",
        "HF_AUTH": "secret",
        "CAR_VLLM_MLX_SPEC": "vllm-mlx @ https://me:secret@example.com/a.zip",
        "UV_KEYRING_PROVIDER": "subprocess",
        "REQUESTS_CA_BUNDLE": "/etc/company.pem",
    }
    done = cli_here(
        "service",
        "install",
        "./model",
        "--port",
        free_port(),
        "--engine",
        "simple",
        "--server-arg=--x",
        PATH=f"{notes.parent / 'bin'}:/bin",
        **given,
    )
    assert done.returncode == 0, done.stderr
    unit = (home / ".config" / "systemd" / "user" / "car-vllm.service").read_text()
    assert f'"serve" "{tmp_path / "model"}"' in unit
    assert '"--engine" "simple" "--server-arg=--x"' in unit
    for kept in (
        "CAR_VLLM_MLX_RUNTIME=/srv/runtime",
        "CAR_VLLM_MLX_WIRED=0",
        f"CAR_UV={tmp_path}/bin/uv",
        f"HUGGINGFACE_HUB_CACHE={tmp_path}/models",
        "HF_HUB_OFFLINE=1",
        "HF_HUB_DISABLE_XET=1",
        "HTTPS_PROXY=http://proxy.example.com:3128",
        "NO_PROXY=intern.example.com",
        "UV_DEFAULT_INDEX=https://pypi.example.com/simple",
        "UV_KEYRING_PROVIDER=subprocess",
        "REQUESTS_CA_BUNDLE=/etc/company.pem",
    ):
        assert f'Environment="{kept}"' in unit
    assert "secret" not in unit


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_nobody_else_may_read_or_write_what_is_to_run(
    cli_here: Cli, notes: Path, home: Path, port: str
):
    """An index may hold a token in its path; launchd refuses a file that a group may write to."""
    former = os.umask(0)
    try:
        done = cli_here(
            *("service", "install", "mlx-community/Qwen3-4B-4bit", "--port", port),
            PATH=f"{notes.parent / 'bin'}:/usr/bin:/bin",
        )
    finally:
        os.umask(former)
    assert done.returncode == 0, done.stderr
    unit = home / ".config" / "systemd" / "user" / "car-vllm.service"
    modes = [path.stat().st_mode & 0o777 for path in (home / ".config", unit.parent, unit)]
    assert modes == [0o755, 0o755, 0o600]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_a_former_service_has_ended_before_the_next(cli_here: Cli, notes: Path, port: str):
    """One that takes a moment to end is waited for: launchd would refuse to start the next."""
    running = notes.with_name("running")
    (notes.parent / "bin" / "systemctl").write_text(
        f"""#!/bin/sh
running={shlex.quote(str(running))}
case "$2" in
enable) test ! -s $running || exit 5; echo xxx > $running ;;
is-active) test -s $running || exit 3; test -e $running.ending && truncate -s -1 $running; exit 0 ;;
disable) touch $running.ending ;;
esac
"""
    )
    path = f"{notes.parent / 'bin'}:/usr/bin:/bin"
    for _ in range(2):
        done = cli_here(
            "service", "install", "mlx-community/Qwen3-4B-4bit", "--port", port, PATH=path
        )
        assert done.returncode == 0, done.stderr
    assert running.with_suffix(".ending").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_a_service_whose_program_is_gone_is_told(
    cli_here: Cli, notes: Path, home: Path, tmp_path: Path, port: str
):
    """Its Python was upgraded, or its environment made anew; it fails at every login."""
    path = f"{notes.parent / 'bin'}:/usr/bin:/bin"
    assert (
        cli_here(
            "service", "install", "mlx-community/Qwen3-4B-4bit", "--port", port, PATH=path
        ).returncode
        == 0
    )
    unit = home / ".config" / "systemd" / "user" / "car-vllm.service"
    unit.write_text(unit.read_text().replace(sys.executable, "/gone/my python"))
    notes.with_name("running").unlink()
    for words in ([], ["--json"]):
        done = cli_here("service", "status", *words, PATH=path)
        assert done.returncode == 1
        assert "`/gone/my python`, is gone" in done.stderr
        assert "hint: run `car-vllm service install` again" in done.stderr
    unit.write_text("[Service]\n")
    assert cli_here("service", "status", PATH=path).stderr == ""


@pytest.mark.parametrize("keeper", [launchd(Path("/home"), 501), systemd(Path("/home"))])
@pytest.mark.parametrize("program", ["/opt/py thon/bin/python", '/a"b\\c/100%/$HOME/py'])
def test_the_program_of_a_service_is_read_as_it_was_written(keeper: Supervisor, program: str):
    """Whatever its path holds."""
    service = SERVICE._replace(command=[program, "-c", "x"])
    assert keeper.program(keeper.encode(service)) == program


def test_a_unit_holds_a_path_that_is_no_text():
    """Linux lets a home have any bytes."""
    service = SERVICE._replace(command=["/b\udce9/python"])
    keeper = systemd(Path("/home"))
    assert b"/b\xe9/python" in keeper.encode(service)
    assert keeper.program(keeper.encode(service)) == service.command[0]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "needs a key that you choose"),
        (["--api-key-file", "none"], "the key file `none` cannot be read: No such file"),
        (["--port", "TAKEN"], "cannot listen on"),
    ],
)
def test_what_cannot_be_served_is_no_service(
    cli_here: Cli, notes: Path, home: Path, words: list[str], said: str
):
    """The system would start it again and again, and nobody would see why it fails."""
    path = f"{notes.parent / 'bin'}:/usr/bin:/bin"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        given = [str(listener.getsockname()[1]) if word == "TAKEN" else word for word in words]
        done = cli_here("service", "install", "mlx-community/Qwen3-4B-4bit", *given, PATH=path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert not notes.exists()
    assert not (home / ".config").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
@pytest.mark.parametrize(
    ("model", "variables", "said"),
    [
        ("mlx-community/Qwen3-4B-4bt", {}, "the Hub has no such repository"),
        ("mlx-community/Qwen3-4B-4bit", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ("vllm-mlx/gemma-4-12b-it", {"CAR_VLLM_MLX_MEMORY_GB": "1"}, "all models together"),
        ("./folder", {}, "safetensors"),
    ],
)
@pytest.mark.usefixtures("socket_enabled", "_folder_without_weights")
def test_what_cannot_start_is_no_service(
    cli_here: Cli, notes: Path, model: str, variables: dict[str, str], said: str
):
    """A misspelt model, one without weights, one that does not fit or may not be fetched."""
    with running_hub() as hub:
        hub.repositories["mlx-community/gemma-4-12B-it-4bit"] = write_model(notes.parent / "origin")
        given = {"HF_ENDPOINT": hub.endpoint, "PATH": f"{notes.parent / 'bin'}:/bin", **variables}
        done = cli_here("service", "install", model, "--port", free_port(), **given)
    assert done.returncode == 1
    assert said in done.stderr
    assert not notes.exists()


@pytest.mark.parametrize(("word", "meant"), [("uninstall", "remove"), ("start", "install")])
def test_words_of_other_keepers_of_services(cli_here: Cli, word: str, meant: str):
    """The nearest name of a command would be its opposite."""
    help_of = {w: cli_here("service", w, "-h").stdout for w in (word, meant)}
    assert help_of[word].partition("\n")[2] == help_of[meant].partition("\n")[2]


def test_a_system_without_services(cli_here: Cli, port: str):
    """The error names what can be done instead."""
    done = cli_here(
        "service", "install", "mlx-community/Qwen3-4B-4bit", "--port", port, PATH="/nonexistent"
    )
    assert done.returncode == 1
    assert "hint: run `car-vllm serve` in a terminal instead" in done.stderr


def test_the_unit_is_one_that_systemd_reads(tmp_path: Path):
    """`systemd-analyze verify` accepts it where it is installed; words keep their spaces."""
    text = systemd(tmp_path).encode(SERVICE).decode()
    assert 'ExecStart="/opt/py thon/bin/python" "-c" "print(\\"100%%\\")"' in text
    assert '"$$HOME"' in text
    assert 'Environment="CAR_HOME=/srv/car home/$x%%"' in text
    assert "StandardOutput=append:/srv/100%%.log" in text
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        unit = tmp_path / "car-vllm.service"
        runnable = SERVICE._replace(command=[sys.executable, *SERVICE.command[1:]])
        unit.write_bytes(systemd(tmp_path).encode(runnable))
        done = subprocess.run(
            [analyze, "verify", str(unit)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_without_a_home():
    """A service has nowhere to be kept."""
    with pytest.raises(ConfigurationError, match="home"):
        find_supervisor("linux", None, 501)
