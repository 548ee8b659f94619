"""Values of options and variables: one rule for all of either kind."""

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from unit.cli.conftest import Cli
from unit.test_environment import BAD as BAD_VARIABLES

from langchain_car_vllm.cli.app import app
from langchain_car_vllm.environment import CAR_VLLM_MLX_KEEP_ALIVE

# Of every option that takes a value, those that no machine could make right.
BAD = {
    "--agents": ["0", "-1", "10001", "few"],
    "--context": ["64kb", "0", "-5", "many", "", "99999999999"],
    "--engine": ["x"],
    "--format": ["xml"],
    "--keep-alive": ["5x", "-2", "", "nan", "soon"],
    "--lines": ["-5", "x", "9" * 20],
    "--max-tokens": ["0", "-1", "x"],
    "--port": ["99999", "-1", "x"],
    "--revision": ["", "a b", "../x"],
    "--server-arg": ["--port=5", "--api-k", "--host"],
    "--task": ["poetry"],
    "--temperature": ["-1", "nan", "hot"],
}
TAKE_ANY = {"--system", "--host", "--api-key-file"}
"""A text, or what a look at the machine judges."""
DECIDES = [
    ["run", "org/x", "hi"],
    ["serve", "org/x"],
    ["env", "org/x"],
    ["launch", "codex", "org/x"],
    ["service", "install", "org/x"],
    ["plan", "org/x"],
    ["pull", "org/x"],
    ["install"],
    ["recommend"],
    ["bench", "org/x"],
]
ONLY_LOOKS = [["ps"], ["stop", "--all"], ["list"], ["completion", "bash"], ["version"]]


def options() -> Iterator[tuple[list[str], Any]]:
    """Yield each option that takes a value, with the words of its command."""
    groups = [([], get_command(app).commands)]
    while groups:
        words, commands = groups.pop()
        for name, command in commands.items():
            if hasattr(command, "commands"):
                groups.append(([*words, name], command.commands))
                continue
            for option in command.params:
                is_hidden = getattr(option, "hidden", True)
                if option.param_type_name == "option" and not option.is_flag and not is_hidden:
                    yield [*words, name], option


def name_of(option: Any) -> str:
    return next(name for name in option.opts if name.startswith("--"))


def test_every_option_that_takes_a_value_is_tried_here():
    """A new one gets its counter-examples."""
    assert {name_of(option) for _, option in options()} == {*BAD, *TAKE_ANY}


CASES = [
    (words, name_of(option), text)
    for words, option in options()
    for text in BAD.get(name_of(option), ())
]


@pytest.mark.parametrize(
    ("words", "option", "text"), CASES, ids=[f"{' '.join(w)} {o}={t}" for w, o, t in CASES]
)
def test_a_value_that_cannot_be_is_wrong_usage(
    cli_here: Cli, words: list[str], option: str, text: str
):
    """The exit code is 2, and plain words name the option, whichever release of typer it is."""
    arguments = {"launch": ["codex", "org/x"]}.get(words[-1], ["org/x"])
    done = cli_here(*words, *arguments, f"{option}={text}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Invalid value for" in done.stderr
    assert option in done.stderr
    assert "Value error" not in done.stderr
    assert "Input should" not in done.stderr


def keeps_alive() -> list[Any]:
    return [option for _, option in options() if "--keep-alive" in option.opts]


def test_every_command_keeps_a_model_as_the_variable_says(monkeypatch: pytest.MonkeyPatch):
    """`env` had ten minutes of its own; what holds a model until it ends says so in its help."""
    monkeypatch.setenv(CAR_VLLM_MLX_KEEP_ALIVE.name, "2s")
    found = keeps_alive()
    assert len(found) == 4
    for option in found:
        if option.default is None:
            assert f"{CAR_VLLM_MLX_KEEP_ALIVE.name} has no effect" in option.help
        else:
            assert option.default() == "2s"


@pytest.mark.parametrize("words", DECIDES, ids=" ".join)
def test_variables_that_cannot_work_end_what_starts_or_decides(cli_here: Cli, words: list[str]):
    """Python refuses them all, and so do these, read by them or not."""
    for name in ("CAR_VLLM_MLX_KEEP_ALIVE", "CAR_VLLM_MLX_WIRED", "CAR_VLLM_MLX_LOAD_STALL"):
        bad = BAD_VARIABLES[name][0]
        done = cli_here(*words, **{name: bad})
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.replace("`", "").startswith(f"error: {name} must be ")
        assert "hint: " in done.stderr


@pytest.mark.parametrize("words", ONLY_LOOKS, ids=" ".join)
def test_variables_that_cannot_work_keep_nobody_from_looking(cli_here: Cli, words: list[str]):
    """What runs can still be seen and stopped."""
    assert cli_here(*words, CAR_VLLM_MLX_WIRED="yes").returncode == 0
