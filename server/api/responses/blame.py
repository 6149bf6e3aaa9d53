"""How the Responses API spells what chat requests call otherwise."""

from __future__ import annotations

from typing import Final

from manylora.server.api.request.blame import Wording

WORDING: Final = Wording(
    [
        (r"\bmessages\[\d+\][\w.\[\]]*", "input"),
        (r"\bmessages\b", "input"),
        (r"\bresponse_format\.json_schema\b", "text.format"),
        (r"\bresponse_format\b", "text.format"),
        (r"\bmax_(completion_)?tokens\b", "max_output_tokens"),
        (r"\breasoning_effort\b", "reasoning.effort"),
        (r"(\btools\[\d+\])\.function\b", r"\1"),
        (r"'verbosity'", "'text.verbosity'"),
    ]
)
