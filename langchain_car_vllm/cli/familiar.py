"""Kinds of commands: options of other tools are answered, and bad variables refused."""

import re
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from langchain_car_vllm.cli.completion import PROGRAM
from langchain_car_vllm.environment import check_variables

# The same thing under another name.
_SAME = {
    "ls": "list",
    "models": "list",
    "chat": "run",
    "download": "pull",
    "info": "show",
    "remove": "rm",
    "delete": "rm",
}
# Something else, or nothing, told in a sentence.
_UPDATES = (
    "`car-vllm install --upgrade` updates the server, `car-vllm pull --update MODEL` a "
    "model, `pip install -U langchain-car-vllm` this program"
)
_LOGIN = (
    "for models on the Hub that need it, set HF_TOKEN to a token from "
    "https://huggingface.co/settings/tokens"
)
_MEANT = {
    "load": "a model is loaded on first use; `car-vllm serve MODEL` keeps it loaded",
    "unload": "`car-vllm stop MODEL` unloads it",
    "start": "`car-vllm run MODEL` and `car-vllm serve MODEL` start what they need",
    "restart": "`car-vllm stop MODEL`; the next use starts it again",
    "search": "`car-vllm recommend` lists models that fit here; huggingface.co has them all",
    "config": "settings are options (`car-vllm help COMMAND`) and environment variables",
    "login": _LOGIN,
    "tags": "`car-vllm list` shows the models on this machine",
    "generate": "`car-vllm run MODEL PROMPT` gives one answer",
    "create": "models are used as they are; LoRA adapters go beside them",
    "push": "models are not published from here",
    "cp": "models need no copies: several names of one model share a server",
    "signin": _LOGIN,
    "get": "`car-vllm pull MODEL` downloads a model",
    "status": "`car-vllm ps` shows the servers, `car-vllm doctor` the machine",
    "kill": "`car-vllm stop MODEL` stops a server, `car-vllm stop --all` stops all of them",
    "update": _UPDATES,
    "upgrade": _UPDATES,
    "clean": "`car-vllm rm MODEL` removes a model, `car-vllm uninstall` everything else",
    "prune": "`car-vllm rm MODEL` removes a model, `car-vllm uninstall` everything else",
    "cache": "`car-vllm uninstall --dry-run` lists what is stored where, `car-vllm rm MODEL` "
    "removes a model",
}
_MODEL_OPTIONS = ("-m", "--model")
_MODEL_FIRST = f"the model is the first argument: `{PROGRAM} {{}} MODEL`"
# Options of other tools, by the command that they are typed after; "" is the program itself.
_MEANT_OPTIONS = {
    "": {
        **dict.fromkeys(_MODEL_OPTIONS, _MODEL_FIRST.format("run")),
        "--install-completion": "`car-vllm completion SHELL` prints a completion script",
        "--show-completion": "`car-vllm completion SHELL` prints a completion script",
    },
    "run": {
        "-c": "without a PROMPT a conversation begins; it goes on until /bye and is not saved",
        "--continue": "a conversation goes on until /bye and is not saved",
        "--num-predict": "--max-tokens limits the answer",
        "--num-ctx": "the context is chosen for you: `car-vllm plan MODEL` shows it",
        "--insecure": "models come from the Hub, over TLS",
    },
    "stop": {"-a": "--all stops all servers"},
    "pull": {"--insecure": "models come from the Hub, over TLS"},
}
_WORDS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"^Value error, ", ""),
        (r"^Input should be a valid integer\b.*", "it is not a whole number"),
        (r"^Input should be a valid number\b.*", "it is not a number"),
        (r"^Input should be greater than or equal to ", "the minimum is "),
        (r"^Input should be less than or equal to ", "the maximum is "),
    )
)


class FamiliarCommand(TyperCommand):
    """A command that knows what the options of other tools mean here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Answer a foreign option before the parser refuses it."""
        _refuse_foreign(self, ctx, args, self.name or "")
        try:
            return list(super().parse_args(ctx, args))
        except typer.BadParameter as error:
            error.message = _in_plain_words(error.message)
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the arguments as they are typed; releases of typer write them differently."""
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return [self.options_metavar or "", *map(_usage_name, arguments)]


class StartingCommand(FamiliarCommand):
    """A command that starts or decides something, and never by half of what the user has set."""

    def invoke(self, ctx: Any) -> Any:
        """Refuse variables that Python would refuse, those that this command reads or not."""
        check_variables()
        return super().invoke(ctx)


class ServiceGroup(TyperGroup):
    """The commands of `service`, and the words for them that other tools use."""

    _same: ClassVar = {
        "start": "install",
        "enable": "install",
        "uninstall": "remove",
        "rm": "remove",
        "stop": "remove",
        "disable": "remove",
    }

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command that a word stands for."""
        return super().get_command(ctx, self._same.get(cmd_name, cmd_name))


class FamiliarGroup(TyperGroup):
    """Commands, and the words for them that other tools use."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Answer a foreign option before the parser refuses it."""
        _refuse_foreign(self, ctx, args[:1], "")
        return list(super().parse_args(ctx, args))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command that a word stands for."""
        return super().get_command(ctx, _SAME.get(cmd_name, cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Answer a word of another tool before the nearest command is proposed for it."""
        word = args[0] if args else ""
        if word in _MEANT and word not in self.commands:
            ctx.fail(f"there is no `{word}`: {_MEANT[word]}")
        return super().resolve_command(ctx, args)


def _in_plain_words(message: str) -> str:
    """Return why a value is refused; releases of typer write what a validator of pydantic says."""
    for pattern, words in _WORDS:
        message = pattern.sub(words, message)
    return message


def _usage_name(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name = name if argument.required else f"[{name}]"
    return name if argument.nargs == 1 else f"{name}..."


def _refuse_foreign(command: Any, ctx: Any, args: list[str], name: str) -> None:
    """End with what is meant, where an option of another tool stands before a `--`.

    Raises:
        UsageError: There is one.
    """
    if ctx.resilient_parsing:  # a shell asks what could be typed
        return
    parameters = command.get_params(ctx)
    own = {option for parameter in parameters for option in parameter.opts}
    foreign = _MEANT_OPTIONS.get(name, {})
    takes_model = "MODEL" in [getattr(parameter, "metavar", None) for parameter in parameters]
    if takes_model and not ctx.ignore_unknown_options:  # what is unknown is a tool's
        foreign = foreign | dict.fromkeys(_MODEL_OPTIONS, _MODEL_FIRST.format(name))
    for word in args[: args.index("--")] if "--" in args else args:
        option = word.partition("=")[0]
        if option in foreign and option not in own:
            ctx.fail(f"there is no `{option}`: {foreign[option]}")
