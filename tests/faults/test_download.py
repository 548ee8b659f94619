"""The download inside a start: seen by who waits, ended with its supervisor, told when it fails."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fakes.hub import running_hub, write_model
from faults.support import FAST, PATIENCE, Background, Fake, ask, eventually, processes_of

from langchain_car_vllm.errors import (
    InsufficientMemoryError,
    ModelDownloadError,
    ServerStoppedError,
)
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import ServerSpec, directory_of, lease, stop_server
from langchain_car_vllm.server.state import read_state
from langchain_car_vllm.server.supervisor.fetch import Download

POLICY = dataclasses.replace(FAST, download_tick=0.01)
SPEC = ServerSpec(source="org/model", served_name="org/model")


@pytest.fixture
def hub(fake: Fake) -> Fake:
    """A binary that is not a Python script, and a model that it can download."""
    real = fake.binary.rename(fake.binary.with_name("real"))
    fake.binary.write_text(f'#!/bin/sh\nexec "{real}" "$@"\n')
    fake.binary.chmod(0o755)
    fake.switch(download_from=str(fake.model))
    return fake


def call(spec: ServerSpec = SPEC) -> str:
    with lease(spec, policy=POLICY) as held:
        return ask(held.endpoint)


def wait_for_download() -> None:
    def reached() -> bool:
        state = read_state(directory_of(SPEC).state)
        log = directory_of(SPEC).path / "download.log"
        return bool(state and state.phase == "download" and log.exists() and log.stat().st_size)

    eventually(reached, "the download")


def test_model_is_downloaded_once_and_served(hub: Fake):
    """The first call downloads, the second server finds the model."""
    seen: list[Progress] = []
    with lease(SPEC, policy=POLICY, on_progress=seen.append) as held:
        assert ask(held.endpoint)
    assert "download" in [progress.stage for progress in seen]
    stop_server(directory_of(SPEC), policy=POLICY)
    hub.switch(download_error="must not be asked again")
    assert call()


def test_relative_folder_in_the_servers_environment_is_the_users(
    hub: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`server_env={"HF_HOME": "./hf"}` means the folder from which the program was started."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    spec = dataclasses.replace(SPEC, server_env=(("HF_HOME", "./hf"),))
    assert call(spec)
    assert (tmp_path / "work/hf/hub/models--org--model/snapshots/c0ffee/config.json").is_file()
    stop_server(directory_of(spec), policy=POLICY)
    hub.switch(download_error="must not be asked again")
    assert call(spec), "it is found there the next time"


def test_progress_reaches_every_waiting_process(hub: Fake, home: Path):
    """Two callers and another process are told of the same bytes while one download runs."""
    hub.switch(download_from=str(hub.model), download_gate=hub.gate("download"))
    code = f"""
from langchain_car_vllm.server import Policy, ServerSpec, lease
spec = ServerSpec(source="org/model", served_name="org/model")
def tell(progress):
    print(progress.stage, progress.done, flush=True)
with lease(spec, policy=Policy.from_dict({POLICY.to_dict()!r}), on_progress=tell):
    pass
"""
    seen: tuple[list[Progress], list[Progress]] = ([], [])

    def wait(number: int) -> None:
        with lease(SPEC, policy=POLICY, on_progress=seen[number].append):
            pass

    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        callers = [Background(lambda number=number: wait(number)) for number in (0, 1)]
        wait_for_download()
        blobs = home / ".cache/huggingface/hub/models--org--model/blobs"
        blobs.mkdir(parents=True)
        (blobs / "part.incomplete").write_bytes(b"x" * 1234)
        assert other.stdout is not None
        lines = iter(other.stdout.readline, "")
        assert "download 1234\n" in lines
        for heard in seen:
            eventually(lambda: any(p.done == 1234 for p in heard), "the bytes")  # noqa: B023
        hub.open_gate("download")
        for caller in callers:
            caller.result()
        assert list(lines)[-1] == "ready None\n"
        assert other.wait(PATIENCE) == 0
    assert len(hub.starts()) == 1


def test_a_repository_is_downloaded_by_one_at_a_time(hub: Fake):
    """A pull beside a first call waits, shows the same bytes, and fetches nothing itself."""
    hub.switch(download_from=str(hub.model), download_gate=hub.gate("download"))
    calling = Background(call)
    wait_for_download()
    pull = Download(SPEC, hub.binary, POLICY)
    try:
        progress = pull.step()
        assert progress is not None
        assert progress.detail == "another process is downloading `org/model`"
        assert not pull.log.exists()
        hub.open_gate("download")
        eventually(lambda: pull.step() is None, "the end of the other's download")
        assert pull.snapshot is not None
        assert not pull.log.exists()
    finally:
        pull.end()
    assert calling.result()


def test_a_download_that_ends_early_is_taken_over(hub: Fake):
    """Who waited for another's download goes on with it when that one is stopped."""
    hub.switch(download_from=str(hub.model), download_gate=hub.gate("download"))
    first, second = Download(SPEC, hub.binary, POLICY), Download(SPEC, hub.binary, POLICY)
    try:
        assert first.step().detail == "downloading `org/model`"
        assert second.step().detail == "another process is downloading `org/model`"
        first.end()
        assert second.step().detail == "downloading `org/model`"
        hub.open_gate("download")
        eventually(lambda: second.step() is None, "the download")
    finally:
        first.end()
        second.end()
    assert not processes_of(hub.root)


