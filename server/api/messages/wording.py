"""How the Messages API spells what chat requests call otherwise."""

from __future__ import annotations

from typing import Final

from manylora.server.api.request.blame import Wording

WORDING: Final = Wording(
    [
        (r"\bmessages\[\d+\][\w.\[\]]*", "messages"),  # turns here may be several messages there
        (r"\bcontinue_final_message\b", "messages"),
        (r"\bresponse_format\.json_schema\b", "output_config.format"),
        (r"\bresponse_format\b", "output_config.format"),
        (r"\bmax_completion_tokens\b", "max_tokens"),
        (r"\breasoning_effort\b", "output_config.effort"),
        (r"\bthinking_token_budget\b", "thinking.budget_tokens"),
        (r"\bchat_template_kwargs\.enable_thinking\b", "thinking.type"),
        (r"(\btools\[\d+\])\.function\.parameters\b", r"\1.input_schema"),
        (r"(\btools\[\d+\])\.function\b", r"\1"),
        (r"'stop\b", "'stop_sequences"),
    ]
)
