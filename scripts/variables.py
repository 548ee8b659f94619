"""Writes the tables of environment variables into the documentation, from their declarations."""

import re
from pathlib import Path

from langchain_car_vllm.environment import VARIABLES, Group

ROOT = Path(__file__).parents[1]
PAGES = ("docs/environment.md",)
_MARKED = re.compile(r"(<!-- variables: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(group: Group) -> str:
    """Return the table of one group of variables."""
    rows = [variable for variable in VARIABLES.values() if variable.group == group]
    if group == "own":
        lines = ["| variable | meaning | default |", "|---|---|---|"]
        lines += [f"| `{v.name}` | {v.meaning} | {v.default_text or 'none'} |" for v in rows]
    else:
        lines = ["| variable | meaning |", "|---|---|"]
        lines += [f"| `{v.name}` | {v.meaning} |" for v in rows]
    return "".join(f"{line}\n" for line in lines)


def filled(page: str) -> str:
    """Return a page with its tables as the declarations say."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return _MARKED.sub(lambda match: f"{match[1]}{table(match[2])}{match[3]}", text)  # type: ignore[arg-type]


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(filled(name), encoding="utf-8")
