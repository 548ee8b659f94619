"""`serve`, `env` and `launch`, for programs that know nothing of this package."""

import errno
import http.client
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from faults.support import PATIENCE, Background, Fake, eventually
from unit.cli.conftest import Cli, command

from langchain_car_vllm.cli.gateway_process import Published
from langchain_car_vllm.cli.sharing import check_can_listen
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.gateway import Gateway
from langchain_car_vllm.server import running_servers


@contextmanager
def serving(
    *arguments: str, **options: object
) -> Iterator[tuple[subprocess.Popen[str], Published]]:
    """Run `serve --json` until the block ends."""
    process = subprocess.Popen(
        command("serve", *arguments, "--port", "0", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, Published(**json.loads(line))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def request(published: Published, path: str, key: str | None = None, body: object = None):
    """Send one request as a stranger's client would and return status and text."""
    parts = urlsplit(published.base_url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def question(published: Published, **fields: object) -> dict[str, object]:
    """Return the body of a chat request."""
    return {"model": published.model, "messages": [], **fields}


def test_served_until_ctrl_c(fake: Fake):
    """Strangers get answers with the key, none without; Ctrl-C ends it and frees the memory."""
    with serving(str(fake.model)) as (process, published):
        key = published.read_key()
        assert stat.S_IMODE(Path(published.api_key_file).stat().st_mode) == 0o600
        status, text = request(published, "/v1/models", key)
        assert (status, json.loads(text)["data"][0]["id"]) == (200, published.model)
        status, text = request(published, "/v1/chat/completions", key, question(published))
        assert "tok0 tok1 tok2" in text
        status, text = request(
            published, "/v1/chat/completions", key, question(published, stream=True)
        )
        assert text.endswith("data: [DONE]\n\n")
        for wrong in (None, "x", fake.state().api_key):
            assert request(published, "/v1/models", wrong)[0] == 401
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    eventually(lambda: not running_servers(), "the server to stop")


@pytest.mark.parametrize("stage", ["load", "ready"])
def test_sigterm_ends_it_as_ctrl_c_does(fake: Fake, home: Path, stage: str):
    """What `env` and `launch` start leaves no note, however far it has come."""
    fake.switch(load_gate=fake.gate("load"))
    notes = home / ".car" / "run" / "gateways"
    process = subprocess.Popen(
        command("serve", str(fake.model), "--port", "0", "--json", "--tag", "gateway-1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(fake.starts, "the start")
        assert [note.name for note in notes.glob("gateway-*")] == ["gateway-1"]
        if stage == "ready":
            fake.open_gate("load")
            assert process.stdout.readline()
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        fake.open_gate("load")
    assert (process.returncode, "Traceback" in said) == (0, False), said
    assert list(notes.glob("gateway-*")) == []


def test_it_stays_while_it_is_served(fake: Fake):
    """Without `keep_alive` the model does not leave the memory; a crash is answered by a start."""
    with serving(str(fake.model)) as (_, published):
        key, first = published.read_key(), fake.state()
        os.kill(first.server.pid, signal.SIGKILL)
        status, _ = request(published, "/v1/chat/completions", key, question(published))
        assert (status, fake.state().generation) == (200, first.generation + 1)


def test_idle_server_comes_back(fake: Fake):
    """With `keep_alive` an idle model leaves the memory, a look at `/health` leaves it alone."""
    with serving(str(fake.model), "--keep-alive", "0") as (_, published):
        fake.wait_for_phase("stopped")
        key = published.read_key()
        for health in (request(published, "/health"), request(published, "/health", key)):
            assert (health[0], json.loads(health[1])["model_loaded"]) == (200, False)
        assert fake.state().phase == "stopped"
        assert request(published, "/v1/chat/completions", key, question(published))[0] == 200


def raw_request(published: Published, target: bytes, *headers: bytes) -> int:
    """Send a request as no library would and return the status."""
    parts = urlsplit(published.base_url)
    with socket.create_connection((parts.hostname, parts.port), PATIENCE) as connection:
        lines = [b"GET " + target + b" HTTP/1.1", b"host: x", b"connection: close", *headers]
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        with connection.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def test_a_request_leads_to_the_server_and_nowhere_else(fake: Fake):
    """What stands in the place of a path never becomes another address, key or no key."""
    with (
        serving(str(fake.model)) as (_, published),
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        other.settimeout(0)
        address = b"127.0.0.1:%d" % other.getsockname()[1]
        key = b"authorization: Bearer " + published.read_key().encode()
        targets = [b"@" + address + b"/v1/models", b"." + address + b"/", address]
        targets += [b"http://" + address + b"/v1/models", b"*", b"/v1/models?\xff", b":1/v1/models"]
        for target in targets:
            assert 400 <= raw_request(published, target, key) < 500, target
        for target in (b"//" + address + b"/", b"/%00%0d%0ahost:%20x", b"/v1/../../x", b"/%ff#x"):
            assert 400 <= raw_request(published, target, key) < 500, target
        with pytest.raises(BlockingIOError):
            other.accept()
        assert raw_request(published, b"/v1/mod%65ls", key) == 200


def test_a_redirect_of_the_server_leads_to_the_gateway(fake: Fake):
    """The server names its own address, which on another machine is somebody else's port."""
    with serving(str(fake.model)) as (_, published):
        place = urlsplit(published.base_url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=PATIENCE)
        headers = {"authorization": f"Bearer {published.read_key()}"}
        with closing(connection):
            connection.request("GET", "/v1/models/?a=%2F", headers=headers)
            response = connection.getresponse()
            assert response.status == 307
            assert response.headers["location"] == "/v1/models"


def test_without_the_key_nothing_is_told(fake: Fake):
    """An empty key is none, `/health` names the model to nobody, and no web page gets in."""
    page = {"origin": "https://page.example", "access-control-request-method": "POST"}
    with serving(str(fake.model)) as (_, published):
        for header in (b"authorization: Bearer ", b"x-api-key:", b"x-api-key: x", b"x: y"):
            for path in (b"/v1/models", b"/docs", b"/openapi.json", b"/metrics", b"/"):
                assert raw_request(published, path, header) == 401
        status, text = request(published, "/health")
        assert (status, json.loads(text)) == (200, {"status": "healthy", "model_loaded": True})
        assert published.model in request(published, "/health", published.read_key())[1]
        parts = urlsplit(published.base_url)
        for method in ("OPTIONS", "GET"):
            for path in ("/health", "/v1/chat/completions"):
                connection = http.client.HTTPConnection(parts.hostname, parts.port)
                connection.request(method, path, headers=page)
                names = [name.lower() for name in connection.getresponse().headers]
                connection.close()
                assert not [name for name in names if name.startswith("access-control")]


def test_the_own_key_is_whole_or_refused(cli: Cli, fake: Fake, home: Path):
    """An empty file, such as a full disk leaves, is no key; folders of others hold none."""
    file = home / ".car" / "run" / "gateway.key"
    fake.directory().create()
    file.write_text("")
    done = cli("serve", str(fake.model), "--port", "0")
    assert (done.returncode, fake.starts()) == (1, [])
    assert "does not hold a key" in done.stderr
    file.unlink()
    file.parent.chmod(0o777)
    done = cli("serve", str(fake.model), "--port", "0")
    assert (done.returncode, fake.starts(), file.exists()) == (1, [], False)
    assert "others may write to it" in done.stderr
    file.parent.chmod(0o700)
    with pytest.raises(ConfigurationError, match="key"):
        Gateway(fake.spec(), " ")


def test_a_client_that_leaves_ends_its_answer(fake: Fake):
    """Nobody generates for a client that closed its connection."""
    with serving(str(fake.model)) as (_, published):
        parts = urlsplit(published.base_url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
        # Long enough that no answer is whole before a loaded machine notices.
        body = json.dumps(question(published, stream=True, max_tokens=1_000_000))
        headers = {"x-api-key": published.read_key()}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        assert response.readline()
        response.close()
        connection.close()
        log = fake.directory().log
        eventually(lambda: "went away" in log.read_text(), "the server to notice")


def test_an_answer_that_breaks_off_does_not_look_whole(fake: Fake):
    """A crash in the middle of a stream is an error for the client, not a short answer."""
    fake.switch(crash_after=2)
    with serving(str(fake.model)) as (_, published):
        body = question(published, stream=True, max_tokens=9)
        with pytest.raises(http.client.IncompleteRead):
            request(published, "/v1/chat/completions", published.read_key(), body)


def test_other_machines_need_a_key_of_the_users(cli: Cli, fake: Fake, tmp_path: Path):
    """Nobody opens a model to a network by one flag; what it means is said."""
    done = cli("serve", str(fake.model), "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 1
    assert "needs a key that you choose" in done.stderr
    assert fake.starts() == []
    key = tmp_path / "key"
    key.write_text("sesame\n")
    key.chmod(0o600)
    arguments = (str(fake.model), "--host", "0.0.0.0", "--api-key-file", str(key))
    with serving(*arguments) as (_, published):
        local = published._replace(
            base_url=f"http://127.0.0.1:{urlsplit(published.base_url).port}/v1"
        )
        assert request(local, "/v1/models", "sesame")[0] == 200
        assert request(local, "/v1/models")[0] == 401


@pytest.mark.parametrize("text", ["", "two words", "\u00e9", "a\nb", "a" * 4097])
def test_a_file_without_a_key(cli: Cli, fake: Fake, tmp_path: Path, text: str):
    """What cannot be a key is refused before anything starts."""
    file = tmp_path / "key"
    file.write_text(text)
    done = cli("serve", str(fake.model), "--api-key-file", str(file))
    assert (done.returncode, fake.starts()) == (1, [])
    assert "does not hold a key" in done.stderr


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_key_lies_in_a_file_on_a_disk(cli: Cli, fake: Fake, tmp_path: Path, make):
    """A pipe, as of `<(pass show key)`, gives it once or never, and a device has no end."""
    make(tmp_path / "key")
    done = cli("serve", str(fake.model), "--api-key-file", str(tmp_path / "key"))
    assert (done.returncode, fake.starts()) == (1, [])
    assert "cannot be read: it is not a file on a disk" in done.stderr


def test_a_port_that_is_taken(cli: Cli, fake: Fake):
    """The port is tried before the model is started."""
    with serving(str(fake.model)) as (_, published):
        port = str(urlsplit(published.base_url).port)
        done = cli("serve", str(fake.model), "--port", port)
    assert done.returncode == 1
    assert "hint: choose another port" in done.stderr


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::", "::1")],
)
def test_a_port_that_a_mac_would_give_to_both(
    monkeypatch: pytest.MonkeyPatch, theirs: str, ours: str
):
    """There one program may listen on all addresses while another takes a single one from it."""
    listen = partial(socket.create_server, reuse_port=True)  # Linux lets such share a port, too
    family = socket.AF_INET6 if ":" in theirs else socket.AF_INET
    is_dual = theirs == "::"
    with listen((theirs, 0), family=family, dualstack_ipv6=is_dual) as stranger:
        port = stranger.getsockname()[1]
        monkeypatch.setattr(socket, "create_server", listen)
        with pytest.raises(ConfigurationError, match="in use") as caught:
            check_can_listen(ours, port)
    assert "--port" in (caught.value.hint or "")
    check_can_listen(ours, port)


def test_a_port_whose_owner_hangs_up_is_taken_as_well(monkeypatch: pytest.MonkeyPatch):
    """A connection that was reset tells no more whom it led to, on a Mac not even where from."""
    listener, connect = socket.create_server(("127.0.0.1", 0)), socket.create_connection

    def hang_up() -> None:
        connected, _ = listener.accept()
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connected.close()

    def connect_and_be_reset(*arguments: Any) -> socket.socket:
        connected = connect(*arguments)
        select.select([connected], [], [], PATIENCE)
        return connected

    def unknown(_: socket.socket) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    owner = Background(hang_up)
    with listener, monkeypatch.context() as patch:
        port = listener.getsockname()[1]
        patch.setattr(socket, "create_connection", connect_and_be_reset)
        patch.setattr(socket.socket, "getsockname", unknown, raising=False)
        with pytest.raises(ConfigurationError, match="in use"):
            check_can_listen("127.0.0.1", port)
    owner.result()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.9", "a" * 70])
def test_an_address_that_is_not_this_machines(cli: Cli, fake: Fake, tmp_path: Path, host: str):
    """The hint is about the address: another port would not help."""
    key = tmp_path / "key"
    key.write_text("sesame\n")
    key.chmod(0o600)
    done = cli("serve", str(fake.model), "--host", host, "--api-key-file", str(key))
    assert (done.returncode, fake.starts()) == (1, [])
    assert "that is not an address of this machine" in done.stderr
    assert "hint: leave --host out" in done.stderr


def test_the_server_is_the_one_that_is_named(fake: Fake):
    """The same that a Python program with these settings uses."""
    with serving(str(fake.model), "--engine", "simple", "--server-arg=--max-tokens=77"):
        (pid,) = fake.starts()
        assert "--max-tokens=77" in psutil.Process(pid).cmdline()


def test_nothing_is_imported_from_the_current_folder(fake: Fake, tmp_path: Path):
    """A coding agent is launched in a repository of anybody's, whose modules are not to be run."""
    (tmp_path / "json.py").write_text("raise SystemExit('the code of a repository was run')\n")
    words = [sys.executable, "-P", *command("env", str(fake.model))[1:]]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "was run" not in done.stderr
