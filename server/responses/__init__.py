"""Answers of the Responses API that are kept, and those that are worked on while nobody waits."""
