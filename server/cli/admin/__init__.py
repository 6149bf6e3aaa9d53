"""The command line's side of managing adapters: a client of a running server, and what it prints."""
