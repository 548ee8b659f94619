"""The real uv under settings that were made for somebody's own projects."""

import errno
import itertools
import os
import tempfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime.commands import clean_environment
from langchain_car_vllm.runtime.uv_settings import (
    _CERTIFICATE_KEYS,
    _KEPT_KEYS,
    _PROXIES,
    _toml,
    absolute_settings,
    has_system_certificates,
    uv_environment,
)

HOSTILE = """
exclude-newer = "2020-01-01T00:00:00Z"
no-binary = true
resolution = "lowest"
link-mode = "symlink"
constraint-dependencies = ["tiny<1"]
override-dependencies = ["tiny==0.5"]
[pip]
target = "/nonexistent/elsewhere"
no-binary = [":all:"]
"""


@pytest.mark.parametrize("place", [".config/uv/uv.toml", "uv.toml", ".car/uv.toml"])
def test_settings_files_for_projects_do_not_steer_the_install(install_wheel, home, place):
    """An age gate, constraints and a target of the user's, or of a folder above, are not ours."""
    file = home / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(HOSTILE)
    assert install_wheel()


def test_a_project_in_the_home_does_not_steer_the_install(install_wheel, home):
    """A `pyproject.toml` above the runtime is somebody's project."""
    (home / "pyproject.toml").write_text(
        "[project]\nname = 'mine'\nversion = '1'\n[tool.uv]\n"
        "constraint-dependencies = ['tiny<1']\nexclude-newer = '2020-01-01T00:00:00Z'\n"
    )
    assert install_wheel()


