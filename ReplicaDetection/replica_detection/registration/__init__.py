"""Copies that moved: how each training case of a short list has to be turned and shifted to lie on a query."""

# Training cases that each query is laid upon, at most.
CANDIDATES = 10
# Stands in the measures' definitions: raise it when the search or any of its numbers changes.
VERSION = 3
