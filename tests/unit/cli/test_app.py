"""The command line as a whole: words, help, completion, exit codes."""

import subprocess
from importlib.metadata import version

import pytest
from unit.cli.conftest import Cli

from langchain_car_vllm.cli.app import app


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["help"], []])
def test_help_in_every_way_of_asking(cli: Cli, words: list[str]):
    """All commands are listed, in 80 columns."""
    done = cli(*words, COLUMNS="80")
    text = done.stdout + done.stderr
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.strip("_")
        assert command.hidden or f" {name} " in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("word", ["-V", "--version", "version"])
def test_version_in_every_way_of_asking(cli: Cli, word: str):
    """The version is the data."""
    assert cli(word).stdout.strip() == version("langchain-car-vllm")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("load", "serve M"),
        ("tags", "list"),
        ("generate", "run M"),
        ("unload", "stop M"),
    ],
)
def test_words_of_other_tools(cli: Cli, word: str, meant: str):
    """Whoever knows another tool is told the word that is meant here."""
    done = cli(word, "x")
    assert done.returncode == 2
    assert f"`car-vllm {meant}" in done.stderr


def test_words_that_mean_the_same(cli: Cli):
    """`ls` lists, as everywhere."""
    assert cli("ls").stderr == cli("list").stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(cli: Cli, shell: str):
    """The script names the program; bash itself reads it."""
    script = cli("completion", shell).stdout
    assert "car-vllm" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
