"""What `docs/memory.md` says of machines and models is what the plan does."""

import importlib.util
from pathlib import Path

from fakes.published_configs import FIGURES

from langchain_car_vllm.models.kv_cache import kv_cache_of

ROOT = Path(__file__).parents[2]
NAMES = {
    "gemma-4-12b-it": "gemma-4-12B",
    "gemma-4-26b-a4b-it": "gemma-4-26B-A4B",
}


def script():
    path = ROOT / "scripts" / "memory_table.py"
    spec = importlib.util.spec_from_file_location("memory_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_current():
    """`make variables` would change nothing."""
    assert script().filled() == (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_table_counts_with_published_figures():
    """Its models have the layers that their configs describe."""
    for row in script().ROWS:
        name = row.name.partition(",")[0]
        kv = kv_cache_of(row.config)
        figures = (kv.per_token, kv.overhead - kv.fixed, kv.fixed)
        assert figures == FIGURES[NAMES.get(name, name)], name
