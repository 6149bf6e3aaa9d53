"""Who may do what, and what logs and errors say of keys."""
