"""Applies mends as the server imports its modules, and keeps a record of what became of them."""

import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .mend import Mend, UnknownCodeError


class MendFinder(importlib.abc.MetaPathFinder):
    """Finds modules as Python does and mends them right after their import.

    A mend that does not know the code, or fails, steps aside and says so in the log: the server
    then runs as it was published, unless that would give wrong results.

    Args:
        mends: What to mend.
        record: File that tells what became of each mend, None for none.

    Attributes:
        states: What became of each mend, by name.
        modules: The modules that are mended.
    """

    def __init__(self, mends: Sequence[Mend], record: "str | None") -> None:
        self.states = {mend.name: {"state": "not imported", "detail": ""} for mend in mends}
        self.modules = list(dict.fromkeys(mend.module for mend in mends))
        self._mends = mends
        self._record = record
        self._write()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:  # noqa: ARG002
        """Return how to import a module that is to be mended, None for all others."""
        mends = [mend for mend in self._mends if mend.module == fullname]
        if not mends:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            try:
                for mend in mends:
                    self._apply(mend, module)
            finally:
                self._write()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _apply(self, mend: Mend, module: Any) -> None:
        try:
            reason = mend.apply(module)
        except UnknownCodeError as error:
            self._note(mend, "stepped aside", str(error))
        except Exception as error:  # noqa: BLE001 - a mend must never keep the server from starting
            self._note(mend, "failed", f"{type(error).__name__}: {error}")
        else:
            self._note(mend, "not needed" if reason else "applied", reason or "")

    def _note(self, mend: Mend, state: str, detail: str) -> None:
        self.states[mend.name].update(state=state, detail=detail)
        if state in ("stepped aside", "failed"):
            text = f"car-vllm: the mend `{mend.name}` {state}: {detail} (tested: {mend.tested})"
            print(text, file=sys.stderr, flush=True)
            if mend.needed_for:
                raise NotImplementedError(
                    f"{mend.needed_for} are not supported with this vllm-mlx: without the mend "
                    f"`{mend.name}` they are wrong or unsafe (tested: {mend.tested})"
                )

    def _write(self) -> None:
        if self._record is None:
            return
        scratch = self._record + ".new"
        with suppress(OSError):
            with open(scratch, "w", encoding="utf-8") as file:
                json.dump(self.states, file)
            os.replace(scratch, self._record)
