"""A client of a running server's administrative API, for programs and for the commands; prints nothing."""
