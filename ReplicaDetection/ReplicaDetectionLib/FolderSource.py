"""FolderSource: a finished result folder on disk, read without a server and without torch."""

from __future__ import annotations
