"""What grammars are compiled against: the bytes of a tokenizer's tokens, and those that end an answer."""

from __future__ import annotations

from llguidance import LLTokenizer

from manylora.server.grammars.refusal import GrammarRefused
from manylora.server.model.text.tokenizer import Tokenizer


class Vocabulary:
    """The vocabulary of one tokenizer, as the grammar library reads it. Takes a third of a second to make."""

    def __init__(self, tokenizer: Tokenizer, width: int) -> None:
        """``width``: tokens that the base's head has; the tokenizer may know fewer, or more.

        Raises:
            GrammarRefused: the library can't read the tokenizer.
        """
        self.end_ids = tuple(sorted(tokenizer.eos_ids))
        self.width = width
        self.num_tokens = max(width, tokenizer.vocab_size)
        self.control_tokens = tokenizer.control_tokens
        if not self.end_ids:
            raise GrammarRefused("this model has no token that ends an answer")
        try:
            self.library = LLTokenizer(
                tokenizer.to_json(), n_vocab=self.num_tokens, eos_token=list(self.end_ids)
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also a panic of Rust: of an unusual tokenizer.json
            raise GrammarRefused(f"this model's tokenizer can't be held to grammars: {error}") from error
