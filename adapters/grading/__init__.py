"""Graders: how good an answer is, as a number, by OpenAI's descriptions of them."""
