"""Files and batches, with OpenAI's routes."""
