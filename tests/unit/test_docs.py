"""The pages say what the code does: names, files and figures are compared."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

import langchain_car_vllm
import langchain_car_vllm.errors
from langchain_car_vllm.cli.app import app
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.server import Policy
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.state import Phase, Reason

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "langchain_car_vllm"
SUPERVISION = (ROOT / "docs" / "supervision.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
LANGCHAIN = (ROOT / "docs" / "langchain.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
_ARROW = re.compile(r"^\s+(\S+) --> (\S+?)(?:: (.+))?$", re.MULTILINE)


def _picture() -> list[tuple[str, str, str]]:
    drawn = re.search(r"```mermaid\n(.*?)```", SUPERVISION, re.DOTALL)
    assert drawn is not None
    return _ARROW.findall(drawn[1])


def test_the_picture_has_the_phases_of_the_state():
    """Every phase is drawn, and nothing else."""
    drawn = {name for start, end, _ in _picture() for name in (start, end)} - {"[*]"}
    assert drawn == set(get_args(Phase))


def test_the_picture_has_the_reasons_of_the_state():
    """Every reason is at an arrow to `stopped` or in its note, and nothing else."""
    labels = [label for _, end, label in _picture() if end == "stopped"]
    at_arrows = {word for label in labels for word in label.split(", ")}
    noted = set(
        re.findall(r"^\s+(\w+): ", SUPERVISION.split("note right of stopped")[1], re.MULTILINE)
    )
    assert at_arrows | noted == set(get_args(Reason))


def test_the_reasons_are_explained():
    """The table has one row for each reason."""
    table = SUPERVISION.split("| reason |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(get_args(Reason))


def test_no_phase_is_a_dead_end():
    """From every phase there are arrows to `stopped`."""
    arrows = {(start, end) for start, end, _ in _picture()}
    live = set(get_args(Phase)) - {"stopped"}
    assert {start for start, end in arrows if end == "stopped"} == live


def test_the_files_are_listed():
    """The table names each file of a server's directory."""
    directory = ServerDirectory(Path("/run"))
    files = {
        value.name
        for name in vars(ServerDirectory)
        if isinstance(value := getattr(directory, name), Path) and value != directory.path
    }
    table = SUPERVISION.split("| file |")[1].split("\n\n")[0]
    assert {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)} == files


def test_the_timings_are_those_of_the_policy():
    """Each figure of the table is the default."""
    rows = re.findall(r"^\| `(\w+)`: .* \| ([\d.]+) s \|$", SUPERVISION, re.MULTILINE)
    assert rows
    for name, value in rows:
        assert float(value) == getattr(Policy(), name), name


def test_the_commands_are_listed():
    """Each command of `car-vllm` has its row, and no other."""
    rows = re.findall(r"^\| `car-vllm (\w+)", COMMANDS, re.MULTILINE)
    shown = [name for name, command in get_command(app).commands.items() if not command.hidden]
    assert sorted(rows) == sorted(shown)


