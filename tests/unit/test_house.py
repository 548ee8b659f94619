"""Rules over the code that the linters do not know."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.environment import VARIABLES

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "langchain_car_vllm"
MODULES = sorted(PACKAGE.rglob("*.py"))
# They run alone in the server's Python and cannot import the declarations.
_ALONE = (
    *("models/downloader.py", "server/supervisor/launch.py"),
    *("server/supervisor/mends/memory_limits.py", "server/supervisor/mends/chat_template.py"),
    *("server/supervisor/mends/adapters.py", "server/supervisor/mends/prefix_cache_folder.py"),
)
# Its names are data: what is let through to a child, whoever declares it.
_LISTS = ("environment.py", "server/child_environment.py", "runtime/uv_settings.py")
_MOST_LINES = 400
_MOST_MODULES = 30
# Where English says "is not a", "forever", "progress" and "takes long".
_STILTED = re.compile(
    r"(?<![Tt]here )\b(is|are|was|were) no (?!longer\b|more\b|better\b|other\b)\w+"
    r"|\bfor ever\b|\bheadway\b|\blets one wait\b"
)


def relative(module: Path) -> str:
    """Return a module's path inside the package."""
    return module.relative_to(PACKAGE).as_posix()


def nodes(module: Path) -> Iterator[ast.AST]:
    """Yield all nodes of a module."""
    return ast.walk(ast.parse(module.read_text(encoding="utf-8")))


def words_elsewhere(call: ast.AST) -> Iterator[tuple[int, int]]:
    """Yield where the commands begin that a call runs outside the current folder."""
    if not isinstance(call, ast.Call):
        return
    folders = [ast.unparse(word.value) for word in call.keywords if word.arg == "directory"]
    is_step = ast.unparse(call.func) == "run_step" and folders != ["Path()"]
    if is_step or ast.unparse(call.func) == "ask_program":
        parts = [part for argument in call.args for part in ast.walk(argument)]
        yield from ((p.lineno, p.col_offset) for p in parts if isinstance(p, ast.List))


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


def test_no_room_is_crowded():
    """What a folder holds is seen at a glance."""
    counts = Counter(module.parent for module in MODULES)
    assert not {folder: count for folder, count in counts.items() if count > _MOST_MODULES}


def test_prose_names_variables_that_exist():
    """A hint or a docstring names no variable that is not declared."""
    for module in MODULES:
        for name in re.findall(r"\bCAR_[A-Z_]*[A-Z]\b", module.read_text(encoding="utf-8")):
            assert name in VARIABLES, f"{relative(module)}: {name}"


def test_prose_is_plain_english():
    """Messages, hints and docstrings say what they mean in the usual words."""
    offenders = [
        f"{relative(module)}:{number}: {found.group()}"
        for module in MODULES
        for number, line in enumerate(module.read_text(encoding="utf-8").splitlines(), 1)
        if (found := _STILTED.search(line))
    ]
    assert not offenders


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


def test_no_call_waits_for_a_thread_of_the_loops():
    """A program may fill its loop's executor; what blocks here runs in threads of the package."""
    named = {
        relative(module)
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Attribute) and node.attr in ("to_thread", "run_in_executor")
    }
    assert named == set()


def test_only_the_context_assigns_the_state():
    """There is one writer of what a supervisor says of itself."""
    writers = {
        relative(module)
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and target.attr == "state"
    }
    assert writers <= {"server/supervisor/context.py"}


def test_no_connection_has_a_door_of_its_own():
    """Elsewhere nobody would ask who is at the other end, nor bound what comes from there."""
    doors = (
        "support/bounded_http.py",
        "models/proxies.py",  # they make tunnels
        *("cli/machine_checks.py", "cli/sharing.py"),  # say and hear nothing
        "cli/selftest.py",  # breaks connections on purpose
    )
    words = re.compile(r"HTTPS?Connection\(|create_connection\(|urlopen|Httpx?Client\(|\.connect\(")
    offenders = [
        f"{relative(module)}: {found[0]}"
        for module in MODULES
        if relative(module) not in doors
        if (found := words.search(module.read_text(encoding="utf-8")))
    ]
    assert not offenders


