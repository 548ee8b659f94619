import sys
from pathlib import Path

import pytest

from langchain_car_vllm import paths
from langchain_car_vllm.environment import find_program
from langchain_car_vllm.runtime import (
    installed_version,
    interpreter_of,
    resolve_existing,
    search_dirs,
)
from langchain_car_vllm.runtime.marker import Marker, write_marker
from langchain_car_vllm.runtime.uv_binary import find_uv
from langchain_car_vllm.support.version_numbers import is_at_least


def on_path(monkeypatch, *folders):
    monkeypatch.setenv("PATH", ":".join([*map(str, folders), "/usr/bin", "/bin"]))


def test_managed_paths_are_under_dot_car(home):
    """The managed runtime lives in `~/.car/visual-runtime`."""
    assert paths.managed_root() == home / ".car" / "visual-runtime"


def test_car_home_does_not_move_the_runtime(home, monkeypatch, tmp_path):
    """`CAR_HOME` moves run state only."""
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "elsewhere"))
    assert paths.managed_root() == home / ".car" / "visual-runtime"


def test_search_dirs_in_order(home, monkeypatch):
    """PATH leads, then `~/.local/bin`, uv's tool folders, this environment, the managed one."""
    monkeypatch.setenv("PATH", "/first:/second::/first")
    monkeypatch.setenv("UV_TOOL_DIR", "/uv/tools")
    monkeypatch.setenv("UV_TOOL_BIN_DIR", "/uv/bin")
    assert search_dirs() == [
        Path("/first"),
        Path("/second"),
        home / ".local/bin",
        Path("/uv/bin"),
        Path("/uv/tools/vllm-mlx/bin"),
        home / ".local/share/uv/tools/vllm-mlx/bin",
        Path(sys.prefix) / "bin",
        home / ".car/visual-runtime/bin",
    ]


def test_search_dirs_follow_the_xdg_variables(monkeypatch):
    """uv's tool folders move with the XDG variables."""
    monkeypatch.setenv("XDG_BIN_HOME", "/xdg/bin")
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg/data")
    assert Path("/xdg/bin") in search_dirs()
    assert Path("/xdg/data/uv/tools/vllm-mlx/bin") in search_dirs()


def test_search_dirs_without_home(monkeypatch):
    """Without HOME only what does not depend on it is searched."""
    monkeypatch.setenv("PATH", "/only")
    monkeypatch.setenv("HOME", "")
    assert search_dirs() == [Path("/only"), Path(sys.prefix) / "bin"]
    assert resolve_existing() is None


@pytest.mark.parametrize("place", [".", "bin", "../clone/bin"])
def test_no_program_is_found_in_the_current_folder(
    home, tmp_path, write_binary, monkeypatch, place
):
    """`PATH=$PATH:` ends in the folder one is in, which may be a clone that brings programs."""
    clone = tmp_path / "clone"
    binary = write_binary(clone, first_lines="#!/usr/bin/env python")
    folder = binary.parent if place == "." else clone
    (binary.parent / "uv").write_text("#!/bin/sh\necho uv 0.9.0\n")
    (binary.parent / "uv").chmod(0o755)
    monkeypatch.chdir(folder)
    for path in (f"{place}:/usr/bin:/bin", *(["/usr/bin:/bin:"] if place == "." else [])):
        monkeypatch.setenv("PATH", path)
        assert resolve_existing() is None
        assert all(
            found.is_absolute() and not found.samefile(binary.parent)
            for found in search_dirs()
            if found.exists()
        )
        assert find_uv().parent != binary.parent
        assert find_program("uv") is None
        assert interpreter_of(binary) != binary.with_name("python")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.3.0", True),
        ("1.2.10", True),
        ("0.6.3rc1", True),
        ("0.3.0.dev1+local", True),
        ("0.30", True),
        ("v0.3", True),
        ("1", True),
        ("0.2", False),
        ("0.2.9", False),
        ("0.2.99", False),
        ("not-a-version", False),
        ("", False),
    ],
)
def test_the_version_gate(version, expected):
    """0.3.0 is the oldest that works; what cannot be read is too old."""
    assert is_at_least(version, (0, 3, 0)) is expected