def test_the_layers_are_those_of_the_contract():
    """The picture in the guide is the one that the linter holds."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if c["name"] == "imports run one way")
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^    ([a-z_]+(?: \| [a-z_]+)*)$", guide, re.MULTILINE)
    assert drawn == [layer.replace("langchain_car_vllm.", "") for layer in layers]


REPOSITORY = "https://github.com/langchain-car-vllm/langchain-car-vllm"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
    ],
)
def test_links_lead_somewhere(page: str):
    """Each names a file and a heading that are there; a page of the site leaves it by address."""
    source = ROOT / page
    for target, heading in re.findall(
        r"\]\(([^)#]*)(?:#([^)]+))?\)", source.read_text(encoding="utf-8")
    ):
        inside = re.sub(rf"^{REPOSITORY}/(?:tree|blob)/main/", "", target)
        if "://" in inside:
            continue
        file = ROOT / inside if inside != target else source.parent / target if target else source
        assert file.exists(), target
        if page.startswith("docs/") and inside == target:
            assert file.resolve().is_relative_to(ROOT / "docs"), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda p: p.name)
def test_proofs_that_are_named_are_there(page: Path):
    """A page that names a file of tests by its folder names one that exists."""
    named = re.findall(r"\b(?:integration_)?tests/[\w/]+\.py", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).is_file()] == []


QUESTIONS = {
    "which model for my Mac": ("models.md", "16 GB"),
    "how large is the download": ("quickstart.md", "GB"),
    "where do files lie": ("macos.md", "## Where files lie"),
    "how do I update": ("macos.md", "## Updating"),
    "how do I remove it": ("macos.md", "## Removing everything"),
    "other programs": ("command-line.md", "## Other programs"),
    "other machines": ("command-line.md", "### Other machines"),
    "Open WebUI, SDKs and editors": ("command-line.md", "Open WebUI"),
    "containers": ("deployment.md", "## Containers"),
    "LangServe": ("deployment.md", "## LangServe"),
    "FastAPI": ("deployment.md", "## FastAPI"),
    "LangGraph": ("deployment.md", "## LangGraph"),
    "LangSmith": ("deployment.md", "LangSmith"),
    "what is wrong": ("troubleshooting.md", "car-vllm doctor"),
    "all settings": ("configuration.md", "## ChatVllmMlx"),
    "all errors": ("errors.md", "ServerStoppedError"),
    "Python on a Mac": ("quickstart.md", "Homebrew"),
    "Intel Macs and Windows": ("troubleshooting.md", "Intel Mac, Windows"),
    "several Macs": ("scaling.md", "## Several Macs"),
    "from Ollama": ("migrating.md", "## From ChatOllama"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_of_a_new_user_have_their_page(question: str):
    """Each is answered on the page where it is looked for, and the page is found from the start."""
    page, words = QUESTIONS[question]
    assert words in (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert f"docs/{page}" in README
    assert f"({page}" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_the_site_shows_each_page():
    """What is not in the navigation is found by nobody, and fails the strict build."""
    shown = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    docs = ROOT / "docs"
    assert shown == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}


def test_both_tables_of_models_are_one():
    """The front page and `models.md` name the same models for the same Macs."""
    pages = README, (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    tables = {page.split("| Mac | try | download |")[1].split("\n\n")[0] for page in pages}
    assert len(tables) == 1


def test_the_models_of_the_examples_exist():
    """The ids in the pages are ids."""
    for model in re.findall(r'model="([^"]+)"', README + LANGCHAIN):
        assert parse_model_id(model.removeprefix("vllm_mlx:")).name


def test_the_models_that_the_code_names_exist():
    """So do those in hints and docstrings, which the user copies."""
    sources = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    named = set(re.findall(r"\bvllm-mlx/[\w.:-]*[\w]", sources))
    assert named
    for model in named:
        assert parse_model_id(model.removeprefix("vllm_mlx:")).name


def test_the_examples_of_the_chat_model_are_python():
    """Each block compiles, and each name it imports from the package is there."""
    blocks = re.findall(r"```python\n(.*?)```", LANGCHAIN, re.DOTALL)
    assert len(blocks) > 5
    for block in blocks:
        compile(block, "docs/langchain.md", "exec")
        for names in re.findall(r"from langchain_car_vllm import (.+)", block):
            # langchain-core before 1.8 knows no decisions.
            public = {*langchain_car_vllm.__all__, "VllmMlxDecisions"}
            assert set(names.split(", ")) <= public


def test_no_merge_was_left_half_done():
    """No file of the project holds the marks of a conflict."""
    conflict = re.compile(rb"^(<{7}|>{7}|[|]{7}) ", re.MULTILINE)
    visible = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    files = [file for path in visible for file in (path, *path.rglob("*")) if file.is_file()]
    assert ROOT / "README.md" in files
    assert not [file for file in files if conflict.search(file.read_bytes())]


DIFFERING = (
    *("ModelDownloadError", "ProvisionError", "ServerStartError", "ServerStoppedError"),
    *("ServerCrashedError", "InsufficientMemoryError", "CarVllmError", "ServerError"),
)


@pytest.mark.parametrize("name", DIFFERING)
def test_no_class_promises_what_some_of_its_errors_do_not_keep(name):
    """Whether the same call may succeed when it is repeated is up to the error itself."""
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    entry = page.partition(f"# {name}\n")[2].partition("\n#")[0]
    assert "`is_retryable` of the error says" in entry
    assert "The same call" not in entry
