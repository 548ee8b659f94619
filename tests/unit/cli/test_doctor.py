"""`doctor` on good and bad machines."""

import json
import os
import socket
import sys
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults.support import FAST, Fake
from unit.cli.conftest import Cli
from unit.test_environment import BAD as BAD_VARIABLES

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.cli import install_checks, machine_checks
from langchain_car_vllm.cli.doctor import _run
from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.server import lease


def verdicts(cli: Cli, *arguments: str, **environment: str) -> dict[str, dict[str, str]]:
    done = cli("doctor", "--json", *arguments, **environment)
    results = {result["name"]: result for result in json.loads(done.stdout)}
    failed = any(result["verdict"] == "failed" for result in results.values())
    assert done.returncode == int(failed), done.stderr
    return results


def test_a_good_machine(cli: Cli, fake: Fake, home: Path):
    """Every check passes, and nothing is left in an empty home."""
    results = verdicts(cli)
    assert {result["verdict"] for result in results.values()} == {"ok"}, results
    assert "0.6.0" in results["runtime"]["said"]
    assert " are available" in results["memory"]["said"]
    assert list(home.iterdir()) == []
    table = cli("doctor").stdout
    assert [line.split()[0] for line in table.splitlines()] == ["ok"] * len(results)


def test_the_selftest(cli: Cli, fake: Fake, home: Path):
    """A tiny server is started, shared, killed and stopped, and the home stays as it was."""
    results = verdicts(cli, "--selftest")
    trials = {name: r for name, r in results.items() if name.startswith("selftest")}
    assert len(trials) == 8
    assert {result["verdict"] for result in trials.values()} == {"ok"}, trials
    assert list(home.iterdir()) == []


def test_a_budget_of_the_users_is_enough(monkeypatch: pytest.MonkeyPatch):
    """Where a sandbox does not tell how much memory there is; without one, that is the cure."""

    def refused() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(psutil, "virtual_memory", refused)
    with pytest.raises(ConfigurationError):
        machine_checks._memory()
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "8")
    assert machine_checks._memory().startswith("models may take 8.0 GB; ")


def test_what_is_wrong_is_found(cli: Cli, home: Path, tmp_path: Path):
    """A missing uv, a home that is a file, and a bad budget each fail on their own."""
    blocked = tmp_path / "file"
    blocked.touch()
    results = verdicts(cli, CAR_HOME=str(blocked), CAR_VLLM_MLX_MEMORY_GB="lots")
    assert results["home"]["verdict"] == "failed"
    assert results["locks"]["verdict"] == "failed"
    assert results["memory"]["verdict"] == "failed"
    assert results["host"]["verdict"] == "ok"
    assert results["port"]["verdict"] == "ok"