def test_files_are_looked_at_alike_on_every_python():
    """`Path.exists` and its like raise where nobody may look, and say no from Python 3.14 on.

    `os.path` says no everywhere, and `support/file_presence.py` raises everywhere.
    """
    looks = ("exists", "is_file", "is_dir", "is_symlink", "is_mount", "glob", "rglob", "walk")
    offenders = [
        f"{relative(module)}: {ast.unparse(node)}"
        for module in MODULES
        if relative(module) != "cli/build_model.py"  # makes what it looks at
        for node in nodes(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in looks and ast.unparse(node.func.value) not in ("os", "os.path", "glob")
        if not any(keyword.arg == "follow_symlinks" for keyword in node.keywords)  # of a listing
    ]
    assert not offenders


def test_foreign_folders_are_looked_at_without_a_surprise():
    """Where models of others lie, what nobody may look at is not there for us."""
    foreign = ("server/plan.py", "cli/models.py", "support/backups.py")
    offenders = [
        relative(module)
        for module in MODULES
        if relative(module).startswith("models/") or relative(module) in foreign
        if relative(module) != "models/download.py"  # asks for what an error is
        if "file_presence" in module.read_text(encoding="utf-8")
    ]
    assert not offenders


def test_no_child_imports_what_lies_in_the_current_folder():
    """Python puts it first on its path for `-c` and `-m`, unless it is told not to.

    An install's Python may know no `-P` (3.10), and with `-I` not what a user installed: it runs in
    another folder, as all that is asked with `ask_program` does.
    """
    offenders = [
        f"{relative(module)}:{node.lineno}: add `-P`"
        for module in MODULES
        for elsewhere in [{part for call in nodes(module) for part in words_elsewhere(call)}]
        for node in nodes(module)
        if isinstance(node, ast.List | ast.Tuple)
        if node.elts and ast.unparse(node.elts[0]) in ("sys.executable", "interpreter", "python")
        if (words := [e.value for e in node.elts if isinstance(e, ast.Constant)])
        if {"-c", "-m"} & {*words} and not {"-P", "-I"} & {*words}
        if (node.lineno, node.col_offset) not in elsewhere
    ]
    assert not offenders


def test_programs_are_looked_for_at_one_place():
    """`shutil.which` also finds those of the current folder, where PATH has a relative part."""
    offenders = [
        f"{relative(module)}:{node.lineno}: use `environment.find_program`"
        for module in MODULES
        if relative(module) != "environment.py"
        for node in nodes(module)
        if isinstance(node, ast.Attribute | ast.alias)
        if (node.attr if isinstance(node, ast.Attribute) else node.name) == "which"
    ]
    assert not offenders


def test_folders_of_the_home_are_made_at_one_place():
    """Folders made in passing get the umask's mode: below `CAR_HOME` that lets others in."""
    elsewhere = (
        *("paths.py", "server/directory.py", "models/downloader.py"),
        *("cli/build_model.py", "cli/selftest.py"),
    )
    offenders = [
        f"{relative(module)}:{node.lineno}: use `paths.make_private`"
        for module in MODULES
        if relative(module) not in (*elsewhere, *_ALONE)  # a server has a private umask
        for node in nodes(module)
        if (isinstance(node, ast.keyword) and node.arg == "parents")
        or (isinstance(node, ast.Attribute) and node.attr == "makedirs")
    ]
    assert not offenders


def test_nothing_is_linked():
    """A `CAR_HOME` may lie on a disk that knows no links, such as exFAT or a share of SMB."""
    links = ("link", "symlink", "hardlink_to", "symlink_to")
    offenders = [
        f"{relative(module)}:{node.lineno}"
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Attribute) and node.attr in links
    ]
    assert not offenders


