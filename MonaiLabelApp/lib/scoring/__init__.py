"""Scoring of the whole synthetic collection."""
