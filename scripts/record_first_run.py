"""Draws `docs/first-run.svg` from what a first run printed.

car-vllm run MODEL "Name three colours of the rainbow." -v > run.txt 2>&1
python scripts/record_first_run.py 'car-vllm run ...' run.txt
"""

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parents[1] / "docs" / "first-run.svg"


def main() -> None:
    """Write the picture."""
    command, printed = sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8")
    console = Console(record=True, width=84, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text(printed.strip()))
    title = "a first run, recorded on Linux without a GPU, with SmolLM2-135M"
    # No font from elsewhere: whoever looks at the page asks nobody else.
    drawn = re.sub(r"@font-face \{.*?\}\n", "", console.export_svg(title=title), flags=re.DOTALL)
    PICTURE.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
