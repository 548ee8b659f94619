"""`service` on a Mac: what is written for launchd, and what it is asked and answers."""

import plistlib
from pathlib import Path

import pytest
from unit.cli.services import SERVICE

from langchain_car_vllm.cli import service
from langchain_car_vllm.cli.service import Service, find_supervisor, launchd, private_folders
from langchain_car_vllm.errors import ConfigurationError


@pytest.mark.parametrize(
    ("state", "runs"),
    [("running", True), ("not running", False), ("waiting", False), ("spawn scheduled", False)],
)
def test_launchd_knows_what_does_not_run(state: str, runs: bool):
    """It answers for what it tries to start again and again, too."""
    said = (
        "gui/501/dev.car.vllm-mlx = {\n\tactive count = 1\n\ttype = LaunchAgent\n"
        f"\tstate = {state}\n\n\tendpoints = {{\n\t\tstate = active\n\t}}\n}}\n"
    )
    agent = launchd(Path("/home"), 501)
    assert agent.is_idle(said) is not runs
    assert not agent.is_idle("another format\n")


def test_the_agent_of_a_mac(tmp_path: Path):
    """The property list holds the command as it is, and launchd is told by the user's domain."""
    agent = find_supervisor("darwin", tmp_path, 501)
    assert agent.file == tmp_path / "Library/LaunchAgents/dev.car.vllm-mlx.plist"
    content = plistlib.loads(agent.encode(SERVICE))
    assert content["ProgramArguments"] == SERVICE.command
    assert content["EnvironmentVariables"] == SERVICE.environment
    assert content["RunAtLoad"] is True
    assert agent.start == [
        ["launchctl", "enable", "gui/501/dev.car.vllm-mlx"],
        ["launchctl", "bootstrap", "gui/501", str(agent.file)],
    ]
    assert agent.stop == ["launchctl", "bootout", "gui/501/dev.car.vllm-mlx"]


@pytest.mark.parametrize("logged_in", [True, False])
def test_a_mac_that_nobody_is_logged_in_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, logged_in: bool
):
    """Over SSH alone launchd has no session to keep a service in, and says so in riddles."""
    program = tmp_path / "launchctl"
    program.write_text(
        f"""#!/bin/sh
case "$1 $2" in
bootstrap*) echo "Bootstrap failed: 5: Input/output error" >&2; exit 5 ;;
"print gui/501") exit {0 if logged_in else 125} ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(ConfigurationError, match="Input/output error") as caught:
        service._start(find_supervisor("darwin", tmp_path, 501))
    assert ("screen" in caught.value.hint) is not logged_in


def test_what_macos_keeps_from_services_is_told():
    """A terminal may read the folders where projects lie, and what launchd starts may not."""
    home = Path("/Users/me")
    words = ["/Users/me/Documents/x/.venv/bin/python", "-c", "org/model", "/Users/me/Documents/key"]
    meant = Service(words, {"HF_HOME": "/Volumes/ssd/hf"}, Path("/Users/me/.car/log"))
    assert private_folders(meant, home, "darwin") == ["/Users/me/Documents", "/Volumes"]
    assert private_folders(meant, home, "linux") == []
    assert private_folders(meant, None, "darwin") == []
    elsewhere = meant._replace(command=["/Users/me/Documentation/python"], environment={})
    assert private_folders(elsewhere, home, "darwin") == []
