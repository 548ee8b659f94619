"""`run` through the chat model, the supervisor and the fake server."""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from fakes.dialect import Dialect, Reply, Server
from faults.support import PATIENCE, Fake, eventually
from unit.cli.conftest import Cli, command


def test_one_answer(cli: Cli, fake: Fake):
    """The answer is all of standard output; the wait is told on standard error."""
    done = cli("run", str(fake.model), "Say", "hi", "--max-tokens", "2", "--verbose")
    assert (done.returncode, done.stdout) == (0, "tok0 tok1 \n"), done.stderr
    assert "load" in done.stderr
    assert "5 tokens in, 3 tokens out" in done.stderr
    assert len(fake.starts()) == 1


def test_the_request_is_what_was_asked_for(cli: Cli, socket_enabled: None):
    """Arguments and piped text make the prompt, options the request; thoughts stay apart."""
    reply = Reply("Done.", thought="Hm.")
    with Server(Dialect(served_model="m", script=lambda _: reply)) as server:
        done = cli(
            *("run", "m", "Sum", "up:", "--system", "Be brief", "--no-think"),
            *("--temperature", "0", "--max-tokens", "9"),
            given="a text\n",
            CAR_VLLM_MLX_BASE_URL=server.base_url,
        )
    assert (done.returncode, done.stdout) == (0, "Done.\n"), done.stderr
    assert "Hm." not in done.stderr
    (request,) = server.dialect.requests
    assert [(m["role"], m["content"]) for m in request["messages"]] == [
        ("system", "Be brief"),
        ("user", "Sum up:\n\na text"),
    ]
    assert (request["temperature"], request["max_tokens"]) == (0, 9)
    assert request["enable_thinking"] is False


def test_nothing_to_ask_is_wrong_usage(cli: Cli, fake: Fake):
    """Without a terminal there has to be a prompt; nothing is started without."""
    done = cli("run", str(fake.model))
    assert (done.returncode, fake.starts()) == (2, [])
    assert "there is no prompt" in done.stderr


def test_a_server_that_dies_is_explained(cli: Cli, fake: Fake):
    """A failed start is one sentence with the log's last words, exit code 1."""
    fake.switch(load_exit=1, load_error="ValueError: Model type fancy not supported.")
    done = cli("run", str(fake.model), "hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert "could not be started" in done.stderr
    assert "Model type fancy not supported" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_settings_are_refused(cli: Cli, fake: Fake):
    """Nothing is started for a setting that cannot work."""
    done = cli("run", str(fake.model), "hi", "--keep-alive", "often")
    assert done.returncode == 1
    assert "`keep_alive` must be a duration" in done.stderr
    assert fake.starts() == []


def test_ctrl_c_ends_an_answer(fake: Fake, tmp_path: Path):
    """Ctrl-C under an answer ends the command with 130; the server stays."""
    fake.switch(token_gate=fake.gate("token"))
    output = tmp_path / "output"
    with output.open("wb") as file:
        running = subprocess.Popen(
            command("run", str(fake.model), "hi"), stdin=subprocess.DEVNULL, stdout=file
        )
    try:
        # An empty standard input adds nothing to the prompt.
        eventually(lambda: output.read_text() == "tok0 ", "the first token")
        os.kill(running.pid, signal.SIGINT)
        assert running.wait(PATIENCE) == 130
    finally:
        running.kill()
        running.wait()
    assert fake.state().phase == "ready"


def test_a_conversation_on_a_terminal(monkeypatch: pytest.MonkeyPatch, socket_enabled: None):
    """Questions follow each other, with what was said before, until Ctrl-D."""
    replies = iter(("One.", "Two."))
    dialect = Dialect(served_model="m", script=lambda _: Reply(next(replies)))
    ours, theirs = pty.openpty()
    with Server(dialect) as server:
        monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", server.base_url)
        with subprocess.Popen(
            command("run", "m"),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as talking:
            os.close(theirs)
            os.write(ours, b"first\n\nsecond\n\x04")
            said, told = talking.communicate(timeout=2 * PATIENCE)
    os.close(ours)
    assert talking.returncode == 0, told
    assert said.replace(">>> ", "") == "One.\nTwo.\n"
    first, second = ([m["content"] for m in r["messages"]] for r in dialect.requests)
    assert (first, second) == (["first"], ["first", "One.", "second"])
