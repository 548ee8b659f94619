"""Starting: once for everybody, reported when it fails, never cancelled by a caller."""

import asyncio
import dataclasses
import shutil
import socket
import threading
import time
from contextlib import suppress

import pytest
from faults.support import FAST, Background, ClientProcess, Fake, ask, eventually

from langchain_car_vllm.errors import ServerStartError, ServerStartingError
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import alease, lease


async def test_twenty_threads_twenty_tasks_five_processes_start_one_server(fake: Fake):
    """However many ask at once, one server starts and all get it."""
    fake.switch(load_gate=fake.gate("load"))
    processes = [ClientProcess(fake) for _ in range(5)]
    together = threading.Barrier(20)

    def in_thread() -> int:
        together.wait()
        with lease(fake.spec(), policy=FAST) as held:
            return held.endpoint.generation

    async def in_task() -> int:
        async with alease(fake.spec(), policy=FAST) as held:
            return held.endpoint.generation

    threads = [Background(in_thread) for _ in range(20)]
    tasks = [asyncio.create_task(in_task()) for _ in range(20)]
    await asyncio.to_thread(lambda: fake.wait_for_phase("load"))
    for process in processes:
        assert await asyncio.to_thread(process.read) == "began"
    fake.open_gate("load")
    generations = {await task for task in tasks} | {thread.result() for thread in threads}
    for process in processes:
        assert process.read() == "leased 1"
        process.finish()
    assert generations == {1}
    assert len(fake.starts()) == 1


def test_ready_server_answers(fake: Fake):
    """What `lease` yields can be talked to."""
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint) == "tok0 tok1 tok2 "
        assert held.endpoint.version == "0.6.0"
        assert held.endpoint.engine == "batched"


