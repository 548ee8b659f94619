"""The command line as a whole: words, help, completion, exit codes."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from faults.support import FAST, PATIENCE, Fake
from typer.main import get_command
from unit.cli.conftest import Cli, command
from unit.test_environment import BAD as BAD_VARIABLES

from langchain_car_vllm.cli import doctor
from langchain_car_vllm.cli.app import app, main
from langchain_car_vllm.server import lease


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["help"], []])
def test_help_in_every_way_of_asking(cli_here: Cli, words: list[str]):
    """All commands are listed, in 80 columns."""
    done = cli_here(*words, COLUMNS="80")
    text = done.stdout + done.stderr
    for entry in app.registered_commands:
        name = entry.name or entry.callback.__name__.strip("_")
        assert entry.hidden or f" {name} " in text
    assert max(map(len, text.splitlines())) <= 80


def test_help_tells_each_command_in_one_line(cli_here: Cli):
    """No summary is cut off, in 80 columns."""
    for words in ([], ["service"]):
        rows = cli_here(*words, "-h", COLUMNS="80").stdout.split("Commands:")[1]
        assert "..." not in rows


def test_help_of_a_command_in_both_orders(cli_here: Cli):
    """`help run` is `run --help`, and shows the arguments as they are typed."""
    text = cli_here("help", "run", COLUMNS="80").stdout
    assert text == cli_here("run", "--help", COLUMNS="80").stdout
    assert text.startswith("Usage: car-vllm run [OPTIONS] MODEL [PROMPT]...\n")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["run", "-m", "M", "hi"], "the first argument"),
        (["run", "M", "--num-ctx=4096", "hi"], "`car-vllm plan MODEL`"),
        (["-m", "M", "hi"], "the first argument"),
        (["--install-completion"], "`car-vllm completion SHELL`"),
    ],
)
def test_options_of_other_tools(cli_here: Cli, words: list[str], meant: str):
    """They are answered with what is meant."""
    done = cli_here(*words)
    assert done.returncode == 2
    assert meant in done.stderr


@pytest.mark.parametrize("option", ["-m", "--model"])
def test_every_command_tells_where_the_model_stands(cli_here: Cli, option: str):
    """Servers of others take it as an option; what a tool takes is its own."""
    for command_ in ("run", "serve", "env", "plan", "show", "bench", "logs", "pull", "stop", "rm"):
        said = cli_here(command_, option, "org/model").stderr
        assert f"the model is the first argument: `car-vllm {command_} MODEL`" in said
    done = cli_here("launch", "codex", "org/model", "--dry-run", option, "x")
    assert done.stdout.rstrip().endswith(f" {option} x")


def test_a_prompt_may_hold_the_options_of_other_tools(cli_here: Cli):
    """After `--` nothing is an option."""
    done = cli_here("run", "none", "--", "-m", "--num-ctx")
    assert "is not a model id" in done.stderr


@pytest.mark.parametrize("word", ["-V", "--version", "version"])
def test_version_in_every_way_of_asking(cli_here: Cli, word: str):
    """The version is the data."""
    assert cli_here(word).stdout.strip() == version("langchain-car-vllm")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("load", "serve M"),
        ("tags", "list"),
        ("generate", "run M"),
        ("unload", "stop M"),
        ("upgrade", "install --upgrade"),
        ("clean", "rm M"),
        ("status", "ps"),
        ("get", "pull M"),
        ("start", "run M"),
        ("prune", "rm M"),
    ],
)
def test_words_of_other_tools(cli_here: Cli, word: str, meant: str):
    """Whoever knows another tool is told the word that is meant here."""
    done = cli_here(word, "x")
    assert done.returncode == 2
    assert f"`car-vllm {meant}" in done.stderr
    assert "Did you mean" not in done.stderr


def test_words_that_mean_the_same(cli_here: Cli):
    """`ls` lists, as everywhere."""
    assert cli_here("ls").stderr == cli_here("list").stderr


@pytest.mark.parametrize(
    "words",
    [["--version"], ["ps"], ["logs"], ["doctor"], ["run", "MODEL", "hi"], ["stop", "--all"]],
)
def test_output_that_nobody_has_opened_is_no_fault(fake: Fake, words: list[str]):
    """Started with its standard output closed, a command does what it does elsewhere."""
    with lease(fake.spec(), policy=FAST):
        given = [str(fake.model) if word == "MODEL" else word for word in words]
        shell = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command(*given)]
        done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert "unexpectedly" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="macOS has no disk that is always full")
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["list", "--catalog"]])
def test_a_full_disk_is_no_fault_of_the_program(words: list[str]):
    """Where the output does not fit, that is said, and no bug is reported."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(*words), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: the disk is full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="macOS has no disk that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("words", "code"), [(["ps"], 0), (["list"], 0), (["show", "nope"], 1)])
