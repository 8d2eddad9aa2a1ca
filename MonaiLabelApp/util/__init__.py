"""Small helpers that know nothing of images: caches, file states, addresses, processes."""
