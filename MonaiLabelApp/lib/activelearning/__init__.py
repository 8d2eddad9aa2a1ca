"""Which case a reader sees next."""
