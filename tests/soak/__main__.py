"""`python -m soak`: SOAK_MINUTES (10) of it, with SOAK_SEED or a new one; 1 on a violation."""

import os
import secrets
import sys
import tempfile
from pathlib import Path

from soak.driver import Soak

seed = int(os.environ.get("SOAK_SEED") or secrets.randbelow(2**31))
minutes = float(os.environ.get("SOAK_MINUTES") or 10)
print(f"seed {seed}, {minutes:g} minutes", flush=True)
for name in list(os.environ):
    if name.startswith(("CAR_", "HF_", "VLLM_MLX_")):
        del os.environ[name]
with tempfile.TemporaryDirectory() as folder:
    soak = Soak(seed, minutes * 60, Path(folder))
    soak.run()
for name, count in sorted(soak.counts.items()):
    print(f"{count:>12} {name}")
for violation in soak.violations:
    print(f"VIOLATION {violation}")
sys.exit(1 if soak.violations else 0)
