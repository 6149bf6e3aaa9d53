"""One framework for options: a frozen pydantic model whose fields say how they look to people.

The server's settings and the trainer's configuration are such models. From one description come the
command line (:mod:`~manylora.adapters.options.command_line`), the reading of flags over a YAML file
(:mod:`~manylora.adapters.options.loading`) and the reference pages
(:mod:`~manylora.adapters.options.reference_tables`).
"""