@pytest.mark.parametrize(
    "error",
    [
        psutil.AccessDenied(1),
        ValueError("no JSON"),
        IndexError(),
        UnicodeDecodeError("x", b"", 0, 1, "y"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_one_check_that_fails_oddly_does_not_end_the_others(error: Exception):
    """Whatever a sandbox or a broken install makes of one check, the rest is told."""

    def broken() -> str:
        raise error

    results = list(_run([("broken", broken), ("good", lambda: "all is well")]))
    assert [result.verdict for result in results] == ["failed", "ok"]
    assert type(error).__name__ in results[0].said


@pytest.mark.parametrize("name", BAD_VARIABLES)
def test_every_variable_that_fails_a_call_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, name: str
):
    """The check is one over what is refused at construction, with the same words."""
    bad = BAD_VARIABLES[name][0]
    monkeypatch.setenv(name, bad)
    with pytest.raises(ConfigurationError) as refused:
        ChatVllmMlx(model="a/b")
    with pytest.raises(Finding) as found:
        install_checks._variables()
    assert (found.value.said, found.value.hint) == (refused.value.message, refused.value.hint)


def test_all_variables_that_fail_are_told_at_once(cli: Cli, home: Path):
    """Those of the endpoint and of the Hub among them; no secret is shown."""
    (home / "file").touch()
    bad = {
        "CAR_VLLM_MLX_WIRED": "yes",
        "CAR_VLLM_MLX_MAX_QUEUE": "x",
        "CAR_VLLM_MLX_BASE_URL": "localhost:8000",
        "CAR_VLLM_MLX_API_KEY": "secr\u00e9t",
        "HF_ENDPOINT": "hf-mirror.com",
        "HF_TOKEN": "secr\u00e9t",
        "HF_HOME": str(home / "file"),
    }
    results = verdicts(cli, **bad)
    found = results["variables"]
    assert found["verdict"] == "failed"
    for name in [*bad][:5]:
        assert name in found["said"]
    assert "the token for the Hub" in found["said"]
    assert "secr" not in str(results)
    assert results["models"]["verdict"] == "failed"
    assert "cannot be written to" in results["models"]["said"]


def test_a_python_that_runs_no_supervisor_is_found(cli: Cli, tmp_path: Path):
    """What CAR_VLLM_PYTHON names is tried."""
    bare = tmp_path / "python3"
    bare.write_text("#!/bin/sh\necho 'No module named langchain_car_vllm' >&2; exit 1\n")
    bare.chmod(0o755)
    for python in ("/nonexistent/python3", str(bare)):
        found = verdicts(cli, CAR_VLLM_PYTHON=python)["python"]
        assert found["verdict"] == "failed"
        assert python in found["said"]
        assert "CAR_VLLM_PYTHON" in found["hint"]


def test_what_is_odd_is_a_warning(cli: Cli, tmp_path: Path):
    """An override that names no file, and no runtime, do not fail."""
    named = verdicts(cli, CAR_VLLM_MLX_BIN=str(tmp_path / "gone"), PATH="/usr/bin:/bin")
    assert named["runtime"]["verdict"] == "warning"
    assert "is ignored" in named["runtime"]["said"]
    missing = verdicts(cli, PATH="/usr/bin:/bin")
    assert missing["runtime"]["verdict"] == "warning"
    other = verdicts(cli, CAR_UV=str(tmp_path / "gone"))
    assert other["uv"]["verdict"] == "warning"
    assert "is ignored" in other["uv"]["said"]


@pytest.mark.parametrize(
    ("script", "verdict"),
    [
        ("exit 0", "failed"),
        ("exit 3", "failed"),
        ("echo usage: something else", "failed"),
        ("echo 'usage: vllm-mlx {serve,download}'", "ok"),
    ],
)
def test_a_binary_without_a_version_is_tried(cli: Cli, tmp_path: Path, script: str, verdict: str):
    """One that is something else fails here instead of at the first call; a wrapper passes."""
    binary = tmp_path / "vllm-mlx"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    found = verdicts(cli, CAR_VLLM_MLX_BIN=str(binary))["runtime"]
    assert found["verdict"] == verdict
    assert (verdict == "ok") is ("does not behave like vllm-mlx" not in found["said"])


@pytest.mark.parametrize(
    ("link", "checks"),
    [
        (".car", {"runtime", "home", "locks"}),
        (".car/visual-runtime", {"runtime"}),
        (".cache/huggingface", {"models"}),
    ],
)
def test_a_disk_that_is_not_connected_is_named(cli: Cli, home: Path, link: str, checks: set[str]):
    """What was moved to another disk is there again once that is."""
    (home / link).parent.mkdir(exist_ok=True)
    (home / link).symlink_to("/Volumes/Models")
    found = verdicts(cli, PATH="/usr/bin:/bin")
    assert {name for name, result in found.items() if result["verdict"] == "failed"} == checks
    for name in checks:
        assert f"`{home / link}` is a link to `/Volumes/Models`" in found[name]["said"]
        assert "connect the disk" in found[name]["hint"]
    assert ("is a link to" in cli("list").stderr) is (checks == {"models"})


@pytest.mark.parametrize("how", ["settings", "disk", "home", "link"])
def test_a_disk_of_lm_studio_that_is_not_connected_is_named(
    cli: Cli, home: Path, tmp_path: Path, how: str
):
    """Its models were passed over in silence, and downloaded again."""
    lost = Path("/Volumes/Models/lm") if how == "disk" else tmp_path / "unplugged"
    own = home / ".lmstudio"
    own.mkdir()
    if how == "home":
        (home / ".lmstudio-home-pointer").write_text(f"{lost}\n")
    elif how == "link":
        (own / "models").symlink_to(lost)
    else:
        (own / "settings.json").write_text(json.dumps({"downloadsFolder": str(lost)}))
    found = verdicts(cli)["models"]
    assert found["verdict"] == "warning"
    name = "`Models`" if how == "disk" else str(lost)
    assert name in found["said"]
    assert "connect the disk" in found["hint"]
    assert found["said"] in cli("list").stderr


def test_folders_of_lm_studio_that_are_there_or_were_never_made_are_no_lost_disk(
    cli: Cli, home: Path, tmp_path: Path
):
    """A new install has no folder of models yet, and one that is gone for good leaves settings."""
    moved = tmp_path / "moved"
    moved.mkdir()
    (home / ".lmstudio-home-pointer").write_text(f"{moved}\n")
    (home / ".lmstudio").mkdir()
    (home / ".lmstudio" / "settings.json").write_text('{"downloadsFolder": "~/Elsewhere"}')
    assert verdicts(cli)["models"]["verdict"] == "ok"


def test_a_home_that_others_may_write_to_is_found(cli: Cli, home: Path):
    """The first call would refuse it."""
    folder = home / ".car" / "run"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "vllm-py").mkdir()
    (folder / "vllm-py").chmod(0o777)
    found = verdicts(cli)["home"]
    assert found["verdict"] == "failed"
    assert found["hint"] == f"run `chmod go-w {folder / 'vllm-py'}`"


def test_a_disk_that_takes_several_names_for_a_folder_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It has to tell which of them it keeps, or two programs load one model twice."""
    machine_checks._check_spellings(tmp_path)
    (tmp_path / "\u00e9t\u00e9").rmdir()
    stat = os.stat

    def of_any_spelling(path, *arguments, **keywords):
        plain = unicodedata.normalize("NFC", str(path)).replace("\u00c9T\u00c9", "\u00e9t\u00e9")
        return stat(plain, *arguments, **keywords)

    monkeypatch.setattr(sys, "platform", "linux")  # a Mac can tell
    monkeypatch.setattr(os, "stat", of_any_spelling)
    with pytest.raises(Finding, match="several spellings"):
        machine_checks._check_spellings(tmp_path)


def test_a_program_that_knows_plain_names_alone_has_a_home(cli: Cli, fake: Fake):
    """A shell without a locale is no fault of the folder."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert verdicts(cli, **plain)["home"]["verdict"] == "ok"


def test_a_home_that_takes_no_runtime_is_found(cli: Cli, home: Path, tmp_path: Path):
    """Where the first call could not install the runtime, doctor says so, and its cure is one."""
    (home / ".car").touch()
    assert verdicts(cli, PATH="/usr/bin:/bin")["runtime"]["verdict"] == "failed"
    moved = verdicts(cli, PATH="/usr/bin:/bin", CAR_HOME=str(tmp_path / "elsewhere"))
    assert moved["runtime"]["verdict"] == "warning"
    assert str(tmp_path / "elsewhere") in moved["runtime"]["said"]


@pytest.mark.parametrize("folder", [".cache/huggingface/hub", ".lmstudio/models"])
def test_a_folder_of_models_that_may_not_be_read_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, folder: str
):
    """As by the privacy settings of macOS, which hide what is in a folder, not the folder."""
    refused = home / folder
    refused.mkdir(parents=True)
    scandir, listdir = os.scandir, os.listdir

    def refuse(look: Any) -> Any:
        def refusing(path: Any = ".") -> Any:
            if Path(path) == refused:
                raise PermissionError(1, "Operation not permitted", str(path))
            return look(path)

        return refusing

    monkeypatch.setattr(os, "scandir", refuse(scandir))
    monkeypatch.setattr(os, "listdir", refuse(listdir))
    with pytest.raises(Finding, match="may not be read: Operation not permitted") as found:
        machine_checks._models()
    assert isinstance(found.value, Warned) == ("lmstudio" in folder)
    assert found.value.hint


