"""Every example, run as its reader runs it, on the real server."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _preloaded(fast_cpu: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples start takes the faster BLAS from its environment."""
    for name, value in fast_cpu.items():
        monkeypatch.setenv(name, value)


def run(name: str, *arguments: str) -> str:
    """Run an example to its end and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLES,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here():
    """No example is forgotten."""
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("*.py"))
    loaded = "".join(file.read_text() for file in EXAMPLES.rglob("*.yaml"))
    made = (EXAMPLES.parent / "Makefile").read_text()
    for file in EXAMPLES.rglob("*.py"):
        imported = f"from {file.stem} import app" in tests or f'("{file.stem}"' in tests
        named = f'"{file.name}"' in tests or f"examples/{file.name} " in made
        assert imported or named or f"{file.stem}." in loaded, file


def test_chain(smollm2: str):
    """An answer, a batch, a stream."""
    first, batch, last = run("chain.py", smollm2).splitlines()[:3]
    assert first
    assert batch.startswith("[")
    assert last


def test_extraction(smollm2: str):
    """An object of the class, whatever a small model reads."""
    assert run("extraction.py", smollm2).startswith("Invoice(seller=")


def test_rag(smollm2: str, minilm: str, cross_encoder: str):
    """Each question finds its file, and is answered."""
    lines = run("rag.py", smollm2, minilm, cross_encoder).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("--")] == [
        "mars.txt",
        "trains.txt",
    ]


def test_graph(smollm2: str):
    """The graph stops for a person and goes on with the answer."""
    stopped, resumed = run("graph.py", smollm2).splitlines()
    assert "Send it?" in stopped
    assert "'sent': True" in resumed


def test_agent(qwen: str):
    """The tool is called, and its result reaches the answer."""
    text = run("agent.py", qwen)
    assert "called weather" in text
    assert "24" in text or "sunny" in text


def test_toolkits(qwen: str):
    """The tools of three toolkits are called, and give what is there."""
    text = run("toolkits.py", qwen)
    assert "-- got '[(11,)]'" in text
    assert "-- got 'The key is under the mat.'" in text
    assert '-- got \'{"item": "tea", "price": 3.5}\'' in text


def test_notebook(smollm2: str, monkeypatch: pytest.MonkeyPatch):
    """The notebook runs from its first cell to its last."""
    import nbclient
    import nbformat

    monkeypatch.setenv("MODEL", smollm2)
    notebook: Any = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("Moon(name=" in str(output) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "MODEL" in os.environ
