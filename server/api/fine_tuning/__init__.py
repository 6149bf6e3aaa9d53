"""``/v1/fine_tuning``: OpenAI's API of jobs that train models, which then answer on the same server."""
