"""`run` through the chat model, the supervisor and the fake server."""

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

from faults.support import PATIENCE, Fake, eventually
from unit.cli.conftest import Cli, command


def test_one_answer(cli: Cli, fake: Fake):
    """The answer is all of standard output; the wait is told on standard error."""
    done = cli("run", str(fake.model), "Say", "hi", "--max-tokens", "2", "--verbose")
    assert (done.returncode, done.stdout) == (0, "tok0 tok1 \n"), done.stderr
    assert "load" in done.stderr
    assert "5 tokens in, 3 tokens out" in done.stderr
    assert len(fake.starts()) == 1


def test_the_prompt_is_piped_in(cli: Cli, fake: Fake):
    """Standard input is the prompt; without any the usage is wrong."""
    done = cli("run", str(fake.model), "--max-tokens", "1", given="Say hi")
    assert (done.returncode, done.stdout) == (0, "tok0 \n"), done.stderr
    done = cli("run", str(fake.model))
    assert done.returncode == 2
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


def test_a_conversation_on_a_terminal(fake: Fake, tmp_path: Path):
    """Questions are asked one after the other until Ctrl-D, on one server."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("run", str(fake.model), "--max-tokens", "1"),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as talking:
        os.close(theirs)
        os.write(ours, b"first\nsecond\n\x04")
        said, told = talking.communicate(timeout=2 * PATIENCE)
    os.close(ours)
    assert talking.returncode == 0, told
    assert said.count("tok0") == 2
    assert len(fake.starts()) == 1
    assert json.loads(fake.directory().state.read_text())["phase"] == "ready"
