"""Alignment of training cases to a query: the few best candidates, each with mirroring, rotation, scale and shift."""

# Largest number of training cases that are aligned to a query at full resolution.
CANDIDATES = 10
# Part of the measures' definitions: raise it when the search or any of its numbers changes.
VERSION = 3

# Up to this number of training cases the search looks at all of them, beyond at those that are proposed: the most
# similar by the embedding, and those that correlate best in place or mirrored.
EXHAUSTIVE = 5_000
SIMILAR, IN_PLACE = 1_000, 250
