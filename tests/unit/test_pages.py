"""The documentation is run: Python against a scripted server, shell by the parser of commands.

The blocks of a page build on each other, as its reader copies them.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from typer.main import get_command
from unit.wire.test_media import RED

import langchain_car_vllm
from langchain_car_vllm.cli.app import app
from langchain_car_vllm.wire.request.parameters import IN_A_CALL

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SET_UP = "from langchain_car_vllm import ChatVllmMlx\nllm = ChatVllmMlx(model='m')\n"
FOREIGN = {
    "ray",
    "serve",
    "tmutil",
    "rm",
    "python3",
    "source",
    "pip",
    "uvicorn",
    "curl",
    "uv",
    "git",
    "cd",
    "export",
    "eval",
    "openssl",
}

DECISIONS = "VllmMlxDecisions"
HAS_DECISIONS = DECISIONS in langchain_car_vllm.__all__
WITHOUT_DECISIONS = "the pages tell of decisions, which langchain-core before 1.8 does not know"


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code of a page in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class AnyModel(Dialect):
    """Serves whatever it is asked for."""

    def respond(self, method, path, headers, body):
        if body:
            self.served_model = json.loads(body)["model"]
        return super().respond(method, path, headers, body)


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, socket_enabled: None
):
    """Each block of a page runs after those before it."""
    code = blocks(page, "python")
    if not code:
        return
    (tmp_path / "moon.png").write_bytes(RED)
    monkeypatch.chdir(tmp_path)
    with Server(AnyModel(multimodal=True)) as server:
        monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", server.base_url)
        # What `car-vllm env` prints.
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_MODEL", "m")
        names: dict[str, object] = {"__name__": "page"}
        exec(SET_UP, names)
        for block in code:
            if HAS_DECISIONS or DECISIONS not in block:
                exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_blocks_are_commands(page: Path):
    """Each command line of `car-vllm` parses, each target of `make` is there."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    group = get_command(app)
    for block in blocks(page, "bash", "sh", "shell"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0] and not words[0].startswith("-"):
                words.pop(0)
            inner = re.findall(r"\$\((car-vllm [^)]*)\)", line)
            for command in [words, *map(shlex.split, inner)]:
                if not command:
                    continue
                if command[0] == "car-vllm":
                    parse(group, command[1:])
                elif command[0] == "make":
                    assert command[1] in targets, line
                else:
                    assert command[0] in FOREIGN, line


def parse(command, words: list[str]) -> None:
    """Parse a command line without running it."""
    with command.make_context("car-vllm", list(words), resilient_parsing=False) as context:
        if not hasattr(command, "commands"):
            return
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        _, inner, left = command.resolve_command(context, rest)
        parse(inner, left)


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    fenced = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    return fenced.sub("", page.read_text(encoding="utf-8"))


SOURCES = sorted((ROOT / "langchain_car_vllm").rglob("*.py"))


@pytest.mark.parametrize("file", [*PAGES, *SOURCES], ids=lambda file: file.stem)
def test_commands_in_sentences_are_commands(file: Path):
    """Each that a page or a message names is there, with the options it is named with."""
    text = prose(file) if file.suffix == ".md" else file.read_text(encoding="utf-8")
    for written in re.findall(r"`car-vllm ([^`]+)`", re.sub(r'"\n\s*f?"', "", text)):
        command, words = get_command(app), re.sub(r"[\[\]]", " ", written).split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command.name != get_command(app).name, written
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        assert {word.split("=")[0] for word in words if word.startswith("-")} <= options, written


CLASSES = ("ChatVllmMlx", "VllmMlxEmbeddings", "VllmMlxReranker", "VllmMlxDecisions")
SETTINGS = IN_A_CALL.union(
    *(
        getattr(langchain_car_vllm, name).model_fields
        for name in CLASSES
        if name in langchain_car_vllm.__all__
    )
)
# Parameters of methods, of LangChain's functions, LangServe's and Ollama's.
FOREIGN_SETTINGS = {
    "allowed_objects",
    "config",
    "config_keys",
    "force",
    "format",
    "include_raw",
    "init_validator",
    "messages",
    "stream_mode",
    "streams_tool_calls",
    "update",
    "valid_namespaces",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_sentences_are_settings(page: Path):
    """What a page sets in passing, or in code that is not run, has that name."""
    text = prose(page)
    if DECISIONS in page.read_text() and not HAS_DECISIONS:
        pytest.skip(WITHOUT_DECISIONS)
    named = {
        name
        for code in re.findall(r"`([^`\n]+)`", text)
        for name in re.findall(r"(?:^|[(, ])([a-z_]+)=", code)
    }
    assert named <= SETTINGS | FOREIGN_SETTINGS
    for line in re.findall(r"^    (.*\b(?:ChatVllmMlx|VllmMlx\w+)\(.*)$", text, re.MULTILINE):
        for node in ast.walk(ast.parse(line)):
            if isinstance(node, ast.Call):
                assert {keyword.arg for keyword in node.keywords} <= SETTINGS, line


@pytest.mark.skipif(not HAS_DECISIONS, reason=WITHOUT_DECISIONS)
def test_generated_pages_are_current():
    """What is said of settings and errors is what the code says."""
    script = ROOT / "scripts" / "reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("CAR_")},
    )
    assert done.returncode == 0, done.stderr