def test_the_launcher_is_compiled_once(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """Not at each start; one of another release is replaced, with its bytecode."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    mends = fake.directory().launcher.parent / "mends"

    def start() -> dict[str, int]:
        with lease(fake.spec(), policy=FAST):
            fake.stop()
        return {path.name: path.stat().st_mtime_ns for path in mends.glob("__pycache__/*.pyc")}

    first = start()
    assert len(first) == len(list(mends.glob("*.py")))
    assert start() == first
    mend = mends / "mend.py"
    content = mend.read_bytes()
    mend.write_bytes(content[::-1])
    third = start()
    assert mend.read_bytes() == content
    assert {name for name in third if third[name] != first[name]} == {
        name for name in first if name.startswith("mend.")
    }


def test_key_is_not_on_the_command_line(fake: Fake):
    """No process of ours shows the API key in the process list."""
    from faults.support import processes_of

    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.api_key
        lines = [" ".join(p.cmdline()) for p in processes_of(fake.root)]
        assert any("serve" in line for line in lines)
        assert not any(held.endpoint.api_key in line for line in lines)


def test_binary_that_is_no_python_script_is_served_too(fake: Fake):
    """A shell script is run by `exec` and gets its key on the command line."""
    real = fake.binary.rename(fake.binary.with_name("real"))
    fake.binary.write_text(f'#!/bin/sh\nexec "{real}" "$@"\n')
    fake.binary.chmod(0o755)
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint) == "tok0 tok1 tok2 "


def test_death_while_loading_is_reported_at_once(fake: Fake):
    """Exit code and last words of a server that dies while loading reach the caller."""
    fake.switch(
        load_gate=fake.gate("load"),
        load_exit=1,
        load_error="Traceback (most recent call last):\nValueError: Model type x not supported.",
    )
    call = Background(lambda: lease(fake.spec(), policy=FAST).__enter__())
    fake.wait_for_phase("load")
    eventually(fake.starts, "the start")
    fake.open_gate("load")
    began = time.monotonic()
    with pytest.raises(ServerStartError) as caught:
        call.result()
    assert time.monotonic() - began < 10
    assert caught.value.exit_code == 1
    assert "ValueError: Model type x not supported." in str(caught.value)
    assert "ValueError: Model type x not supported." in caught.value.log_tail
    assert "upgrade" in (caught.value.hint or "")
    assert fake.state().phase == "stopped"


@pytest.mark.parametrize(
    ("last_words", "cure"),
    [
        ("TypeError: ModelArgs.__init__() missing 2 required positional arguments", "config.json"),
        ("ValueError: the moon is in the wrong house", "doctor --selftest --model"),
        ("", "doctor --selftest --model"),
    ],
)
def test_every_failed_start_has_a_cure(fake: Fake, last_words: str, cure: str):
    """Also one whose last words nobody here has heard before."""
    fake.switch(load_exit=1, load_error=last_words)
    with pytest.raises(ServerStartError) as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert cure in (caught.value.hint or "")


def test_a_binary_that_is_something_else_is_named(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """It ends at once and says nothing, whatever its exit code."""
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(shutil.which("true")))
    with pytest.raises(ServerStartError, match="exit code 0") as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert "unset CAR_VLLM_MLX_BIN" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("content", "mode", "reason", "cure"),
    [
        (b"not a program", 0o644, "is not executable", "chmod +x"),
        (b"\x7fELF of another machine", 0o755, "Exec format error", "unset CAR_VLLM_MLX_BIN"),
    ],
)
def test_a_binary_that_the_system_does_not_run_is_named(
    fake: Fake, content: bytes, mode: int, reason: str, cure: str
):
    """The last words are Python's, and the cure is not another model."""
    fake.binary.write_bytes(content)
    fake.binary.chmod(mode)
    with pytest.raises(ServerStartError, match=reason) as caught:
        lease(fake.spec(), policy=FAST).__enter__()
    assert cure in (caught.value.hint or "")


def test_failed_start_is_tried_again_by_the_next_call(fake: Fake):
    """A failure sticks to nobody but those who waited for it."""
    fake.switch(load_exit=1, load_error="Error: no")
    with pytest.raises(ServerStartError):
        lease(fake.spec(), policy=FAST).__enter__()
    fake.switch()
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == 2


def test_all_who_wait_for_a_failed_start_are_told(fake: Fake):
    """Ten threads wait for one start; it fails once and all ten hear of it."""
    fake.switch(load_gate=fake.gate("load"), load_exit=3, load_error="Error: no")
    calls = [Background(lambda: lease(fake.spec(), policy=FAST).__enter__()) for _ in range(10)]
    fake.wait_for_phase("load")
    eventually(fake.starts, "the start")
    fake.open_gate("load")
    for call in calls:
        with pytest.raises(ServerStartError, match="exit code 3"):
            call.result()


def test_silence_while_loading_ends_at_the_stall_limit(fake: Fake):
    """A server that neither logs nor computes is given up; it is not waited for forever."""
    fake.switch(never_bind=True)
    with pytest.raises(ServerStartError, match="no sign of life"):
        lease(fake.spec(), policy=dataclasses.replace(FAST, load_stall=0.3)).__enter__()


def test_lost_port_is_retried_on_another(fake: Fake):
    """A port that a stranger took between probe and bind is replaced, unseen by the caller."""
    fake.switch(lose_port=2)
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
    assert len(fake.starts()) == 3


def test_port_lost_every_time_is_an_error_that_says_so(fake: Fake):
    """Three lost ports end the start with the reason."""
    fake.switch(lose_port=3)
    with pytest.raises(ServerStartError, match="address already in use"):
        lease(fake.spec(), policy=FAST).__enter__()


def test_startup_timeout_leaves_the_start_alone(fake: Fake):
    """A caller that gives up gets a retryable error, and the next one finds the server loading."""
    fake.switch(load_gate=fake.gate("load"))
    with pytest.raises(ServerStartingError) as caught:
        lease(fake.spec(), policy=FAST, startup_timeout=0.2).__enter__()
    assert caught.value.is_retryable
    fake.wait_for_phase("load")
    fake.open_gate("load")
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == 1
    assert len(fake.starts()) == 1


def test_cancelled_await_returns_at_once_and_the_start_goes_on(fake: Fake):
    """`asyncio.run` ends with a cancellation, though the load never does."""
    fake.switch(load_gate=fake.gate("load"))

    async def give_up() -> float:
        async def wait() -> None:
            async with alease(fake.spec(), policy=FAST):
                pass

        task = asyncio.create_task(wait())
        await asyncio.to_thread(lambda: fake.wait_for_phase("load"))
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        return began

    began = asyncio.run(give_up())
    assert time.monotonic() - began < 10
    fake.open_gate("load")
    with lease(fake.spec(), policy=FAST) as held:
        assert held.endpoint.generation == 1


def test_progress_tells_the_stages(fake: Fake):
    """The waiting caller is told the stages in their order."""
    seen: list[Progress] = []
    fake.switch(load_gate=fake.gate("load"))

    def note(progress: Progress) -> None:
        seen.append(progress)
        if progress.stage == "load":
            fake.open_gate("load")

    with lease(fake.spec(), policy=FAST, on_progress=note):
        pass
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages[-2:] == ["load", "ready"]


def test_log_flood_neither_blocks_nor_swells(fake: Fake):
    """Fifty megabytes of log while loading block nothing, and the log is cut when it is ready."""
    policy = dataclasses.replace(FAST, log_limit=1_000_000)
    fake.switch(flood=50_000_000)
    with lease(fake.spec(), policy=policy) as held:
        log = fake.directory().log
        eventually(lambda: log.stat().st_size <= 1_000_000, "the log to be cut")
        assert ask(held.endpoint)


def test_invalid_utf8_in_the_log_is_no_obstacle(fake: Fake):
    """Bytes that are not text are shown as replacement characters."""
    fake.switch(load_bytes="fffe8081", load_exit=1, load_error="Error: after bytes")
    with pytest.raises(ServerStartError, match="after bytes"):
        lease(fake.spec(), policy=FAST).__enter__()


def test_log_flood_while_loading_fills_no_disk(fake: Fake):
    """The log of a server that is not ready yet is cut as well, and its load goes on."""
    policy = dataclasses.replace(FAST, log_limit=1_000_000)
    fake.switch(flood=50_000_000, load_gate=fake.gate("load"))
    call = Background(lambda: lease(fake.spec(), policy=policy).__enter__().endpoint)
    log = fake.directory().log
    eventually(lambda: fake.gate_is_awaited() and log.stat().st_size <= 1_000_000, "the cut")
    assert fake.state().phase == "load"
    fake.open_gate("load")
    endpoint = call.result()
    assert endpoint is not None
    assert ask(endpoint)


def test_stall_limit_of_zero_waits_for_ever(fake: Fake):
    """Zero is no limit: the caller's own `startup_timeout` ends the wait, and the start goes on."""
    fake.switch(never_bind=True)
    policy = dataclasses.replace(FAST, load_stall=0.0)
    with pytest.raises(ServerStartingError):
        lease(fake.spec(), policy=policy, startup_timeout=1.0).__enter__()
    assert fake.wait_for_phase("load")


UNREADY = {
    "another model": ({"model_name": "another"}, "`/health` names the model 'another'"),
    "unwell": ({"health": "unhealthy"}, "`/health` says `unhealthy`"),
    "any key": ({"any_key": True}, "`/v1/models` answers 200 to a wrong key"),
    "no health": ({"health_status": 503}, "`/health` answers 503"),
    "drip": ({"health_drips": True}, "`/health` answers nothing"),
}


@pytest.mark.parametrize("case", UNREADY)
def test_server_that_listens_but_fails_a_test_ends_at_the_stall_limit(fake: Fake, case: str):
    """The tests make it compute and log, which is not a sign of life; the error names the test."""
    faults, sentence = UNREADY[case]
    fake.switch(access_log=True, **faults)
    policy = dataclasses.replace(FAST, load_stall=1.0, probe_timeout=0.5)
    with pytest.raises(ServerStartError) as caught:
        lease(fake.spec(), policy=policy).__enter__()
    assert sentence in caught.value.message
    assert fake.state().reason == "failed"
    assert len(fake.starts()) == 1


def test_stranger_on_the_port_does_not_end_a_load_that_goes_on(fake: Fake):
    """While our server computes, a stranger on its port is no failed test of ours."""
    fake.switch(load_gate=fake.gate("load"), load_ticks=True)
    policy = dataclasses.replace(FAST, load_stall=1.0)
    call = Background(lambda: lease(fake.spec(), policy=policy).__enter__().endpoint)
    eventually(fake.gate_is_awaited, "the load")
    port = fake.state().port
    assert port is not None
    with socket.create_server(("127.0.0.1", port), reuse_port=False) as stranger:
        until = time.monotonic() + 2.5
        stranger.settimeout(0.1)
        while time.monotonic() < until:
            with suppress(TimeoutError):
                stranger.accept()[0].close()
        assert fake.state().phase == "load"
    fake.open_gate("load")
    endpoint = call.result()
    assert endpoint is not None
    assert ask(endpoint)
