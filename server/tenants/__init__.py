"""Those who share the server: whose key is whose, and what each may see."""
