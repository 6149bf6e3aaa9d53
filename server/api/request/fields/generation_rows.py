"""Rows of the table of fields: what OpenAI and vLLM know in the bodies of chat and completions."""

from __future__ import annotations

from typing import Final

from manylora.server.api.request.fields.field import GENERATION, Field, Place
from manylora.server.api.request.fields.rows import hint, only, refused, served

_CHAT = (Place.CHAT,)
_TEXT = (Place.COMPLETIONS,)
_SAMPLED = (Place.CHAT, Place.COMPLETIONS, Place.COMPARE)
_STOPPED = (*_SAMPLED, Place.RESPONSES)
_DRAWN = (*_STOPPED, Place.MESSAGES)
_MESSAGES = (Place.MESSAGES, Place.COUNT_TOKENS)
_CONVERSATIONS = (Place.CHAT, Place.RESPONSES, *_MESSAGES, Place.CLASSIFY, Place.TOKENIZE, Place.COMPARE)
_NAMED = (Place.CHAT, Place.COMPLETIONS, Place.RESPONSES, *_MESSAGES)

SERVED: Final[tuple[Field, ...]] = (
    served("model", "OVSLAN", _NAMED),
    served("messages", "OVSLA", (Place.CHAT, Place.CLASSIFY, Place.TOKENIZE, Place.COMPARE)),
    served("prompt", "OVSLA", (Place.COMPLETIONS, Place.TOKENIZE, Place.COMPARE)),
    served("adapters", "M", _NAMED, note="the mix as JSON"),
    served("n", "OVSL"),
    served("best_of", "OS", note="equal to `n`"),
    served("max_tokens", "OVSLA", _SAMPLED),
    served("max_completion_tokens", "OVSL", _CHAT, note="the newer name of `max_tokens`"),
    served("min_tokens", "VS", _DRAWN),
    served("temperature", "OVSLAN", _DRAWN, note="0 is greedy"),
    served("top_p", "OVSLAN", _DRAWN, note="0 is greedy"),
    served("top_k", "VSLN", _DRAWN, note="-1 and 0 are off"),
    served("min_p", "VSL", _DRAWN),
    served("presence_penalty", "OVSLA", _DRAWN),
    served("frequency_penalty", "OVSLA", _DRAWN),
    served("repetition_penalty", "VS", _DRAWN),
    served("logit_bias", "OVSL", _DRAWN),
    served("allowed_token_ids", "V", _DRAWN, note="no others are drawn"),
    served("bad_words", "V", _DRAWN, [], note="with and without a blank before them; of answers alone"),
    served("seed", "OVSLA", _DRAWN),
    served("stop", "OVSLA", _STOPPED, note="empty strings stop nothing"),
    served("stop_token_ids", "VS", _DRAWN),
    served("include_stop_str_in_output", "V", _DRAWN, note="of a stop token, too"),
    served("no_stop_trim", "S", _DRAWN, note="as `include_stop_str_in_output`"),
    served("ignore_eos", "VSL", _DRAWN),
    served("skip_special_tokens", "VS", _DRAWN),
    served(
        "spaces_between_special_tokens", "VS", _DRAWN, note="false changes what `skip_special_tokens` leaves"
    ),
    served("logprobs", "OVSL", _CHAT),
    served("logprobs", "OVSL", _TEXT, False),
    served("top_logprobs", "OVSL", _CHAT, 0, note="0 is what is done without it"),
    served("prompt_logprobs", "V", note="not in streams"),
    served("echo", "OVS", _TEXT),
    served("stream", "OVSLAN", _DRAWN),
    served("stream_options", "OVSLA", note="without `stream` there is nothing to choose"),
    served("return_token_ids", "VS"),
    served("return_tokens_as_token_ids", "V", note="in `logprobs`: `token_id:17`"),
    served("request_id", "V", note="becomes part of the answer's `id`"),
    served("add_generation_prompt", "VL", (Place.CHAT, Place.CLASSIFY, Place.TOKENIZE)),
    served("allow_special_tokens", "M", _CONVERSATIONS),
    served("continue_final_message", "VSL", (Place.CHAT, Place.TOKENIZE)),
    served("chat_template_kwargs", "VSL", _CHAT, note="variables of the chat template"),
    served("reasoning_effort", "OVSA", _CHAT, note="a variable of the chat template"),
    served("verbosity", "O", _CHAT, note="a variable of the chat template"),
    served(
        "tools", "OVSLA", (Place.CHAT, Place.TOKENIZE), [], note="if the chat template has a place for them"
    ),
    served("tool_choice", "OVSL", _CHAT, "auto"),
    served("parallel_tool_calls", "OVSL", _CHAT, True, note="false: at most one call"),
    served("include_reasoning", "V", _CHAT, True, note="false: answers leave their reasoning out"),
    served("separate_reasoning", "S", _CHAT, True, note="false: reasoning stays in the text"),
    served("reasoning_format", "L", _CHAT, "auto", "deepseek", note="`none`: reasoning stays in the text"),
    served("thinking_token_budget", "V", _CHAT, -1, note="tokens after which reasoning is closed"),
    served("add_special_tokens", "V", (Place.COMPLETIONS, Place.CLASSIFY, Place.TOKENIZE, Place.COMPARE)),
    only("add_special_tokens", "V", False, places=_CHAT, note="the chat template writes them"),
    served("truncate_prompt_tokens", "V", note="-1: what fits beside `max_tokens`"),
    served("truncation_side", "V", note="default: `left`, so that the end is read"),
    served("response_format", "OVSLA", GENERATION, {"type": "text"}, note="JSON, or JSON by a schema"),
    served("structured_outputs", "V", note="a schema, an expression, choices or a grammar"),
    served("guided_json", "V", note="the older name of `structured_outputs.json`"),
    served("guided_regex", "V", note="the older name of `structured_outputs.regex`"),
    served("guided_choice", "V", note="the older name of `structured_outputs.choice`"),
    served("guided_grammar", "V", note="the older name of `structured_outputs.grammar`"),
    served("guided_whitespace_pattern", "V", note="with `guided_json`"),
    served("json_schema", "SL", note="as `structured_outputs.json`"),
    served("regex", "S", note="as `structured_outputs.regex`"),
    served("ebnf", "S", note="as `structured_outputs.grammar`"),
    served("grammar", "L", GENERATION, "", note="as `structured_outputs.grammar`"),
    served("cache_salt", "VS", (*_DRAWN, Place.CLASSIFY)),
    served("user", "OVS", (*_DRAWN, Place.CLASSIFY), note="who gets which arm of an alias"),
    served("safety_identifier", "O", _DRAWN, note="the newer name of `user`"),
)

