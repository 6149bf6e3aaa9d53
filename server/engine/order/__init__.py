"""Whose turn it is: what each client has been served, and who goes first."""
