"""Whose turn it is: clients, what each has been served, and who goes first."""
