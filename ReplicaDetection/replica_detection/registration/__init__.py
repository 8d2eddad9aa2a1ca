"""Alignment of training cases to a query: the few best candidates, each with mirroring, rotation, scale and shift."""

# Largest number of training cases that are aligned to a query at full resolution.
CANDIDATES = 10
# Part of the measures' definitions: raise it when the search or any of its numbers changes.
VERSION = 3
