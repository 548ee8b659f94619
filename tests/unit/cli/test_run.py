"""`run` through the chat model, the supervisor and the fake server."""

import json
import os
import pty
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from faults.support import PATIENCE, Fake, eventually
from langchain_core.messages import AIMessageChunk
from unit.cli.conftest import Cli, command, interrupt

from langchain_car_vllm.cli.conversation import Conversation
from langchain_car_vllm.errors import ServerCrashedError


def test_one_answer(fake: Fake, tmp_path: Path):
    """The answer is all of standard output; the wait is told on standard error."""
    fake.switch(load_gate=fake.gate("load"))
    told = tmp_path / "told"
    arguments = command("run", str(fake.model), "Say", "hi", "--max-tokens", "2", "--verbose")
    with told.open("w") as errors:
        running = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        eventually(lambda: "load" in told.read_text(), "the wait")
        fake.open_gate("load")
        said, _ = running.communicate(timeout=PATIENCE)
    finally:
        running.kill()
        running.wait()
    assert (running.returncode, said) == (0, "tok0 tok1 \n"), told.read_text()
    assert "5 tokens in, 3 tokens out at " in told.read_text()
    assert len(fake.starts()) == 1


def test_the_request_is_what_was_asked_for(cli_here: Cli, socket_enabled: None):
    """Arguments and piped text make the prompt, options the request; thoughts stay apart."""
    reply = Reply("Done.", thought="Hm.")
    with Server(Dialect(served_model="m", script=lambda _: reply)) as server:
        done = cli_here(
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


def test_an_answer_for_a_program(cli_here: Cli, socket_enabled: None):
    """`--json` prints one object with usage and times; `--format json` asks for an object."""
    reply = Reply('{"moon": "Io"}', thought="Hm.")
    with Server(Dialect(served_model="m", script=lambda _: reply)) as server:
        done = cli_here(
            *("run", "m", "A moon?", "--json", "--format", "json", "--keepalive", "5m", "-t", "0"),
            *("-s", "Be brief", "--engine", "simple"),
            CAR_VLLM_MLX_BASE_URL=server.base_url,
        )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert json.loads(answer["text"]) == {"moon": "Io"}
    assert (answer["reasoning"], answer["finish_reason"]) == ("Hm.", "stop")
    assert answer["usage"]["output_tokens"] > 0
    assert answer["timings"]["total"] > 0
    (request,) = server.dialect.requests
    assert request["response_format"]["type"] in ("json_object", "json_schema")
    assert cli_here("run", "m", "--json").returncode == 2


def test_nothing_to_ask_is_wrong_usage(cli_here: Cli, fake: Fake):
    """Without a terminal there has to be a prompt; nothing is started without."""
    done = cli_here("run", str(fake.model))
    assert (done.returncode, fake.starts()) == (2, [])
    assert "no prompt was given" in done.stderr


def test_what_is_no_text_is_wrong_usage(fake: Fake):
    """A picture that is piped in starts nothing, and is not taken for a fault of the program."""
    done = subprocess.run(
        command("run", str(fake.model), "look"),
        input=b"\x89PNG\xff",
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (done.returncode, fake.starts()) == (2, [])
    assert b"standard input is not UTF-8 text" in done.stderr


@pytest.mark.parametrize(("words", "piped"), [([b"hi"], b"\xff"), ([b"\xff"], b"")])
def test_bytes_that_are_no_text_are_wrong_usage_in_any_locale(
    fake: Fake, words: list[bytes], piped: bytes
):
    """Without a locale, as in a container or a cron job, Python takes any bytes for text."""
    arguments = [*map(str.encode, command("run", str(fake.model))), *words]
    done = subprocess.run(
        arguments,
        input=piped,
        capture_output=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("LC_")} | {"LANG": "C"},
    )
    assert (done.returncode, fake.starts()) == (2, [])
    assert b"the prompt is not UTF-8 text" in done.stderr


@pytest.mark.parametrize("word", ["/bye", "exit", "quit", "/exit"])
def test_a_conversation_ends_as_in_other_programs(word: str, capsys: pytest.CaptureFixture):
    """Also with what Python's prompt and other tools take; commands of Ollama's are no question."""

    class Model:
        def stream(self, messages):
            yield AIMessageChunk(messages[-1].text)

    talk = Conversation(Model(), None, verbose=False)
    talk.converse(iter(["/set system x", "/usr/bin/env does what?", word, "more"]), lambda: None)
    said = capsys.readouterr()
    assert said.out == "/usr/bin/env does what?\n"
    assert "`/set` is not a command" in said.err


def test_an_error_does_not_end_a_conversation(capsys: pytest.CaptureFixture):
    """It is told, and the next question is answered with what was said before."""

    class Model:
        asked: ClassVar[list[list[str]]] = []

        def stream(self, messages):
            self.asked.append([message.text for message in messages])
            if messages[-1].text == "two":
                raise ServerCrashedError("the server died", hint="ask again")
            yield AIMessageChunk("ok")

    Conversation(Model(), None, verbose=False).converse(iter(["one", "two", "three"]), lambda: None)
    assert Model.asked[-1] == ["one", "ok", "three"]
    said = capsys.readouterr()
    assert said.out.split() == ["ok", "ok"]
    assert "error: the server died" in said.err
    assert "hint: ask again" in said.err


def test_a_server_that_dies_is_explained(cli: Cli, fake: Fake):
    """A failed start is one sentence with the log's last words, exit code 1."""
    fake.switch(load_exit=1, load_error="ValueError: Model type fancy not supported.")
    done = cli("run", str(fake.model), "hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert "could not be started" in done.stderr
    assert "Model type fancy not supported" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


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
        assert interrupt(running) == 130
    finally:
        running.kill()
        running.wait()
    assert fake.state().phase == "ready"


@contextmanager
def talking_on_a_terminal(server: Server) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """Run a conversation whose three streams are a terminal; yields its other end."""
    ours, theirs = pty.openpty()
    environment = os.environ | {
        "CAR_VLLM_MLX_BASE_URL": server.base_url,
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here tells where the cursor is
    }
    process = subprocess.Popen(
        command("run", "m", "-v"), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


class Screen:
    """What a terminal has shown so far."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self.text = ""

    def shows(self, *texts: str) -> bool:
        """Read what is there, and tell whether all texts were shown since the last match."""
        while select.select([self._terminal], [], [], 0.05)[0]:
            try:
                self.text += os.read(self._terminal, 1 << 16).decode(errors="replace")
            except OSError:  # Linux says so when the other end is closed
                break
        if found := all(text in self.text for text in texts):
            self.text = ""
        return found


def test_a_conversation_on_a_terminal(socket_enabled: None):
    """History, pasted lines, fences, commands and Ctrl-C work as a person expects."""
    numbers = iter(range(1, 9))
    dialect = Dialect(served_model="m", script=lambda _: Reply(f"Answer {next(numbers)}."))
    with Server(dialect) as server, talking_on_a_terminal(server) as (terminal, process):
        screen = Screen(terminal)

        def typed(text: bytes, *shown: str) -> None:
            os.write(terminal, text)
            eventually(lambda: screen.shows(*shown), f"{shown} in {screen.text!r}", 3 * PATIENCE)

        eventually(lambda: screen.shows("/help", ">>>"), "the prompt", 3 * PATIENCE)
        typed(b"first\r", "Answer 1.", "tokens out", ">>>")
        typed(b"half a question\x03", "Ctrl-D or /bye", ">>>")
        typed(b"\x1b[200~two\nlines\x1b[201~\r", "Answer 2.", ">>>")
        typed(b'"""a\rb"""\r', "Answer 3.", ">>>")
        typed(b"/help\r", "/clear", ">>>")
        typed(b"/nothing\r", "is not a command", ">>>")
        typed(b"/clear\r", "forgotten", ">>>")
        typed(b"last\r", "Answer 4.", ">>>")
        os.write(terminal, b"/bye\r")
        assert process.wait(PATIENCE) == 0
    contents = [[m["content"] for m in request["messages"]] for request in dialect.requests]
    assert contents == [
        ["first"],
        ["first", "Answer 1.", "two\nlines"],
        ["first", "Answer 1.", "two\nlines", "Answer 2.", "a\nb"],
        ["last"],
    ]


def test_a_warning_is_a_sentence_and_comes_each_time(cli: Cli, socket_enabled: None):
    """Python names a line of a library, and says the same of a second empty answer no more."""
    with (
        Server(Dialect(served_model="m", script=lambda _: Reply(""))) as server,
        talking_on_a_terminal(server) as (terminal, _),
    ):
        screen = Screen(terminal)
        eventually(lambda: screen.shows(">>>"), "the prompt", 3 * PATIENCE)
        for _ in range(2):
            os.write(terminal, b"go\r")
            eventually(lambda: screen.shows("warning: ", ">>>"), screen.text, PATIENCE)
        silenced = {"CAR_VLLM_MLX_BASE_URL": server.base_url, "PYTHONWARNINGS": "ignore"}
        assert cli("run", "m", "go", **silenced).stderr == ""
        del silenced["PYTHONWARNINGS"]
        said = cli("run", "m", "go", **silenced).stderr
        assert said.startswith("warning: ")
        assert said.count("\n") == 1


def test_an_answer_gives_a_terminal_no_orders(cli: Cli, socket_enabled: None):
    """Escape sequences of a model are shown as text; what is no terminal gets them as they are."""
    evil = "a\x1b]52;c;aGk=\x07b\r\n\x9b2Jc"
    with (
        Server(Dialect(served_model="m", script=lambda _: Reply(evil, thought=evil))) as server,
        talking_on_a_terminal(server) as (terminal, _),
    ):
        screen = Screen(terminal)
        eventually(lambda: screen.shows(">>>"), "the prompt", 3 * PATIENCE)
        os.write(terminal, b"go\r")
        shown = r"a\x1b]52;c;aGk=\x07b"

        def is_whole() -> bool:
            screen.shows("\0")
            return screen.text.count(shown) >= 2 and screen.text.count(r"\x9b2Jc") >= 2

        eventually(is_whole, shown, 3 * PATIENCE)
        assert "\x1b]52" not in screen.text
        done = cli("run", "m", "go", CAR_VLLM_MLX_BASE_URL=server.base_url)
        assert done.stdout == f"{evil}\n".replace("\r\n", "\n")


def test_closed_and_narrow_streams(socket_enabled: None):
    """A closed standard input is none, and what ASCII cannot say is replaced."""
    dialect = Dialect(served_model="m", script=lambda _: Reply("na\u00efve \u2713"))
    with Server(dialect) as server:
        environment = os.environ | {
            "CAR_VLLM_MLX_BASE_URL": server.base_url,
            "PYTHONIOENCODING": "ascii",
        }
        line = f"{shlex.join(command('run', 'm', 'hi'))} <&-"
        done = subprocess.run(
            ["/bin/sh", "-c", line], env=environment, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout) == (0, "na?ve ?\n"), done.stderr


def test_a_fault_of_the_program_is_told_as_one(cli: Cli, fake: Fake, tmp_path: Path):
    """An unexpected error is one line, exit code 3 and the path of a private log."""
    code = (
        "import sys; from langchain_car_vllm.cli import app\n"
        "def broken(): raise RuntimeError('first line\\nsecond line')\n"
        "app.app.registered_commands.clear(); app.app.command('ps')(broken)\n"
        "sys.argv[1:] = ['ps']; app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    told, named = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (3, "")
    assert told.endswith("failed unexpectedly: RuntimeError: first line")
    log = Path(named.removeprefix("log: "))
    assert log.parent == tmp_path
    assert log.stat().st_mode & 0o077 == 0
    assert "in broken" in log.read_text()
