"""``manylora tenants`` and ``manylora keys``."""
