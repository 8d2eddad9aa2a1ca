"""The server's own folder: its rights, removal of old files, and a full disk."""