def test_twins_take_the_same_arguments():
    """What exists as `x` and `ax` in one class or module takes the same, by name and by kind."""
    pairs = 0
    for module in MODULES:
        for scope in nodes(module):
            if not isinstance(scope, ast.Module | ast.ClassDef):
                continue
            functions = {
                node.name: node
                for node in scope.body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            for name, function in functions.items():
                stem = name.lstrip("_")
                twin = functions.get(f"{name[: len(name) - len(stem)]}a{stem}")
                if isinstance(twin, ast.AsyncFunctionDef) and isinstance(function, ast.FunctionDef):
                    pairs += 1
                    assert arguments(function) == arguments(twin), f"{relative(module)}: {name}"
    assert pairs > 5


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, str]]:
    """Return the names and kinds of a function's arguments; callback managers come in two kinds."""
    found = function.args
    kinds = {
        "positional": [*found.posonlyargs, *found.args],
        "keyword": found.kwonlyargs,
        "rest": [part for part in (found.vararg, found.kwarg) if part is not None],
    }
    return [(kind, argument.arg) for kind, group in kinds.items() for argument in group]


def test_each_slow_run_has_tests():
    """Pytest fails where nothing is selected, and with it the target of `make` that asked."""
    root = PACKAGE.parent
    makefile = (root / "Makefile").read_text(encoding="utf-8").replace("$(TESTS)", "tests")
    folders = re.findall(r"(\w+) -m full", makefile)
    assert {"tests", "integration_tests", "consumer_tests"} == set(folders)
    for folder in folders:
        files = (root / folder).rglob("*.py")
        assert any("pytest.mark.full" in file.read_text(encoding="utf-8") for file in files), folder


# The supervisor, programs, what only others' code calls, and what an `import_whole` brought along.
_NEVER_FORKED = ("cli/", "server/supervisor/", "runtime/uv_settings.py", "runtime/requirements.py")
_IMPORTED_BEFORE = (
    *("wire/request/schema.py", "wire/request/schema_misfit.py", "wire/request/tools.py"),
    *("embeddings.py", "reranker.py", "deep_agents.py"),
)


def test_tests_begin_without_what_an_older_core_lacks():
    """A module that imports it at its head is an error where LangChain knows no decisions."""
    optional = ("VllmMlxDecisions", "typed_program", "langchain_core.decisions")
    found = [
        f"{module.name}:{node.lineno}"
        for folder in ("unit", "standard")
        for module in sorted((TESTS / folder).rglob("*.py"))
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (getattr(node, "module", None), *(alias.name for alias in node.names))
        if name in optional
    ]
    assert found == []


def test_what_a_call_imports_is_imported_whole():
    """A child that is forked meanwhile would wait for it forever: see `import_whole`."""
    offenders = [
        f"{relative(module)}:{function.lineno}: {function.name}"
        for module in MODULES
        if not relative(module).startswith((*_NEVER_FORKED, *_ALONE, *_IMPORTED_BEFORE))
        for function in nodes(module)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        and function.name != "__getattr__"  # of a module: the program's own import
        and any(map(is_late_import, ast.walk(function)))
        and not any(
            isinstance(node, ast.Name) and node.id == "import_whole" for node in ast.walk(function)
        )
    ]
    assert not offenders


def is_late_import(node: ast.AST) -> bool:
    """Whether a node imports more than Python's own modules."""
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    return any(name.partition(".")[0] not in sys.stdlib_module_names for name in names)


def test_what_threads_make_is_built_when_it_is_imported():
    """Not all releases of pydantic build a class for two threads at once, nor let a fork do it."""
    assert ChatVllmMlx
    assert VllmMlxEmbeddings
    assert VllmMlxReranker
    left: list[type[BaseModel]] = [BaseModel]
    deferred = []
    while left:
        found = left.pop()
        left += found.__subclasses__()
        ours = [c for c in found.__subclasses__() if c.__module__.startswith(PACKAGE.name)]
        is_made = found.__module__.startswith(PACKAGE.name) and not ours
        if is_made and not found.__pydantic_complete__:
            deferred.append(found.__name__)
    assert not deferred
