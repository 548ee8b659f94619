"""Nobody waits forever, and errors keep their type on the way to the caller."""

import json
import os
import shutil

import pytest
from faults.support import FAST, Background, ClientProcess, Fake, error_of_lease

from langchain_car_vllm.errors import ServerStartError, StateDirectoryError
from langchain_car_vllm.server import lease, stop_server
from langchain_car_vllm.server.directory import server_directory


def test_foreign_state_of_another_key_is_no_endless_loop(fake: Fake):
    """One state file with a missing field does not make all models start forever."""
    other = server_directory("0123456789abcdef")
    other.create()
    other.state.write_text(json.dumps({"protocol": 1}))
    found = error_of_lease(fake)
    state = fake.state()
    other.state.unlink()
    assert found is None, f"{state.generation} still lives"


def test_newer_state_of_the_same_key_is_no_raw_error(fake: Fake):
    """A state with an unknown field is understood or taken as none."""
    with lease(fake.spec(), policy=FAST):
        pass
    stop_server(fake.directory(), policy=FAST)
    values = json.loads(fake.directory().state.read_text())
    fake.directory().state.write_text(json.dumps({**values, "field_of_the_next_release": 1}))
    found = error_of_lease(fake)
    fake.directory().state.unlink()
    assert found is None


def test_missing_interpreter_is_named(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """A wrong CAR_VLLM_PYTHON is no fault of the state directory."""
    monkeypatch.setenv("CAR_VLLM_PYTHON", "/nonexistent/python")
    found = error_of_lease(fake)
    assert not isinstance(found, StateDirectoryError)
    assert "/nonexistent/python" in str(found)


def test_a_program_that_is_no_python_is_named(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """It ends without a word of ours."""
    monkeypatch.setenv("CAR_VLLM_PYTHON", str(shutil.which("true")))
    found = error_of_lease(fake)
    assert isinstance(found, ServerStartError)
    assert "unset CAR_VLLM_PYTHON" in (found.hint or "")


def test_removed_and_recreated_run_folder(fake: Fake):
    """A process that used a server before its folder was removed and made again still gets one."""
    with lease(fake.spec(), policy=FAST):
        pass
    stop_server(fake.directory(), policy=FAST)
    shutil.rmtree(fake.directory().path)
    client = ClientProcess(fake)
    assert client.read() == "began"
    assert client.read() == "leased 1"
    found = error_of_lease(fake)
    client.finish()
    assert found is None, repr(found)


def test_same_boot_is_the_same_machine(fake: Fake):
    """A host name that changed since (a laptop in another network) is no other machine."""
    with lease(fake.spec(), policy=FAST):
        supervisor = fake.state().supervisor.pid
        os.kill(supervisor, 9)
    fake.wait_until_unsupervised()
    values = json.loads(fake.directory().state.read_text())
    values["host"] = "macbook.lan"
    fake.directory().state.write_text(json.dumps(values))
    found = error_of_lease(fake)
    fake.directory().state.unlink(missing_ok=found is not None)
    assert found is None, found


def test_stop_ends_a_server_that_spins_after_saving(fake: Fake):
    """A deaf server that burns CPU after it spoke of saving is ended in bounded time."""
    source = fake.binary.read_text().replace(
        "def lose_port(arguments):",
        "def _spin():\n    while True:\n        pass\n\n\ndef lose_port(arguments):\n"
        "    say('INFO: [lifespan] Saving prefix cache to nowhere')\n"
        "    threading.Thread(target=_spin, daemon=True).start()\n",
        1,
    )
    fake.binary.write_text(source)
    fake.switch(ignore_sigint=True)
    with lease(fake.spec(), policy=FAST):
        pass
    stopping = Background(lambda: stop_server(fake.directory(), policy=FAST))
    assert stopping.result()
