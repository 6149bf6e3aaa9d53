"""What options are that the user leaves to the server, by the device it runs on."""

from __future__ import annotations

from dataclasses import dataclass

from manylora.server.options.settings import Settings

GPU_SEQUENCES, GPU_BATCH_TOKENS = 256, 2048  # a GPU needs some thousand rows to be busy
_CPU_SEQUENCES, _CPU_BATCH_TOKENS = 128, 512
_GPU_TIMEOUT = 300.0  # seconds; kernels may still be compiled in a step


@dataclass(frozen=True)
class EngineLimits:
    """The limits of steps."""

    max_num_seqs: int
    max_batch_tokens: int
    step_timeout: float | None  # seconds

    @classmethod
    def of(cls, settings: Settings, *, accelerator: bool) -> EngineLimits:
        """As ``settings`` say, and where they don't as suits an ``accelerator`` or a CPU."""
        sequences = GPU_SEQUENCES if accelerator else _CPU_SEQUENCES
        tokens = GPU_BATCH_TOKENS if accelerator else _CPU_BATCH_TOKENS
        timeout = _GPU_TIMEOUT if accelerator else None
        return cls(
            sequences if settings.max_num_seqs is None else settings.max_num_seqs,
            tokens if settings.max_batch_tokens is None else settings.max_batch_tokens,
            timeout if settings.step_timeout is None else settings.step_timeout,
        )
