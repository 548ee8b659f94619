"""Which Python runs supervisors, and with which environment."""

import sys

import pytest

from langchain_car_vllm.errors import CarVllmError, ConfigurationError
from langchain_car_vllm.server.interpreter import supervisor_environment, supervisor_python


def test_the_programs_own_python():
    """Mostly it is the one that runs the program."""
    assert supervisor_python() == sys.executable


@pytest.mark.parametrize("program", ["uwsgi", "QGIS", "Blender", "gunicorn", "python-config"])
def test_a_program_that_embeds_python_is_not_run(tmp_path, monkeypatch, program):
    """What is not a Python by its name is passed over for the one beside the library."""
    fake = tmp_path / program
    fake.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(sys, "_base_executable", str(fake))
    found = supervisor_python()
    assert found.startswith((sys.prefix, sys.base_prefix))


@pytest.mark.parametrize("name", ["python", "python3", "python3.14", "python3.14t", "Python"])
def test_the_names_of_pythons(tmp_path, monkeypatch, name):
    """All the names that Pythons have are known."""
    fake = tmp_path / name
    fake.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert supervisor_python() == str(fake)


@pytest.mark.parametrize("attribute", ["frozen", "silent"])
def test_a_frozen_program_is_told_what_to_set(monkeypatch, attribute):
    """A program without a Python needs `CAR_VLLM_PYTHON`, which wins."""
    if attribute == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(ConfigurationError, match="no Python") as caught:
        supervisor_python()
    assert "CAR_VLLM_PYTHON" in (caught.value.hint or "")
    monkeypatch.setenv("CAR_VLLM_PYTHON", "/some/python")
    assert supervisor_python() == "/some/python"


@pytest.mark.parametrize("program", ["python3.13", "python", "uwsgi"])
def test_a_python_that_was_removed_is_told_from_none(tmp_path, monkeypatch, program):
    """A program outlives the upgrade that removes its environment and its Python."""
    gone = tmp_path / "gone"
    if program == "python":  # the environment is left, with a link to what was removed
        (gone / "bin").mkdir(parents=True)
        (gone / "bin" / "python").symlink_to(tmp_path / "removed")
    for name in ("executable", "_base_executable"):
        monkeypatch.setattr(sys, name, str(gone / "bin" / program))
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(sys, name, str(gone))
    with pytest.raises(CarVllmError) as caught:
        supervisor_python()
    if program == "uwsgi":
        assert isinstance(caught.value, ConfigurationError)
    else:
        assert f"`{gone}/bin/{program}` is gone" in str(caught.value)
        assert "restart this program" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("inherited", "kept"),
    [
        ({"PYTHONHOME": "/app", "PYTHONPATH": "/app", "PYTHONEXECUTABLE": "/app"}, {}),
        ({"PYTHONDONTWRITEBYTECODE": "1", "A": "b"}, {"PYTHONDONTWRITEBYTECODE": "1", "A": "b"}),
        ({"LD_LIBRARY_PATH": "/frozen", "LD_LIBRARY_PATH_ORIG": "/x"}, {"LD_LIBRARY_PATH": "/x"}),
        ({"LD_LIBRARY_PATH": "/frozen", "LD_LIBRARY_PATH_ORIG": ""}, {}),
        ({"LD_LIBRARY_PATH": "/cuda"}, {"LD_LIBRARY_PATH": "/cuda"}),
    ],
)
def test_what_was_meant_for_the_program_stays_there(inherited, kept):
    """The program's own Python and libraries do not reach the supervisor."""
    assert supervisor_environment(inherited, "/path") == kept | {"PYTHONPATH": "/path"}
