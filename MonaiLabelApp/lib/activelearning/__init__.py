"""Strategies: the case that a reader sees next."""
