"""Keys, tokens, identities and roles."""
