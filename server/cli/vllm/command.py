"""The command ``manylora vllm-serve``."""

from __future__ import annotations

import os
import sys

import typer

from manylora.adapters.errors import AdapterError
from manylora.server.cli.output import DEAD, fail
from manylora.server.cli.vllm.translate import translate
from manylora.server.errors import EngineDead, ServerError
from manylora.server.options.loading import load_settings


def vllm_serve(context: typer.Context) -> None:
    """Serve as 'vllm serve MODEL [OPTIONS]' would: takes its options, and names those it ignores.

    Adapters are loaded for this server alone. Settings of our own are taken from MANYLORA_* variables and
    MANYLORA_CONFIG.
    """
    try:
        told = translate(context.args, os.environ)
        settings = load_settings(told.settings)
        for option, why in told.ignored.items():
            print(f"{option} is ignored: {why}", file=sys.stderr)
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower() in {"1", "true"} and not (
            settings.adapter_root or settings.adapter_repository or settings.adapter_url
        ):
            print(
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING is ignored: MANYLORA_ADAPTER_ROOT, "
                "MANYLORA_ADAPTER_REPOSITORY and MANYLORA_ADAPTER_URL say from where adapters may be loaded",
                file=sys.stderr,
            )
        from manylora.adapters.progress_bars import progress_bars  # noqa: PLC0415
        from manylora.server.cli.serve import run_server  # noqa: PLC0415  (brings torch)

        run_server(settings, progress_bars())
    except EngineDead as error:
        raise fail(error, DEAD) from error
    except (ServerError, AdapterError) as error:
        raise fail(error) from error
