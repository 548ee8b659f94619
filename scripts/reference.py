"""Writes what the documentation says of settings and errors, from the code itself.

python scripts/reference.py            # write docs/configuration.md and docs/errors.md
python scripts/reference.py --check    # end with 1 where a page is not what would be written
"""

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import langchain_car_vllm
from langchain_car_vllm import (
    ChatVllmMlx,
    VllmMlxDecisions,
    VllmMlxEmbeddings,
    VllmMlxReranker,
    errors,
)
from langchain_car_vllm.errors import CarVllmError

DOCS = Path(__file__).parents[1] / "docs"
GENERAL = ("ModelError", "LangChainException")
CONFIGURATION = """\
# Configuration

Everything has a default that suits most; `model` is the only setting that you have to name. What
decides about an answer may also be set in a call, in `bind(...)` and through `configurable_fields`.
Variables of the environment are listed in [Environment variables](environment.md).

The settings of every LangChain chat model are there too: `cache`, `rate_limiter`, `callbacks`,
`tags`, `metadata`, `name`, `output_version` and `profile`.
"""
ERRORS = """\
# Errors

Every error of this package is a `CarVllmError` and can be imported from
`langchain_car_vllm.errors`. Its `message` says what happened, and its `hint` what to do; where the
message says that already, it is None. `is_retryable` says whether the same call can succeed later
without a change; LangChain's retry middleware reads that. Errors of the server also have
`exit_code`, `log_tail` and `log_path`.

```python
from langchain_car_vllm.errors import CarVllmError, InsufficientMemoryError

try:
    llm.invoke("Hello")
except InsufficientMemoryError as error:
    print(error.hint)
except CarVllmError as error:
    print(error)
```
"""


WARNINGS = """\
## Warnings

What is odd, yet no error, is a `UserWarning` at the line of your program that it is about. A thread
that LangChain starts, as for `batch` and a `RunnableParallel`, knows no line of yours, and one of
this package is named. These classes are imported from `langchain_car_vllm`, and silenced or made
errors as any other:
`warnings.simplefilter("error", EmptyAnswerWarning)`.
"""


def attribute_docs(cls: type) -> dict[str, str]:
    """Return the texts below the fields of a class and of its parents."""
    found: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        if not parent.__module__.startswith("langchain_car_vllm"):
            continue
        node: Any = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = below.value if isinstance(below, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[field.target.id] = " ".join(text.value.split())
    return found


def fields_table(cls: type) -> str:
    """Return the table of a class's settings."""
    docs = attribute_docs(cls)
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        if name not in docs:
            continue
        kind = kind_of(field.annotation).replace("|", "\\|")
        default = "required" if field.is_required() else f"`{default_of(field)}`"
        rows.append(f"| `{name}` | `{kind}` | {default} | {docs[name]} |")
    return "\n".join(rows)


def methods_table(cls: type) -> str:
    """Return the table of what a class can do beside what its LangChain class can."""
    ours = [parent for parent in cls.__mro__ if parent.__module__.startswith("langchain_car_vllm")]
    foreign = {name for parent in cls.__mro__ if parent not in ours for name in vars(parent)}
    rows = [
        f"| `{name}({_parameters(method)})` | {(inspect.getdoc(method) or '').splitlines()[0]} |"
        for parent in ours
        for name, method in vars(parent).items()
        if inspect.isfunction(method) and not name.startswith("_") and name not in foreign
    ]
    return "\n".join(["| method | what it does |", "|---|---|", *rows]) if rows else ""


def _parameters(method: Any) -> str:
    found = list(inspect.signature(method).parameters.values())[1:]
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in found]))[1:-1]