@pytest.mark.parametrize(
    "place",
    [".local/bin", ".local/share/uv/tools/vllm-mlx/bin", ".car/visual-runtime/bin"],
)
def test_an_existing_install_is_found(home, write_binary, place):
    """A usable `vllm-mlx` is found in each of the usual places."""
    binary = write_binary((home / place).parent)
    assert resolve_existing() == binary


def test_path_wins(home, tmp_path, write_binary, monkeypatch):
    """Of two usable installs the one on PATH is taken."""
    write_binary(home / ".car/visual-runtime")
    binary = write_binary(tmp_path / "own")
    on_path(monkeypatch, binary.parent)
    assert resolve_existing() == binary


@pytest.mark.parametrize("version", ["0.2.9", None])
def test_an_old_or_unknown_version_is_skipped(home, tmp_path, write_binary, monkeypatch, version):
    """A binary that is too old, or of no known version, gives way to the next one."""
    on_path(monkeypatch, write_binary(tmp_path / "old", version).parent)
    assert resolve_existing() is None
    assert resolve_existing() is None
    newer = write_binary(home / ".car/visual-runtime")
    assert resolve_existing() == newer


def test_links_are_resolved(home, tmp_path, write_binary):
    """The link that `uv tool` puts into `~/.local/bin` leads to the tool's own environment."""
    binary = write_binary(tmp_path / "tools" / "vllm-mlx")
    (home / ".local" / "bin").mkdir(parents=True)
    (home / ".local" / "bin" / "vllm-mlx").symlink_to(binary)
    assert resolve_existing() == binary


def test_an_interrupted_installation_does_not_count(home, write_binary):
    """The managed environment is not used before its installation has ended, nor by a link."""
    root = home / ".car/visual-runtime"
    binary = write_binary(root)
    (home / ".local" / "bin").mkdir(parents=True)
    (home / ".local" / "bin" / "vllm-mlx").symlink_to(binary)
    write_marker(root, Marker("installing", ours=True, requirements="x"))
    assert resolve_existing() is None
    write_marker(root, Marker("complete", ours=True, requirements="x", version="0.6.0"))
    assert resolve_existing() == binary


def test_a_folder_or_a_dead_link_is_no_binary(home):
    """Only files count."""
    (home / ".local" / "bin" / "vllm-mlx").mkdir(parents=True)
    (home / ".car/visual-runtime/bin").mkdir(parents=True)
    (home / ".car/visual-runtime/bin/vllm-mlx").symlink_to("/nowhere")
    assert resolve_existing() is None


def test_the_override_is_used_as_it_is(tmp_path, monkeypatch, write_binary):
    """`CAR_VLLM_MLX_BIN` wins over everything, without a version gate."""
    on_path(monkeypatch, write_binary(tmp_path / "usable").parent)
    own = tmp_path / "anything"
    own.write_text("no script at all")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(own))
    assert resolve_existing() == own


@pytest.mark.parametrize("override", ["/nonexistent/vllm-mlx-xyz", "", "/"])
def test_an_override_that_is_no_file_is_ignored(tmp_path, monkeypatch, write_binary, override):
    """`CAR_VLLM_MLX_BIN` falls through to the search where it names no file."""
    binary = write_binary(tmp_path / "usable")
    on_path(monkeypatch, binary.parent)
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", override)
    assert resolve_existing() == binary


def test_a_relative_override_becomes_absolute(tmp_path, monkeypatch):
    """What is returned is absolute."""
    (tmp_path / "mine").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", "mine")
    assert resolve_existing() == tmp_path / "mine"


