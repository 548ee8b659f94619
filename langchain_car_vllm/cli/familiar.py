"""Commands and options of other tools, answered with the ones that are meant."""

from typing import Any

from typer.core import TyperGroup

# The same thing under another name.
_SAME = {"ls": "list", "models": "list", "chat": "run", "download": "pull", "upgrade": "install"}
# Something else, or nothing, told in a sentence.
_MEANT = {
    "load": "a model is loaded by its first use; `car-vllm serve MODEL` keeps it loaded",
    "unload": "`car-vllm stop MODEL` takes it out of the memory",
    "tags": "`car-vllm list` shows the models on this machine",
    "generate": "`car-vllm run MODEL PROMPT` gives one answer",
    "create": "models are used as they are; LoRA adapters go beside them",
    "push": "models are not published from here",
    "cp": "models need no copies: several names of one model share a server",
    "signin": "private repositories need HF_TOKEN",
    "get": "`car-vllm pull MODEL` downloads a model",
    "status": "`car-vllm ps` shows the servers, `car-vllm doctor` the machine",
    "kill": "`car-vllm stop MODEL` ends a server, `car-vllm stop --all` every one",
    "update": "`car-vllm install --upgrade` updates the server, `car-vllm pull --update MODEL` a "
    "model, `pip install -U langchain-car-vllm` this program",
    "clean": "`car-vllm rm MODEL` removes a model, `car-vllm uninstall` everything else",
    "cache": "`car-vllm uninstall --dry-run` shows what lies where, `car-vllm rm MODEL` removes a "
    "model",
}


class FamiliarGroup(TyperGroup):
    """Commands, and the words for them that other tools use."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command that a word stands for."""
        found = super().get_command(ctx, _SAME.get(cmd_name, cmd_name))
        if found is None and cmd_name in _MEANT:
            ctx.fail(f"there is no `{cmd_name}`: {_MEANT[cmd_name]}")
        return found
