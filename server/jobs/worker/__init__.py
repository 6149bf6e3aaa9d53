"""The process that trains: it takes jobs from the registry, and writes there what becomes of them."""