@pytest.mark.parametrize(
    "variables",
    [
        {"UV_EXCLUDE_NEWER": "2020-01-01T00:00:00Z"},
        {"UV_CONSTRAINT": "constraints.txt"},
        {"UV_OVERRIDE": "constraints.txt"},
        {"UV_PROJECT": "elsewhere"},
        {"UV_WORKING_DIRECTORY": "elsewhere", "UV_WORKING_DIR": "elsewhere"},
        {"UV_NO_CACHE": "1", "UV_LINK_MODE": "symlink"},
        {"UV_NO_BINARY": "1"},
        {"UV_PYTHON": "3.1"},
        {"UV_RESOLUTION": "lowest", "UV_PRERELEASE": "allow"},
        {"UV_SYSTEM_PYTHON": "1"},
        {"UV_NO_CONFIG": "1", "UV_TORCH_BACKEND": "nonsense"},
        {"FORCE_COLOR": "1"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_variables_for_projects_do_not_steer_the_install(install_wheel, monkeypatch, variables):
    """What the environment asks for other installs changes nothing of this one."""
    Path("constraints.txt").write_text("tiny==0.5\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert install_wheel()


@pytest.mark.parametrize("where", ["variable", "file", "named file", "pip table"])
def test_where_packages_are_is_kept(install_wheel, home, wheels, monkeypatch, where):
    """An index of the user's is used, also by a path relative to where it is named."""
    monkeypatch.delenv("UV_FIND_LINKS")
    line = 'find-links = ["../../../wheels"]\n'
    if where == "variable":
        monkeypatch.setenv("UV_FIND_LINKS", "../wheels")
    elif where == "named file":
        Path("mine.toml").write_text('find-links = ["../wheels"]\n')
        monkeypatch.setenv("UV_CONFIG_FILE", "mine.toml")
    else:
        file = home / ".config" / "uv" / "uv.toml"
        file.parent.mkdir(parents=True)
        head = "[pip]\n" if where == "pip table" else ""
        file.write_text(
            head + line.replace("../../../", f"{os.path.relpath(wheels.parent, file.parent)}/")
        )
    assert install_wheel()


def test_the_supervisor_finds_what_relative_variables_mean(monkeypatch, tmp_path):
    """Before it leaves the user's folder, what names files there becomes absolute."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wheels").mkdir()
    found = absolute_settings(
        {
            "CAR_UV": "bin/uv",
            "SSL_CERT_FILE": "~/certs.pem",
            "UV_INDEX": "mine=./wheels https://example.invalid/simple",
            "UV_LINK_MODE": "copy",
        }
    )
    assert found == {
        "CAR_UV": f"{tmp_path}/bin/uv",
        "SSL_CERT_FILE": f"{os.environ['HOME']}/certs.pem",
        "UV_INDEX": f"mine={tmp_path}/wheels https://example.invalid/simple",
    }


def test_a_settings_file_that_cannot_be_read_is_named(home):
    """Nonsense in `uv.toml` is told with the file's name."""
    file = home / ".config" / "uv" / "uv.toml"
    file.parent.mkdir(parents=True)
    file.write_text("index = [")
    with pytest.raises(ProvisionError, match=r"uv\.toml") as caught, uv_environment({}):
        pass
    assert "correct" in caught.value.hint


@pytest.mark.parametrize(
    ("variables", "settings", "value"),
    [
        ({}, "", "1"),
        ({"UV_SYSTEM_CERTS": "0"}, "", "0"),
        ({"UV_NATIVE_TLS": "0"}, "", None),
        ({"SSL_CERT_FILE": "/certs.pem"}, "", None),
        ({}, "native-tls = false", "0"),
        ({}, "system-certs = true", "1"),
    ],
)
def test_uv_trusts_what_the_system_trusts(home, variables, settings, value):
    """Unless the user says otherwise, by any of the ways that there are."""
    assert has_system_certificates("darwin")
    file = home / ".config" / "uv" / "uv.toml"
    file.parent.mkdir(parents=True)
    file.write_text(settings)
    with uv_environment(variables) as environment:
        expected = value if has_system_certificates() or variables or settings else None
        assert environment.get("UV_SYSTEM_CERTS") == expected


def test_proxies_of_a_settings_file_are_kept(home):
    """A proxy in `uv.toml` is used, one in the environment wins, this machine is behind none."""
    file = home / ".config" / "uv" / "uv.toml"
    file.parent.mkdir(parents=True)
    file.write_text(
        'https-proxy = "http://a:1"\nhttp-proxy = "http://b:2"\nno-proxy = ["c", "d"]\n'
    )
    with uv_environment({"http_proxy": "http://own:3"}) as environment:
        assert environment["HTTPS_PROXY"] == "http://a:1"
        assert environment["NO_PROXY"] == "c,d,localhost,127.0.0.1,::1"
        assert "HTTP_PROXY" not in environment


VALUES = st.recursive(
    st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab-", min_size=1), inner, max_size=3)
    ),
    max_leaves=6,
)

ODD = (
    *('"x"', "5", "true", "[]", '["a"]', "[1]", '[["a"]]', '{a = "b"}', "[{url = 5}]", "inf"),
    *("1979-05-27", '[{url = "../x"}]', '""', '"~nobody-at-all/x"', '"\\u0000"', "[" * 5000),
)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_copy_that_cannot_be_written_is_told(home, monkeypatch, number):
    """A container may have no folder for temporary files, or a full one."""
    file = home / ".config" / "uv" / "uv.toml"
    file.parent.mkdir(parents=True)
    file.write_text("offline = true\n")

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ProvisionError, match=os.strerror(number)) as caught, uv_environment({}):
        pass
    assert "TMPDIR" in caught.value.hint


@pytest.mark.parametrize("key", sorted({*_KEPT_KEYS, *_PROXIES, *_CERTIFICATE_KEYS, "pip"}))
def test_whatever_a_setting_holds_is_handed_on_or_told(home, tmp_path, key):
    """The user's file and the system's: texts for uv, or an error that names the file."""
    own, system = home / ".config" / "uv" / "uv.toml", tmp_path / "etc" / "uv" / "uv.toml"
    for file in (own, system):
        file.parent.mkdir(parents=True)
    variables = {"HOME": str(home), "XDG_CONFIG_DIRS": str(tmp_path / "etc")}
    for mine, theirs in itertools.product(ODD, ODD[:5]):
        own.write_text(f"{key} = {mine}\n")
        system.write_text(f"{key} = {theirs}\n")
        refused, texts = None, []
        try:
            with uv_environment(variables) as environment:
                texts = [*environment.values()]
        except ProvisionError as error:
            refused = error
        assert all(isinstance(text, str) and "\0" not in text for text in texts)
        assert refused is None or "uv.toml" in refused.detail


@given(VALUES)
def test_settings_are_written_as_they_were_read(value):
    """What is kept of a settings file is the same TOML value again."""
    assert tomllib.loads(f"x = {_toml(value)}")["x"] == value


def test_the_environment_of_uv_is_clean(monkeypatch):
    """Nothing that belongs to this Python, and no colours, reach uv."""
    monkeypatch.setenv("PYTHONPATH", "/x")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with uv_environment(clean_environment()) as environment:
        assert not {"PYTHONPATH", "FORCE_COLOR"} & environment.keys()
        assert environment["NO_COLOR"] == "1"
