"""`uninstall` removes what the package keeps, whole, and nothing beside it."""

import errno
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from faults.support import FAST, Fake
from unit.cli.conftest import Cli

from langchain_car_vllm.runtime.install_lock import install_lock
from langchain_car_vllm.runtime.marker import MARKER, Marker, write_marker
from langchain_car_vllm.server import lease, running_servers

REPOSITORY = "org/model"


@pytest.fixture
def runtime(home: Path) -> Path:
    """A managed runtime of ours, with its lock."""
    root = home / ".car" / "visual-runtime"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "python").write_bytes(b"\0" * 300_000)
    write_marker(root, Marker("complete", ours=True, requirements="x", version="0.6.0"))
    root.with_name("visual-runtime.lock").touch()
    return root


@pytest.fixture
def cache(home: Path) -> Path:
    """A prefix cache that a server saved."""
    folder = home / ".car" / "run" / "vllm-py" / "model-abc" / "prefix" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "entry").write_bytes(b"\0" * 1000)
    return folder


@pytest.fixture
def model(home: Path) -> Path:
    """A model of the Hub's cache that was downloaded from here, beside one that was not."""
    hub = home / ".cache" / "huggingface" / "hub"
    for name in ("models--org--model", "models--org--other"):
        (hub / name).mkdir(parents=True)
    (home / ".car" / "run" / "pull" / "org--model").mkdir(parents=True)
    return hub / "models--org--model"


def listing(home: Path) -> set[str]:
    """Return all there is below a folder."""
    return {str(path) for path in home.rglob("*")}


@pytest.mark.usefixtures("runtime", "cache", "model")
def test_a_dry_run_lists_and_leaves(cli_here: Cli, home: Path):
    """Each thing is named with its size, models as what stays; nothing changes."""
    before = listing(home)
    done = cli_here("uninstall", "--dry-run")
    assert done.returncode == 0, done.stderr
    kinds = [line.split("  ")[0] for line in done.stdout.splitlines()[1:]]
    assert kinds == ["run state", "run state", "runtime"]
    assert "would free 0.3 MB" in done.stderr
    assert "models that stay, unless you pass --models: org/model" in done.stderr
    assert listing(home) == before


@pytest.mark.usefixtures("runtime", "cache")
def test_nothing_is_left_but_what_is_the_users(cli_here: Cli, home: Path, fake: Fake, model: Path):
    """A running server is stopped; state, key, caches and runtime go; models and others stay."""
    before = {str(home / ".cache"), *listing(home / ".cache" / "huggingface")}
    (home / ".car" / "run" / "gateway.key").write_text("secret")
    with lease(fake.spec(), policy=FAST):
        pass
    done = cli_here("uninstall", "--yes")
    assert done.returncode == 0, done.stderr
    assert running_servers() == []
    assert not (home / ".car").exists()
    assert before <= listing(home)
    assert model.exists()
    assert (fake.model / "model.safetensors").exists()
    assert fake.binary.exists()


def test_models_when_asked(cli_here: Cli, model: Path):
    """Those that came from here go; another program's stays."""
    done = cli_here("uninstall", "--models", "--yes")
    assert done.returncode == 0, done.stderr
    assert not model.exists()
    assert (model.parent / "models--org--other").exists()


@pytest.mark.usefixtures("cache")
def test_a_dry_run_for_a_program(cli_here: Cli, home: Path, runtime: Path):
    """The same list as JSON; without --dry-run there is no such list."""
    listed = json.loads(cli_here("uninstall", "--dry-run", "--json").stdout)
    assert {"kind": "runtime", "path": str(runtime)}.items() <= listed[-1].items()
    assert listed[-1]["bytes"] > 0
    assert cli_here("uninstall", "--json").returncode == 2
    assert runtime.exists()


def test_nobody_is_there_to_ask(cli_here: Cli, home: Path, runtime: Path):
    """Without a terminal nothing is removed unless it is said."""
    before = listing(home)
    done = cli_here("uninstall")
    assert done.returncode == 1
    assert "hint: pass --yes" in done.stderr
    assert listing(home) == before
    assert runtime.exists()


