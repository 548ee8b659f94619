"""The exceptions of the package.

Tree, with the class of LangChain that each is too:

    CarVllmError                                 ModelError
    ├── ConfigurationError (also ValueError)     a setting, argument or variable that cannot work
    │   ├── UnknownModelError                    the model id names nothing that can be served
    │   └── UnservableModelError                 the model is there, and vllm-mlx cannot serve it
    │       └── UntrustedCodeError               it brings code that nobody trusts
    ├── StateDirectoryError                      the run state cannot be kept where it should be
    ├── RuntimeProvisioningError
    │   ├── UnsupportedPlatformError             vllm-mlx does not run on this machine
    │   ├── RuntimeMissingError                  not installed, and installing is turned off
    │   ├── UvMissingError                       no `uv` to install with
    │   ├── ProvisionError                       one step of the install failed
    │   └── NotFoundAfterInstallError            installed, yet the binary is not there
    ├── ModelDownloadError                       the weights could not be fetched
    ├── ServerError
    │   ├── ServerStartError                     the server died or stalled while it was starting
    │   ├── ServerStartingError                  `startup_timeout` ran out; the start goes on
    │   ├── ServerStoppedError                   somebody stopped the server under a request
    │   ├── ServerCrashedError                   the server died under a request
    │   ├── PackageChangedError                  this package was upgraded under the running program
    │   ├── ServerBusyError                      `unload()` would have cut somebody off
    │   └── InsufficientMemoryError              the model does not fit into the memory budget
    └── RequestError                             an answer that cannot be given
        ├── ForcedToolCallError                  the model would not call the tool it had to
        └── AnswerError                          what the server answered
            ├── InvalidRequestError              ModelInvalidRequestError: it refuses the request
            ├── AuthenticationError              ModelAuthenticationError: the key is wrong
            ├── PermissionDeniedError            ModelPermissionDeniedError: the key may not do that
            ├── ModelMissingError                ModelNotFoundError: it serves another model
            ├── RateLimitError                   ModelRateLimitError: too many requests
            ├── ServerFailedError                ModelAPIError: it failed while it answered
            │   └── IncompleteAnswerError        the answer broke off
            ├── ConnectionFailedError            ModelConnectionError: nobody answers, or no longer
            ├── RequestTimeoutError              ModelTimeoutError: `timeout` ran out
            ├── PromptTooLongError               ContextOverflowError: the prompt cannot fit
            └── StructuredOutputError            OutputParserException: the answer is not what the
                                                 schema asks for

All of them survive pickling and carry `hint`, the one thing to do about it. `AnswerError` and what
is below it need LangChain's classes and are imported when they are first asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_car_vllm.support.printable import alternatives, to_sentence

if TYPE_CHECKING:
    from langchain_car_vllm.wire.errors import (
        AnswerError,
        AuthenticationError,
        ConnectionFailedError,
        IncompleteAnswerError,
        InvalidRequestError,
        ModelMissingError,
        PermissionDeniedError,
        PromptTooLongError,
        RateLimitError,
        RequestTimeoutError,
        ServerFailedError,
        StructuredOutputError,
    )

__all__ = [
    "AnswerError",
    "AuthenticationError",
    "CarVllmError",
    "ConfigurationError",
    "ConnectionFailedError",
    "ForcedToolCallError",
    "IncompleteAnswerError",
    "InsufficientMemoryError",
    "InvalidRequestError",
    "ModelDownloadError",
    "ModelMissingError",
    "NotFoundAfterInstallError",
    "PackageChangedError",
    "PermissionDeniedError",
    "PromptTooLongError",
    "ProvisionError",
    "RateLimitError",
    "RequestError",
    "RequestTimeoutError",
    "RuntimeMissingError",
    "RuntimeProvisioningError",
    "ServerBusyError",
    "ServerCrashedError",
    "ServerError",
    "ServerFailedError",
    "ServerStartError",
    "ServerStartingError",
    "ServerStoppedError",
    "StateDirectoryError",
    "StructuredOutputError",
    "UnknownModelError",
    "UnservableModelError",
    "UnsupportedPlatformError",
    "UntrustedCodeError",
    "UvMissingError",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import what the wire raises when it is first asked for: it needs LangChain."""
        if name in __all__:
            return getattr(import_module("langchain_car_vllm.wire.errors"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _restore(cls: "type[CarVllmError]", state: dict[str, Any]) -> "CarVllmError":
    error = cls.__new__(cls)
    error.__dict__.update(state)
    return error


class _WithoutLangChain(Exception):  # noqa: N818 - nobody raises it
    """The base of all errors in a process that uses no LangChain, such as the supervisor."""


class CarVllmError(_WithoutLangChain):
    """Base of all errors of this package.

    Args:
        message: One sentence that says what happened.
        hint: What the user can do about it, one sentence.

    Attributes:
        is_retryable: Whether the same call can succeed later without a change; read by LangChain's
            `ModelRetryMiddleware`.
    """

    is_retryable: bool = False
    log_tail: tuple[str, ...] = ()
    log_path: Path | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = to_sentence(message)
        self.hint = hint if hint is None else to_sentence(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        parts = [self.message, "\n".join(f"    {line}" for line in self.log_tail)]
        if self.log_path is not None:
            parts.append(f"log: {self.log_path}")
        if self.hint is not None:
            parts.append(f"hint: {self.hint}")
        return "\n\n".join(filter(None, parts))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.__dict__)


def derive_from(model_error: type[Exception]) -> None:
    """Make all errors LangChain's `ModelError`, whose `is_retryable` its retry middleware reads.

    `wire.errors` calls it; this module must not import LangChain.
    """
    CarVllmError.__bases__ = (model_error,)


class ConfigurationError(CarVllmError, ValueError):
    """A setting, argument or environment variable that cannot work."""


class UnknownModelError(ConfigurationError):
    """The model id names nothing that can be served.

    Args:
        model: The id as the user wrote it.
        detail: Why it is not a model id.
        nearest: Ids that the user may have meant, best first.
    """

    def __init__(self, model: str, detail: str, *, nearest: tuple[str, ...] = ()) -> None:
        hint = (
            f"did you mean {alternatives(nearest)}?"
            if nearest
            else "write `vllm-mlx/<catalog name>`, `<org>/<repo>` on the Hub, where "
            "`mlx-community` has most models, or a directory that starts with `/`, `./`, "
            "`../` or `~`; `car-vllm recommend` lists models that fit here"
        )
        super().__init__(f"`{model}` is not a model id: {detail}", hint=hint)
        self.model = model
        self.nearest = nearest


class UnservableModelError(ConfigurationError):
    """A model that is there and cannot be served: parts are missing, damaged or unreadable."""

    def __init__(self, message: str, *, hint: str | None = None, is_missing: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_missing = is_missing


class UntrustedCodeError(UnservableModelError):
    """A model that comes with its own code, which runs only if the user trusts it by name.

    Args:
        model: The model's name.
        detail: What would run.
    """

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(
            f"`{model}` comes with its own code, which would run with your permissions: {detail}",
            hint='choose another conversion, or trust it: `server_args=["--trust-remote-code"]`',
        )
        self.model = model
        self.detail = detail


class StateDirectoryError(CarVllmError):
    """The run state cannot be kept in its directory."""

    def __init__(self, path: Path, detail: str, *, hint: str | None = None) -> None:
        super().__init__(f"cannot keep run state in `{path}`: {detail}", hint=hint)
        self.path = path


class RuntimeProvisioningError(CarVllmError):
    """The `vllm-mlx` runtime cannot be found or installed."""


class UnsupportedPlatformError(RuntimeProvisioningError):
    """`vllm-mlx` does not run on this machine."""


class RuntimeMissingError(RuntimeProvisioningError):
    """`vllm-mlx` is not installed, and installing it is turned off.

    Args:
        reason: What turned it off, or what is wrong with the install that is there.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"no usable vllm-mlx was found, and installing one is turned off: {reason}",
            hint="run `car-vllm install`, or set CAR_VLLM_MLX_BIN to a `vllm-mlx` of your own",
        )
        self.reason = reason


class UvMissingError(RuntimeProvisioningError):
    """No `uv` was found to install the runtime with, in the places that were searched."""

    def __init__(self, searched: tuple[str, ...] = ()) -> None:
        places = f" (searched {', '.join(searched)})" if searched else ""
        super().__init__(
            f"`uv` is required to install the vllm-mlx runtime but was not found{places}",
            hint="run `pip install uv`, or install `vllm-mlx` yourself with `pip install vllm-mlx`",
        )
        self.searched = searched


class ProvisionError(RuntimeProvisioningError):
    """One step of the installation failed.

    Args:
        step: The step, such as `venv`, `pip-install` or `smoke-test`.
        detail: What the step said last.
    """

    def __init__(self, step: str, detail: str, *, hint: str | None = None) -> None:
        super().__init__(f"provisioning step `{step}` failed: {detail}", hint=hint)
        self.step = step
        self.detail = detail


class NotFoundAfterInstallError(RuntimeProvisioningError):
    """The installation succeeded, but `vllm-mlx` is not there.

    Args:
        path: The environment it was installed into.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"vllm-mlx was not found after it was installed into `{path}`",
            hint=f"remove `{path}` and try again",
        )
        self.path = path


class ModelDownloadError(CarVllmError):
    """The model's weights could not be fetched."""


class ServerError(CarVllmError):
    """Something went wrong with the supervised server.

    Args:
        message: One sentence that says what happened.
        hint: What to do about it.
        exit_code: The server's exit code, negative for a signal, None if unknown.
        log_tail: The last lines of this start's log.
        log_path: Where the whole log is.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        exit_code: int | None = None,
        log_tail: tuple[str, ...] = (),
        log_path: Path | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
        self.log_tail = tuple(to_sentence(line) for line in log_tail)
        self.log_path = log_path


class ServerStartError(ServerError):
    """The server died, stalled or could not be spawned while it was starting."""


class ServerStartingError(ServerError):
    """`startup_timeout` ran out; the start continues and a later call finds it."""

    is_retryable = True


class ServerStoppedError(ServerError):
    """The server was stopped during a request; after a stop by the user no retry starts it."""

    def __init__(self, message: str, *, reason: str = "user", **fields: Any) -> None:
        super().__init__(message, **fields)
        self.reason = reason
        self.is_retryable = reason != "user"


class ServerCrashedError(ServerError):
    """The server died while it was answering.

    Args:
        message: One sentence that says what happened.
        ending: How it ended and its last error, such as `killed by SIGABRT: [METAL] ...`.
        **fields: As `ServerError` takes them.

    Attributes:
        clients: How many processes had requests under way, None where unknown.
        crashed_at: Monotonic seconds of the crash, by which the supervisor counts it.
    """

    is_retryable = True
    clients: int | None = None
    crashed_at: float | None = None

    def __init__(
        self, message: str, *, ending: str = "for an unknown reason", **fields: Any
    ) -> None:
        super().__init__(message, **fields)
        self.ending = ending


class PackageChangedError(ServerError):
    """This package was upgraded, or downgraded, while the program was running.

    Args:
        running: The version that the program runs, None where unknown.
        found: The version that it met.
    """

    def __init__(self, running: str | None, found: str | None) -> None:
        super().__init__(
            f"langchain-car-vllm was changed from {running or 'an older version'} to "
            f"{found or 'an older version'} while this program was running",
            hint="restart this program",
        )
        self.running = running
        self.found = found


class ServerBusyError(ServerError):
    """The server is busy: others are using it, so it was not stopped, or its queue is full."""

    is_retryable = True


class InsufficientMemoryError(ServerError):
    """The model does not fit into the memory budget; the message has the numbers."""


class RequestError(CarVllmError):
    """An answer that cannot be given, although the server is healthy."""


class ForcedToolCallError(RequestError):
    """The model had to call a tool and did not, not even when it was constrained to."""
