"""Profiles for deepagents, found by their entry points: nothing of this needs to be called.

deepagents' tools alone are described in ten thousand characters. A small local model reads them
slowly and picks from them badly, so they are told in a sentence each, and the sub-agent that would
start over with the same model is left out. Register a profile of your own for `vllm_mlx`, or for
one model, to change it.
"""

from langchain_car_vllm.registration import register
from langchain_car_vllm.wire.reasoning import PROVIDER

TOOL_DESCRIPTIONS = {
    "ls": "List the files of a directory. Give an absolute path.",
    "read_file": "Read a file. Give an absolute path; `offset` and `limit` choose lines. Read a "
    "file before you edit it.",
    "write_file": "Write a new file with the given content. Give an absolute path.",
    "edit_file": "Replace `old_string` by `new_string` in a file you have read. `old_string` must "
    "be exact, and unique unless `replace_all` is true.",
    "delete": "Delete a file. Give an absolute path.",
    "glob": "Find files by a pattern such as `**/*.py`.",
    "grep": "Find a literal text in files.",
    "write_todos": "Write down the steps of a long task, each with its status. Skip it for short "
    "tasks.",
    "execute": "Run a shell command and return its output.",
}
SUFFIX = (
    "Call one tool at a time, with exactly the arguments that its schema names, and look at the "
    "result before the next call. When the task is done, answer without a call."
)


def register_provider_profile() -> None:
    """Have deepagents resolve `vllm_mlx:MODEL` by itself."""
    from deepagents import (  # noqa: PLC0415 - only deepagents calls this
        ProviderProfile,
        register_provider_profile,
    )

    register_provider_profile(PROVIDER, ProviderProfile(pre_init=lambda _: register()))


def register_harness_profile() -> None:
    """Give agents on local models short descriptions of tools and no general-purpose sub-agent."""
    from deepagents import (  # noqa: PLC0415 - only deepagents calls this
        GeneralPurposeSubagentProfile,
        HarnessProfile,
        register_harness_profile,
    )

    register_harness_profile(
        PROVIDER,
        HarnessProfile(
            tool_description_overrides=TOOL_DESCRIPTIONS,
            system_prompt_suffix=SUFFIX,
            general_purpose_subagent=GeneralPurposeSubagentProfile(enabled=False),
        ),
    )
