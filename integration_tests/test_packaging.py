"""What is published: what the wheel holds, what the index shows, and that it works elsewhere."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import uv

ROOT = Path(__file__).parents[1]
LARGEST = 2_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [uv.find_uv_bin(), "build", "--quiet", "--out-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built: Path):
    """Each file of the package is there, and no test, cache or model."""
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size < LARGEST
    names = zipfile.ZipFile(wheel).namelist()
    ours = {name for name in names if ".dist-info/" not in name}
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "langchain_car_vllm").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours == there


def test_the_index_shows_it_well(built: Path):
    """The metadata passes the strict check; links, words and classifiers are there."""
    files = [str(path) for path in built.iterdir() if path.suffix in (".whl", ".gz")]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    assert len(metadata.get_all("Project-URL")) >= 4
    assert "ollama" in metadata["Keywords"]
    assert "](docs/" not in metadata.get_payload()
    assert "](https://" in metadata.get_payload()


def test_the_tests_of_the_sdist_can_be_collected(built: Path, tmp_path: Path):
    """Whoever packages it elsewhere can run them."""
    (sdist,) = built.glob("*.tar.gz")
    assert sdist.stat().st_size < LARGEST
    subprocess.run(["tar", "-xf", str(sdist), "-C", str(tmp_path)], check=True)
    (root,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "pytest", "tests", "--collect-only", "-q"]
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