HEADS = {
    "plain": "#!{python}",
    "with an option": "#!{python} -E",
    "uv trampoline": "#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''",
    "pip trampoline": "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''",
    "relocatable": (
        "#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'python' "
        "\"$0\" \"$@\"\n' '''"
    ),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_the_version_is_read_without_running_anything(tmp_path, write_binary, head):
    """All forms of console scripts lead to their environment's metadata.

    The interpreters here are empty files, which nothing could run.
    """
    root = tmp_path / ("env" if "plain" in head or head.startswith("#!{") else "with space")
    python = root / "bin" / "python"
    binary = write_binary(root, "0.5.0", first_lines=head.format(python=python))
    assert interpreter_of(binary) == python
    assert installed_version(binary) == "0.5.0"


def test_real_scripts_of_every_kind_are_read(tmp_path):
    """What the real uv writes for short, long, spaced and relocatable paths is understood."""
    import subprocess

    import uv

    wheel = make_wheel(tmp_path)
    for name, options in [
        ("plain", []),
        ("with space", []),
        ("long" * 40, []),
        ("relocatable", ["--relocatable"]),
    ]:
        root = tmp_path / name
        run = [uv.find_uv_bin(), "--quiet", "--offline"]
        subprocess.run([*run, "venv", "--python", sys.executable, *options, root], check=True)
        python = root / "bin" / "python"
        subprocess.run([*run, "pip", "install", "--python", python, wheel], check=True)
        binary = root / "bin" / "vllm-mlx"
        assert interpreter_of(binary) == python
        assert installed_version(binary) == "0.4.1"
        if options:
            moved = root.rename(tmp_path / "moved")
            assert interpreter_of(moved / "bin" / "vllm-mlx") == moved / "bin" / "python"
            assert installed_version(moved / "bin" / "vllm-mlx") == "0.4.1"


def make_wheel(folder):
    import zipfile

    wheel = folder / "vllm_mlx-0.4.1-py3-none-any.whl"
    info = "vllm_mlx-0.4.1.dist-info"
    files = {
        "vllm_mlx/__init__.py": "",
        "vllm_mlx/cli.py": "def main(): pass\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: vllm-mlx\nVersion: 0.4.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nvllm-mlx = vllm_mlx.cli:main\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#!",
        b"#!/bin/sh",
        b"#!/bin/sh\necho hello",
        b"#!/bin/bash\nexec pyenv exec vllm-mlx",
        b"#!/usr/bin/env",
        b"#!/usr/bin/env no-such-python",
        b"#!/no/such/python\n",
        b"#!relative/python\n",
        b"\x7fELF\x02\x01\x01",
        b"\xff\xfe\x00\x00",
        b"#!/bin/sh\n'''exec' 'unclosed",
        b"#!/bin/sh\n'''exec' \n",
    ],
)
def test_scripts_that_name_no_python(tmp_path, content):
    """What names no Python that is there has neither interpreter nor version."""
    binary = tmp_path / "vllm-mlx"
    binary.write_bytes(content)
    assert interpreter_of(binary) is None
    assert installed_version(binary) is None


def test_env_is_looked_up_on_path(tmp_path, monkeypatch, write_binary):
    """`#!/usr/bin/env python` names the first one on PATH."""
    binary = write_binary(tmp_path / "env", first_lines="#!/usr/bin/env python")
    python = binary.parent / "python"
    python.resolve().chmod(0o755)
    on_path(monkeypatch, binary.parent)
    assert interpreter_of(binary) == python
    assert installed_version(binary) == "0.6.0"


def test_a_missing_file_has_no_interpreter(tmp_path):
    """A path without a file is no error."""
    assert interpreter_of(tmp_path / "nothing") is None


def test_the_metadata_may_be_a_bare_folder(tmp_path, write_binary):
    """Without METADATA the folder's name tells the version."""
    assert installed_version(write_binary(tmp_path / "env", "0.4.1", metadata=False)) == "0.4.1"


def test_the_interpreters_own_version_is_asked_first(tmp_path, write_binary):
    """Where one prefix serves several Pythons, the script's own one counts."""
    binary = write_binary(tmp_path / "env", "0.6.0", python="python3.11")
    other = tmp_path / "env" / "lib" / "python3.10" / "site-packages"
    (other / "vllm_mlx-0.2.0.dist-info").mkdir(parents=True)
    assert installed_version(binary) == "0.6.0"


def test_a_user_install_is_found_beside_the_script(home, tmp_path, write_binary):
    """`pip install --user` puts the metadata below the script's prefix, not below Python's."""
    elsewhere = tmp_path / "usr" / "bin" / "python3"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    binary = write_binary(home / ".local", first_lines=f"#!{elsewhere}")
    assert installed_version(binary) == "0.6.0"