def test_a_download_that_is_done_holds_nobody_up(hub: Fake):
    """Whoever fetched the model may have been suspended meanwhile, and keep its lock."""
    hub.switch(download_from=str(hub.model), download_gate=hub.gate("download"))
    suspended, other = Download(SPEC, hub.binary, POLICY), Download(SPEC, hub.binary, POLICY)
    try:
        assert suspended.step().detail == "downloading `org/model`"
        assert other.step().detail == "another process is downloading `org/model`"
        hub.open_gate("download")
        eventually(lambda: other.step() is None, "the other's download")
    finally:
        suspended.end()
        other.end()


@pytest.mark.parametrize("folder", [None, "My Projects"])
def test_a_model_that_cannot_fit_is_refused_before_its_download(
    hub: Fake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str | None,
    socket_enabled: None,
):
    """The Hub's listing is enough: nothing of the weights is fetched, nothing is started.

    Also where the Python that asks has a space in its path, and no packages of its own.
    """
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "0.5")
    if folder is not None:
        python = tmp_path / folder / "python"
        python.parent.mkdir()
        python.symlink_to(Path(sys.executable).resolve())
        monkeypatch.setenv("CAR_VLLM_PYTHON", str(python))
    with running_hub() as listing:
        monkeypatch.setenv("HF_ENDPOINT", listing.endpoint)
        listing.repositories["org/model"] = write_model(tmp_path / "origin", weights=1000)
        listing.wrong_size = 10**9
        with pytest.raises(InsufficientMemoryError, match=r"weights take 1\.0 GB.* 0\.5 GB"):
            call()
        assert any("config.json" in path for _, path, _ in listing.requests)
        assert not any(path.endswith(".safetensors") for _, path, _ in listing.requests)
    assert hub.starts() == []
    assert not (directory_of(SPEC).path / "download.log").exists()


def test_failing_download_keeps_its_type(hub: Fake):
    """What the child said last becomes cause and cure."""
    hub.switch(download_error="GatedRepoError: 403 Client Error. Cannot access gated repo")
    with pytest.raises(ModelDownloadError, match="gated") as caught:
        call()
    assert "HF_TOKEN" in (caught.value.hint or "")


def test_a_repository_without_a_model_is_told(hub: Fake):
    """A download that went well and brought nothing to serve is an error that says so."""
    (hub.model / "config.json").unlink()
    with pytest.raises(ModelDownloadError, match="has no model that vllm-mlx can serve") as caught:
        call()
    assert "safetensors" in (caught.value.hint or "")


def test_download_without_progress_ends_at_the_stall_limit(hub: Fake):
    """Silence is given up; slowness is not."""
    hub.switch(download_gate=hub.gate("download"))
    spec = SPEC
    with pytest.raises(ModelDownloadError, match="no progress") as caught:
        lease(spec, policy=dataclasses.replace(POLICY, download_stall=0.3)).__enter__()
    assert caught.value.is_retryable


def test_stop_while_downloading_leaves_nobody(hub: Fake):
    """A stop ends the child, and who waits is told."""
    hub.switch(download_gate=hub.gate("download"))
    waiting = Background(call)
    wait_for_download()
    assert stop_server(directory_of(SPEC), policy=POLICY)
    with pytest.raises(ServerStoppedError):
        waiting.result()
    assert not processes_of(hub.root)


def test_supervisor_killed_while_downloading_takes_the_child_along(hub: Fake):
    """The download child dies with its supervisor, and the waiting call gets a new one."""
    hub.switch(download_gate=hub.gate("download"), download_from=str(hub.model))
    waiting = Background(call)
    wait_for_download()
    state = read_state(directory_of(SPEC).state)
    assert state is not None
    children = set(psutil.Process(state.supervisor.pid).children()) & set(processes_of(hub.root))
    assert children
    os.kill(state.supervisor.pid, signal.SIGKILL)
    eventually(lambda: not children & set(processes_of(hub.root)), "the end of the child")
    hub.open_gate("download")
    assert waiting.result() == "tok0 tok1 tok2 "


def test_download_can_be_forbidden(hub: Fake):
    """`auto_pull=False` refuses before anything is fetched."""
    with pytest.raises(ModelDownloadError, match="auto_pull=False"):
        call(dataclasses.replace(SPEC, auto_pull=False))
