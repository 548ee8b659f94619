"""Write what pickers of models read of the catalog: `langchain_car_vllm/data/_profiles.py`.

python scripts/model_profiles.py            # write it
python scripts/model_profiles.py --check    # end with 1 where it is not what would be written
"""

import json
import sys
from pathlib import Path

from langchain_car_vllm.models import model_profile, parse_model_id
from langchain_car_vllm.models.catalog import PREFIX, catalog

PAGE = Path(__file__).parents[1] / "langchain_car_vllm" / "data" / "_profiles.py"
HEAD = '''"""Profiles of the catalog's models, written by `scripts/model_profiles.py`."""

from typing import Any

# fmt: off
_PROFILES: dict[str, dict[str, Any]] = {
'''


def rendered() -> str:
    """Return the file that the catalog makes."""
    lines = [HEAD]
    for entry in catalog().entries:
        name = PREFIX + entry.name
        profile = model_profile(parse_model_id(name, read_files=False), read_files=False)
        lines.append(f"    {json.dumps(name)}: {json.dumps(profile)},\n")
    text = "".join([*lines, "}\n"])
    return text.replace(": true", ": True").replace(": false", ": False")


def main() -> None:
    """Write the file, or compare it."""
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text(encoding="utf-8") != rendered():
            sys.exit(f"{PAGE.name} is not current: run scripts/model_profiles.py")
        return
    PAGE.write_text(rendered(), encoding="utf-8")


if __name__ == "__main__":
    main()
