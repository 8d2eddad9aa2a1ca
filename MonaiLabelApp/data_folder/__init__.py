"""The server's own folder: who may enter it, what is cleared away, a disk that is full."""
