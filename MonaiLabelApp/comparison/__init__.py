"""The index, the scored result, single comparisons, and the files made of them."""
