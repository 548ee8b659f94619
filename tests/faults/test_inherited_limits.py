"""A server that all share does not suffer from what its first client was allowed."""

import asyncio
import errno
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
from faults.support import FAST, PATIENCE, Fake, ask

from langchain_car_vllm.errors import CarVllmError, ServerStartError
from langchain_car_vllm.server import alease, lease

FIRST_CLIENT = """
import os, resource, sys
os.nice(19)
for number in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
    resource.setrlimit(number, (10**9, resource.getrlimit(number)[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (60, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
resource.setrlimit(resource.RLIMIT_STACK, (300_000, resource.getrlimit(resource.RLIMIT_STACK)[1]))
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from langchain_car_vllm.server import Policy, ServerSpec, lease
spec = ServerSpec.from_dict({spec!r})
with lease(spec, policy=Policy.from_dict({policy!r})):
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are seen on Linux")
def test_first_client_lends_neither_niceness_nor_limits(fake: Fake):
    """What the system lets this user undo is undone, in the supervisor and in the server.

    What a crash leaves of their memory, with prompts and the key, is written nowhere.
    """
    is_root = os.geteuid() == 0
    values = {"spec": fake.spec().to_dict(), "policy": FAST.to_dict()}
    code = FIRST_CLIENT.format(**values)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
    state = fake.state()
    assert state.server is not None
    for pid in (state.supervisor.pid, state.server.pid):
        process = psutil.Process(pid)
        if is_root:
            assert process.nice() == 0
            assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        assert os.sched_getaffinity(pid) >= os.sched_getaffinity(0)
        assert process.rlimit(resource.RLIMIT_CORE)[0] == 0
        assert process.rlimit(resource.RLIMIT_STACK)[0] in (resource.RLIM_INFINITY, 8 * 2**20)
        for number in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
            assert process.rlimit(number)[0] == resource.getrlimit(number)[1]
        assert process.rlimit(resource.RLIMIT_NOFILE)[0] >= min(
            65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        )


MANY = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from langchain_car_vllm import ChatVllmMlx
model = ChatVllmMlx(model=sys.argv[1], keep_alive=60)
print(len(asyncio.run(model.abatch(["hi"] * 300))))
"""


def test_three_hundred_calls_wait_under_a_small_limit_of_files(fake: Fake):
    """A Mac's usual one: each that waits for its turn had a file open, beside the connections."""
    layers = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = {"model_type": "llama", "max_position_embeddings": 2048, "hidden_size": 576, **layers}
    (fake.model / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", MANY, str(fake.model)]
    assert subprocess.check_output(command, text=True, timeout=PATIENCE).split() == ["300"]
    assert fake.state().serving.max_sequences


BACKGROUND = """
import os
from langchain_car_vllm.server.supervisor.limits import shed_limits
calls = []
os.setpriority = lambda *call: calls.append(call)
shed_limits("darwin")
print((4, 0, 0) in calls)
calls.clear()
shed_limits("linux")
print((4, 0, 0) in calls)
"""


def test_a_mac_leaves_the_background_of_its_first_client():
    """Children inherit what `taskpolicy -b` and `setpriority(PRIO_DARWIN_PROCESS, ...)` set."""
    said = subprocess.check_output([sys.executable, "-c", BACKGROUND], text=True, timeout=PATIENCE)
    assert said.split() == ["True", "False"]


CURES = {
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "open files",
    errno.EAGAIN: "ulimit -u",
    errno.ENOMEM: "memory ran out",
    errno.ENOENT: "CAR_VLLM_PYTHON",
}


@pytest.mark.parametrize("number", CURES, ids=errno.errorcode.get)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_supervisor_that_cannot_be_spawned_says_what_to_do(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, number: int, way: str
):
    """Want of descriptors, processes or memory is not taken for a wrong Python."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    async def wait() -> None:
        async with alease(fake.spec(), policy=FAST):
            pass

    monkeypatch.setattr(os, "posix_spawn", refuse)
    with pytest.raises(ServerStartError) as caught:
        lease(fake.spec(), policy=FAST).__enter__() if way == "sync" else asyncio.run(wait())
    assert CURES[number] in (caught.value.hint or "")


@pytest.mark.parametrize("spare", range(0, 16, 2))
def test_program_without_descriptors_is_told_and_recovers(fake: Fake, spare: int):
    """However few are left, the error is typed and names the limit; afterwards all is well."""
    with lease(fake.spec(), policy=FAST):
        pass
    fake.stop()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for descriptor in taken[:spare]:
            os.close(descriptor)
        del taken[:spare]
        try:
            with lease(fake.spec(), policy=FAST):
                pass
        except CarVllmError as error:
            assert "ulimit -n" in (error.hint or "") or "Too many open files" in str(error)  # noqa: PT017
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with lease(fake.spec(), policy=FAST) as held:
        assert ask(held.endpoint)