def kind_of(annotation: object) -> str:
    """Return a type as it is written."""
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(kind_of(part) for part in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return kind_of(get_args(annotation)[0])
    if annotation is NoneType:
        return "None"
    written = inspect.formatannotation(annotation)
    return re.sub(r"\b(typing|pydantic\.types|collections\.abc|pathlib)\.", "", written)


def default_of(field: object) -> str:
    """Return a default as it is written."""
    if field.default_factory is None:
        return repr(field.default)
    return repr(field.default_factory())


def classes() -> list[type[CarVllmError]]:
    """Return every error class, parents before children."""
    found = {getattr(errors, name) for name in errors.__all__}
    found = {cls for cls in found if isinstance(cls, type) and issubclass(cls, CarVllmError)}
    return sorted(found, key=lambda cls: (len(cls.__mro__), cls.__name__))


def given_verdicts() -> set[str]:
    """Return the errors that are given another `is_retryable` than that of their class."""
    found = set()
    for path in (DOCS.parent / "langchain_car_vllm").rglob("*.py"):
        for scope in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(scope, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found |= _verdicts_within(scope)
    return found


def _verdicts_within(scope: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the classes of what a function makes or takes, or of a class itself."""
    made = {"self": scope.name} if isinstance(scope, ast.ClassDef) else {}
    if not isinstance(scope, ast.ClassDef):
        made = {a.arg: ast.unparse(a.annotation) for a in scope.args.args if a.annotation}
    nodes = [node for node in ast.walk(scope) if isinstance(node, ast.Assign)]
    places = [(place, node.value) for node in nodes for place in node.targets]
    for place, value in places:
        if isinstance(place, ast.Name) and isinstance(value, ast.Call):
            made[place.id] = ast.unparse(value.func)
    given = [p for p, _ in places if isinstance(p, ast.Attribute) and p.attr == "is_retryable"]
    owners = [ast.unparse(place.value) for place in given]
    return {made[owner] for owner in owners if owner in made}


def retry_sentence(cls: type[CarVllmError], differing: set[str]) -> str:
    """Return whether a call may succeed when it is repeated; where errors differ, who tells."""
    kinds = {cls, *(found for found in classes() if issubclass(found, cls))}
    if len({kind.is_retryable for kind in kinds}) > 1 or differing & {k.__name__ for k in kinds}:
        return "`is_retryable` of the error says whether the same call may succeed when repeated."
    again = "may succeed when repeated" if cls.is_retryable else "fails again when repeated"
    return f"The same call {again}."


def error_entries() -> str:
    """Return an entry for each class, below its parent."""
    known, differing = classes(), given_verdicts()
    lines: list[str] = []

    def describe(cls: type[CarVllmError], depth: int) -> None:
        foreign = [
            parent.__name__
            for parent in cls.__mro__
            if parent.__module__.startswith("langchain_core") and parent.__name__ not in GENERAL
        ][:1]
        text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        lines.append(f"{'#' * min(depth + 2, 4)} {cls.__name__}\n")
        lines.append(f"{text}\n")
        also = f" It is also LangChain's `{foreign[0]}`." if foreign else ""
        lines.append(f"{retry_sentence(cls, differing)}{also}\n")
        for child in known:
            if child.__bases__ and cls in child.__bases__:
                describe(child, depth + 1)

    describe(CarVllmError, 0)
    return "\n".join(lines)


def warnings_table() -> str:
    """Return what each class of a warning tells."""
    found = [
        getattr(langchain_car_vllm, n) for n in langchain_car_vllm.__all__ if n.endswith("Warning")
    ]
    rows = [f"| `{cls.__name__}` | {inspect.getdoc(cls)} |" for cls in found]
    return "\n".join(["| warning | meaning |", "|---|---|", *rows])


def pages() -> dict[Path, str]:
    """Return what the generated pages hold."""
    configuration = [
        CONFIGURATION,
        "## ChatVllmMlx\n",
        "A call can name its own `keep_alive`, too: `llm.invoke(..., keep_alive=0)`.\n",
        fields_table(ChatVllmMlx) + "\n",
        "Beside the methods of LangChain's chat models:\n",
        methods_table(ChatVllmMlx) + "\n",
        "## VllmMlxEmbeddings\n",
        fields_table(VllmMlxEmbeddings) + "\n",
        "## VllmMlxReranker\n",
        fields_table(VllmMlxReranker) + "\n",
        methods_table(VllmMlxReranker) + "\n",
        "## VllmMlxDecisions\n",
        fields_table(VllmMlxDecisions),
    ]
    return {
        DOCS / "configuration.md": "\n".join(configuration) + "\n",
        DOCS / "errors.md": f"{ERRORS}\n{error_entries()}\n{WARNINGS}\n{warnings_table()}\n",
    }


def main() -> None:
    """Write the pages, or compare them."""
    stale = []
    for path, text in pages().items():
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if stale:
        sys.exit(f"{', '.join(stale)} not current: run scripts/reference.py")


if __name__ == "__main__":
    main()
