"""Every bound on what a client may ask for, in one place. All are enforced before any work is done."""

from __future__ import annotations

from typing import Final

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024  # request line and headers
MAX_FIELDS: Final = 256  # of one JSON object of a request
MAX_NAME_SHOWN: Final = 100  # characters of a client's own field name repeated in an error
MAX_MODEL_LENGTH: Final = 2048  # characters of a model string: eight names with revisions and weights
MAX_MESSAGES: Final = 2048
MAX_PARTS: Final = 1024  # text parts of one message
MAX_TOOL_CALLS: Final = 128  # of one message
MAX_TOOLS: Final = 128
MAX_CALL_ID_LENGTH: Final = 256
MAX_FUNCTION_NAME_LENGTH: Final = 256
MAX_TEMPLATE_VARIABLES: Final = 16
MAX_VARIABLE_LENGTH: Final = 64  # characters of a template variable's name, and of its value
MAX_PROMPTS: Final = 128  # prompts of one completions request
MAX_FILE_BYTES: Final = 512 * 1024 * 1024  # sent in one request
MAX_PART_BYTES: Final = 64 * 1024 * 1024  # of an upload
MAX_UPLOAD_BYTES: Final = 8 * 1024 * 1024 * 1024  # of all parts together
MAX_FILENAME: Final = 1024  # characters, of which the last step is kept
MAX_MIME_TYPE: Final = 256
MAX_FORM_BYTES: Final = 512 * 1024  # of a form, beside its file
MIN_EXPIRY: Final = 3600  # seconds that a file stays
MAX_EXPIRY: Final = 2_592_000
MAX_METADATA: Final = 16  # pairs
MAX_METADATA_KEY: Final = 64  # characters
MAX_METADATA_VALUE: Final = 512
MAX_TEXTS: Final = 2048  # read by one request
MAX_LABELS: Final = 1024  # tokens whose probability one request asks for
MAX_SEQUENCES: Final = 128  # prompts x n of one request
MAX_N: Final = 16
MAX_COMPARE_TARGETS: Final = 8
MAX_COMPARE_PROMPTS: Final = 16
MAX_COMPARE_TOKENS: Final = 512  # of one answer or reference that is scored
MAX_COMPARE_LOGITS_BYTES: Final = 64 * 1024 * 1024  # that one comparison holds at a time
MAX_COMPARISONS: Final = 4  # running at the same time
MAX_DETOKENIZE: Final = 1_000_000  # token ids
MAX_PRIORITY: Final = 2**31 - 1  # either way
MAX_STOP: Final = 16
MAX_STOP_LENGTH: Final = 256  # characters
MAX_STOP_TOKEN_IDS: Final = 64
MAX_LOGPROBS: Final = 20
MAX_LOGIT_BIAS: Final = 300
MAX_ALLOWED_TOKENS: Final = 2**18
MAX_BAD_WORDS: Final = 256
MAX_BAD_WORD_LENGTH: Final = 64  # characters
MAX_GRAMMAR_LENGTH: Final = 256 * 1024  # characters of a schema, an expression or a grammar
MAX_CHOICES: Final = 1024
MAX_CHOICE_LENGTH: Final = 4096  # characters
MAX_TOP_K: Final = 2**31 - 1
MAX_TOKENS: Final = 2**31 - 1  # syntactic; the context window is the real bound
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
MAX_USER_LENGTH: Final = 512
MAX_REQUEST_ID_LENGTH: Final = 100  # of a client's own, in the body
MAX_REFERRED_RESPONSES: Final = 256  # that one request takes items of
MAX_RESPONSE_ID_LENGTH: Final = 128
MAX_SALT_LENGTH: Final = 256
MAX_PATH_LENGTH: Final = 4096
MAX_UPLOAD_PARTS: Final = 64  # files and fields of one form
MAX_UPLOAD_FIELD_BYTES: Final = 4096
MAX_PART_HEADER_BYTES: Final = 1024
MAX_TAG_LENGTH: Final = 64  # characters
MAX_PAGE: Final = 1000  # adapters in one answer
MAX_DEADLINE: Final = 3600.0  # seconds that a deletion may wait for running requests
DEFAULT_DEADLINE: Final = 30.0
MAX_REPORTED_FAULTS: Final = 8  # validation faults listed in one message

DEFAULT_COMPARE_TOKENS: Final = 64  # of one answer
DEFAULT_COMPLETION_TOKENS: Final = 16  # OpenAI's default for the completions endpoint

PING_SECONDS: Final = 15  # keep-alive comment in silent streams
