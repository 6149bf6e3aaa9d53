"""Tenants and their keys, in the registry's database."""