def test_a_model_that_cannot_be_served_is_named(cli: Cli, home: Path):
    """An odd repository in the cache is a warning that says which one, and why."""
    for number in range(5):
        snapshot = home / f".cache/huggingface/hub/models--org--odd{number}/snapshots/{'a' * 40}"
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
        (snapshot / "config.json").write_text('{"model_type": 7, "hidden_size": null}')
        (snapshot / "tokenizer.json").write_text("{}")
        (snapshot / "model.safetensors").write_bytes(b"no weights")
    found = verdicts(cli)["models"]
    assert found["verdict"] == "warning"
    assert "`org/odd0`: " in found["said"]
    assert "and 2 more" in found["said"]


def test_a_lost_supervisor_is_seen(cli: Cli, fake: Fake):
    """State that nobody keeps is a warning with the model's name, and is mended."""
    with lease(fake.spec(), policy=FAST):
        state = fake.state()
    process = state.supervisor.find()
    assert process is not None
    process.kill()
    fake.wait_until_unsupervised()
    servers = verdicts(cli)["servers"]
    assert servers["verdict"] == "warning"
    assert str(fake.model) in servers["said"]
    assert verdicts(cli)["servers"]["verdict"] == "ok"
    assert fake.state().phase == "stopped"


def test_a_port_that_is_not_held_is_found(monkeypatch: pytest.MonkeyPatch):
    """The port check fails where holding does not work, as for a socket that is not bound to it."""

    class Loose:
        def __init__(self) -> None:
            with closing(socket.create_server(("127.0.0.1", 0))) as free:
                self.number = free.getsockname()[1]

        def close(self) -> None:
            pass

    monkeypatch.setattr(machine_checks, "HeldPort", Loose)
    with pytest.raises(Finding, match="another program can bind"):
        dict(machine_checks.CHECKS)["port"]()