def test_what_cannot_be_said_ends_nothing(words: list[str], code: int, unbuffered: str):
    """A server that is started with its messages sent to a full disk had ended over one."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(*words),
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert (done.returncode, done.stdout) == (code, "")


@pytest.mark.parametrize(
    ("words", "code", "data"),
    [(("list", "--json"), 0, "[]\n"), (("list",), 0, ""), (("show", "nope"), 1, "")],
)
def test_nothing_but_results_goes_to_standard_output(words: tuple[str, ...], code: int, data: str):
    """Also where nobody can be told anything: standard error is closed, as a daemon may have it."""
    shell = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command(*words)]
    done = subprocess.run(shell, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, data)


def test_what_serves_a_model_takes_all_that_names_its_server():
    """`service install` took no engine, and nothing but `plan` the arguments of a server."""
    commands = get_command(app).commands
    commands |= {"service install": commands["service"].commands["install"]}
    options = {
        name: {option for parameter in command_.params for option in parameter.opts}
        for name, command_ in commands.items()
    }
    for name in ("run", "serve", "env", "launch", "service install", "plan"):
        assert {"--revision", "--engine", "--server-arg"} <= options[name], name
    own = {"--json", "--until-pid", "--tag"}
    assert options["serve"] - own <= options["service install"]


def test_every_exit_code_is_in_the_documentation():
    """A script has nothing else to go by."""
    page = Path(__file__).parents[3] / "docs/command-line.md"
    table = page.read_text(encoding="utf-8").partition("| exit code |")[2].partition("\n\n")[0]
    told = re.findall(r"\b\d+\b", (main.__doc__ or "").partition("Exit codes:")[2])
    assert told == re.findall(r"^\| (\d+) \|", table, re.MULTILINE)


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_left_out_where_nobody_wants_them(monkeypatch, capsys, no_color, coloured):
    """NO_COLOR is what other programs know, too."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    doctor._show(doctor._Result("host", "ok", "fine"))
    assert ("\x1b[" in capsys.readouterr().out) is coloured


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(cli_here: Cli, shell: str):
    """The script names the program, and what it asks is answered, whatever the variables say."""
    bad = {name: texts[0] for name, texts in BAD_VARIABLES.items()}
    assert "car-vllm" in cli_here("completion", shell).stdout
    for line, proposed in {
        "car-vllm rec": "recommend",
        "car-vllm recommend --task v": "vision",
        "car-vllm service ": "remove",
        "car-vllm run --eng": "--engine",
        "car-vllm run -m x --eng": "",
    }.items():
        asked = {"_CAR_VLLM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
        asked |= {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = cli_here(**asked, **bad, _TYPER_COMPLETE_FISH_ACTION="get-args")
        assert proposed in done.stdout
        assert done.stderr == ""


def test_bash_completes_with_the_script(cli_here: Cli, tmp_path: Path):
    """What a Tab does, in a shell that has read the script."""
    program = tmp_path / "car-vllm"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command())} "$@"\n')
    program.chmod(0o755)
    script = (
        f"{cli_here('completion', 'bash').stdout}\nCOMP_WORDS=(car-vllm unin)\nCOMP_CWORD=1\n"
        f'_car_vllm_completion {shlex.quote(str(program))}\necho "${{COMPREPLY[*]}}"\n'
    )
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("uninstall\n", "")


TABLE = """
from langchain_car_vllm.cli.output import print_table
print_table(("A", "B", "C"), [("x" * 9, "y" * 9, "z" * 9)], dispensable={})
"""


def on_a_terminal(code: str, columns: str) -> list[str]:
    """Return the lines that a program writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": columns, "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True, env=environment)
    os.close(theirs)
    lines = os.read(ours, 1 << 16).decode().splitlines()
    os.close(ours)
    return lines


@pytest.mark.parametrize(
    ("columns", "dispensable", "lines"),
    [
        ("200", ("B", "C"), ["ABC", "xyz"]),
        ("24", ("B", "C"), ["AC", "xz"]),
        ("5", ("B", "C"), ["A", "x"]),
        ("24", (), ["AB", "xy", "z"]),
        ("200", (), ["ABC", "xyz"]),
        ("15", ("B",), ["A", "x", "z"]),
    ],
)
def test_a_table_fits_its_terminal(columns: str, dispensable: tuple[str, ...], lines: list[str]):
    """What can be done without goes, one after the other; then the last goes below its row."""
    written = on_a_terminal(TABLE.format(dispensable), columns)
    assert ["".join(word[0] for word in line.split()) for line in written] == lines


@pytest.mark.parametrize("words", [["recommend", "--task", "code"], ["list", "--catalog"]])
def test_no_line_of_a_table_is_wider_than_a_terminal(words: list[str]):
    """The reasons of `recommend` made rows of 115 characters, which a terminal broke anywhere."""
    code = f"import sys; sys.argv[1:] = {words}; from langchain_car_vllm.cli import main; main()"
    lines = on_a_terminal(code, "80")
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80


ENDS_SLOWLY = """
import atexit, sys, time
from langchain_car_vllm.cli import main

def end_slowly():
    print("ending", flush=True)
    time.sleep(600)

atexit.register(end_slowly)
main()
"""


@pytest.mark.parametrize("is_heard", [True, False])
def test_ctrl_c_while_it_ends(is_heard: bool):
    """It ends at once, and shows no traceback of what was going on; `nohup` still holds."""
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler if is_heard else signal.SIG_IGN
    )
    try:
        ending = subprocess.Popen(
            [sys.executable, "-c", ENDS_SLOWLY, "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with ending:
        assert ending.stdout is not None
        assert "ending\n" in ending.stdout
        ending.send_signal(signal.SIGINT)
        ending.send_signal(signal.SIGTERM)
        assert ending.wait(PATIENCE) == -(signal.SIGINT if is_heard else signal.SIGTERM)
        assert ending.stderr is not None
        assert ending.stderr.read() == ""
