"""Rules over the code that the linters do not know."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from langchain_car_vllm.environment import VARIABLES

PACKAGE = Path(__file__).parents[2] / "langchain_car_vllm"
MODULES = sorted(PACKAGE.rglob("*.py"))
# They run alone in the server's Python and cannot import the declarations.
_ALONE = ("models/downloader.py", "server/supervisor/launch.py")
# Its names are data: what is let through to a child, whoever declares it.
_LISTS = ("environment.py", "server/child_environment.py", "runtime/uv_settings.py")
_MOST_LINES = 400


def relative(module: Path) -> str:
    """Return a module's path inside the package."""
    return module.relative_to(PACKAGE).as_posix()


def nodes(module: Path) -> Iterator[ast.AST]:
    """Yield all nodes of a module."""
    return ast.walk(ast.parse(module.read_text(encoding="utf-8")))


def test_variables_are_named_in_their_declarations_only():
    """Everywhere else it is the constant that is used; only prose says the name."""
    offenders = [
        f"{relative(module)}:{node.lineno}: use `environment.{node.value}`"
        for module in MODULES
        if relative(module) not in (*_LISTS, *_ALONE)
        for node in nodes(module)
        if isinstance(node, ast.Constant) and node.value in VARIABLES
    ]
    assert not offenders


def test_prose_names_variables_that_exist():
    """A hint or a docstring names no variable that is not declared."""
    for module in MODULES:
        for name in re.findall(r"\bCAR_[A-Z_]*[A-Z]\b", module.read_text(encoding="utf-8")):
            assert name in VARIABLES, f"{relative(module)}: {name}"


def test_no_two_modules_share_a_name():
    """A name in a traceback or a tab leads to one file."""
    names = Counter(module.name for module in MODULES)
    for name in ("__init__.py", "__main__.py", "errors.py"):
        names.pop(name)
    assert not [name for name, count in names.items() if count > 1]


def test_modules_are_short():
    """A module that grows beyond this is two."""
    lengths = {relative(m): len(m.read_text(encoding="utf-8").splitlines()) for m in MODULES}
    assert not {name: count for name, count in lengths.items() if count > _MOST_LINES}
