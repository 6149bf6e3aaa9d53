"""Graders, with OpenAI's routes."""
