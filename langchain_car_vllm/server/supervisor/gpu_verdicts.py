"""What Metal's own failures mean: from its words to what happened and what to do. Pure."""

from typing import NamedTuple


class MetalVerdict(NamedTuple):
    """A failure of the GPU.

    Attributes:
        marks: Words of Metal or MLX, any of which tells of it.
        sentence: What happened.
        cure: What to do about it.
        is_retryable: Whether the same request may succeed on a new server.
        needs_restart: Whether a server that lives on answers nothing any more.
    """

    marks: tuple[str, ...]
    sentence: str
    cure: str
    is_retryable: bool
    needs_restart: bool = False

    @property
    def is_about_memory(self) -> bool:
        """Whether memory ran out."""
        return self is OUT_OF_MEMORY


_SMALLER_STEPS = 'read prompts in smaller steps: `server_args=["--prefill-step-size", "512"]`'
OUT_OF_MEMORY = MetalVerdict(
    (
        "[metal::malloc]",
        "Insufficient Memory",
        "kIOGPUCommandBufferCallbackErrorOutOfMemory",
        "MemoryError",
        "Cannot allocate memory",
        "Unable to allocate",
    ),
    "memory ran out",
    "send shorter prompts, fewer at a time (`max_concurrency`), limit `--max-kv-size`, or choose a "
    "smaller model or quantisation",
    is_retryable=False,
)
VERDICTS = (
    OUT_OF_MEMORY,
    MetalVerdict(
        ("ErrorImpactingInteractivity", "Impacting Interactivity"),
        "macOS ended the GPU's work because the display was waiting for it",
        f"{_SMALLER_STEPS}, or let the display sleep",
        is_retryable=False,
    ),
    MetalVerdict(
        ("CommandBufferCallbackErrorTimeout", "Caused GPU Timeout"),
        "macOS ended the GPU's work because it took too long",
        _SMALLER_STEPS,
        is_retryable=False,
    ),
    MetalVerdict(
        ("ErrorSubmissionsIgnored", "Ignored (for causing prior/excessive GPU errors)"),
        "the GPU accepts no more work from this server after an earlier fault",
        f"call again: it starts again; if the fault comes back, {_SMALLER_STEPS}",
        is_retryable=True,
        needs_restart=True,
    ),
    MetalVerdict(
        ("default metallib", "Unable to build metal library", "Unable to load kernel"),
        "this MLX was built for another version of macOS",
        "install the one for this macOS with `car-vllm install --upgrade`",
        is_retryable=False,
    ),
    MetalVerdict(
        ("No Metal device", "no Metal-capable device"),
        "this process has no access to a GPU",
        "run on a Mac with Apple silicon, outside of virtual machines and sandboxes",
        is_retryable=False,
    ),
)


def find_verdict(text: str) -> MetalVerdict | None:
    """Return the failure that a log tells of, None for none.

    Args:
        text: The log's last lines; the last failure in it counts.
    """
    found = [
        (text.rfind(mark), verdict)
        for verdict in VERDICTS
        for mark in verdict.marks
        if mark in text
    ]
    return max(found, key=lambda place: place[0])[1] if found else None
