"""Who shares the server: tenants and their keys, for admins."""
