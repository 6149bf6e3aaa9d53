"""How a process of the server logs: to stderr, as text or JSON, and never a key."""

from __future__ import annotations

import logging
import sys

from manylora.server.api.access.access_log import ACCESS_LOGGER
from manylora.server.api.access.json_log import JsonFormatter
from manylora.server.api.access.redaction import RedactingFormatter, Redactor
from manylora.server.options.settings import Settings, api_keys


def configure_logging(settings: Settings) -> None:
    """Log to stderr: our own package at the chosen level, others from warnings on. No line has a key."""
    level = settings.log_level.upper()
    debug = level == "DEBUG"
    handler = logging.StreamHandler(sys.stderr)
    form, redactor = "%(asctime)s %(levelname)s %(name)s: %(message)s", Redactor(api_keys(settings))
    handler.setFormatter(
        JsonFormatter(redactor) if settings.log_format == "json" else RedactingFormatter(form, redactor)
    )
    logging.basicConfig(level="INFO" if debug else "WARNING", handlers=[handler])
    logging.getLogger("manylora").setLevel(level)
    logging.getLogger(ACCESS_LOGGER).setLevel("INFO")  # silent without --access-log