OPENAI: Final[tuple[Field, ...]] = (
    refused("audio", "O", _CHAT),
    only("function_call", "O", "none", "auto", places=_CHAT, note="`tool_choice` is its newer name"),
    only("functions", "O", [], places=_CHAT, note="`tools` is its newer name"),
    hint("metadata", "O"),
    only("modalities", "OL", ["text"], places=_CHAT),
    refused("moderation", "O"),
    refused("prediction", "O", _CHAT),
    hint("prompt_cache_key", "O", note="`cache_salt` keeps tenants apart"),
    hint("prompt_cache_options", "O"),
    hint("prompt_cache_retention", "O"),
    hint("service_tier", "O"),
    hint("store", "O", note="nothing is stored"),
    only("suffix", "OVSA", "", places=_TEXT),
    refused("web_search_options", "O", _CHAT),
)

VLLM: Final[tuple[Field, ...]] = (
    refused("chat_template", "V", _CHAT, note="the model or the adapter brings it"),
    only("documents", "V", [], places=_CHAT),
    refused("ec_transfer_params", "V"),
    only("echo", "VL", False, places=_CHAT),
    hint("guided_decoding_backend", "V", note="there is one"),
    refused("kv_transfer_params", "V"),
    hint("length_penalty", "V", note="it belongs to beam search"),
    refused("logits_processors", "V"),
    refused("logprob_token_ids", "V"),
    hint("media_io_kwargs", "V", _CHAT, note="there are no media"),
    hint("mm_processor_kwargs", "V", _CHAT, note="there are no media"),
    hint("priority", "VS", note="requests are served in order of arrival"),
    refused("prompt_embeds", "V", _TEXT),
    refused("repetition_detection", "V"),
    hint("return_mm_kwargs", "V", note="there are no media"),
    only("return_prompt_text", "V", False, places=_CHAT),
    only("return_token_offsets", "V", False),
    hint("routed_experts_prompt_start", "V", note="there are no experts"),
    hint("session_id", "VS"),
    hint("stream_interval", "V"),
    only("thinking_token_budget", "V", -1, places=_TEXT),
    only("use_beam_search", "V", False),
    only("vllm_xargs", "V", {}),
    only("watermarking", "V", False),
)