@pytest.mark.parametrize("marker", [None, Marker("complete", ours=False, requirements="found")])
def test_a_runtime_that_something_else_made_stays(
    cli_here: Cli, home: Path, cache: Path, marker: Marker | None
):
    """CAR's own, or a folder that a variable names by mistake."""
    root = home / ".car" / "visual-runtime"
    root.mkdir(parents=True)
    (root / "letter").write_text("dear")
    if marker is not None:
        write_marker(root, marker)
    done = cli_here("uninstall", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"`{root}` stays: it was not made by this package" in done.stderr
    assert (root / "letter").exists()
    assert not cache.exists()


def test_an_installation_under_way_is_not_disturbed(cli_here: Cli, runtime: Path):
    """The runtime stays while another process holds its lock."""
    with install_lock(runtime.with_name("visual-runtime.lock"), pytest.fail):
        done = cli_here("uninstall", "--yes")
    assert done.returncode == 1
    assert "another process is installing" in done.stderr
    assert runtime.exists()


@pytest.mark.usefixtures("runtime")
def test_what_cannot_be_removed_keeps_nothing_else(
    cli_here: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
):
    """The error names it, and all else is gone."""
    run = home / ".car" / "run"
    (run / "vllm-py").mkdir(parents=True)
    remove = shutil.rmtree

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        if Path(path) == run / "vllm-py":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        remove(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    done = cli_here("uninstall", "--yes")
    assert done.returncode == 1
    assert f"`{run / 'vllm-py'}` cannot be removed" in done.stderr
    assert sorted(path.name for path in (home / ".car").iterdir()) == ["run"]


def test_what_a_link_leads_to_stays(cli_here: Cli, tmp_path: Path, runtime: Path):
    """A runtime on another disk goes by its link alone."""
    elsewhere = tmp_path / "disk"
    runtime.rename(elsewhere)
    runtime.symlink_to(elsewhere)
    assert cli_here("uninstall", "--yes").returncode == 0
    assert not runtime.is_symlink()
    assert (elsewhere / "bin" / "python").exists()


@pytest.mark.parametrize("name", ["letters", ".ssh", "letter.txt", ".Trashes"])
def test_what_somebody_put_beside_the_runtime_stays(
    cli_here: Cli, home: Path, runtime: Path, name: str
):
    """A disk that was empty when `CAR_VLLM_MLX_RUNTIME` named it is used for other things, too."""
    (runtime / name).mkdir()
    (runtime / name / "letter").write_text("dear")
    done = cli_here("uninstall", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"`{runtime}` stays: it holds other files" in done.stderr
    assert listing(home) >= {str(runtime / name / "letter")}
    assert [path.name for path in runtime.iterdir()] == [name]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
@pytest.mark.parametrize("has_systemctl", [True, False])
def test_the_service_goes_first(cli_here: Cli, home: Path, tmp_path: Path, *, has_systemctl: bool):
    """It is stopped where its program is there, and its file goes either way."""
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    if has_systemctl:
        notes = shlex.quote(str(tmp_path / "notes"))
        program.write_text(f'#!/bin/sh\necho "$@" >> {notes}\ntest "$2" != is-active\n')
        program.chmod(0o755)
    unit = home / ".config" / "systemd" / "user" / "car-vllm.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("")
    done = cli_here("uninstall", "--yes", PATH=str(program.parent))
    assert done.returncode == 0, done.stderr
    assert not unit.exists()
    assert (tmp_path / "notes").exists() == has_systemctl


def test_what_env_serves_goes_too(cli: Cli, home: Path, tmp_path: Path, fake: Fake):
    """A request to it would install and start everything anew; what is in a copy ends nothing."""
    address = urlsplit(json.loads(cli("env", str(fake.model), "--json").stdout)["OPENAI_BASE_URL"])
    copy = tmp_path / "copy"
    shutil.copytree(home / ".car", copy)
    assert cli("uninstall", "--yes", CAR_HOME=str(copy)).returncode == 0
    assert not copy.exists() or not (copy / "run").exists()
    socket.create_connection((address.hostname, address.port), 5).close()
    assert cli("uninstall", "--yes").returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port), 5)
    assert not (home / ".car").exists()


def test_nothing_is_kept(cli_here: Cli):
    """It says so, and that is no error."""
    done = cli_here("uninstall")
    assert (done.returncode, done.stderr) == (0, "nothing is stored on this machine\n")


def test_what_killed_writers_left_goes_too(cli_here: Cli, home: Path, runtime: Path):
    """A draft of the runtime's marker, or of a note beside the run state, is none of the user's."""
    run = home / ".car" / "run"
    run.mkdir(exist_ok=True)
    for path in (runtime / MARKER, run / "metal.json", run / "tested-installs.json"):
        for many_writers in (False, True) if path.parent == run else (False,):
            script = f"""
import os, pathlib
from langchain_car_vllm.support.replaced_files import replaced_file
with replaced_file(pathlib.Path({str(path)!r}), many_writers={many_writers}):
    os.kill(os.getpid(), 9)
"""
            assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert len([path for path in home.rglob(".*.*") if path.is_file()]) == 6
    assert cli_here("uninstall", "--yes").returncode == 0
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert not runtime.exists()
