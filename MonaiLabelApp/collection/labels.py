"""The labels of the studies: the files of `labels/<tag>` among the studies that have a study's id."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from replica_detection_server.collection.studies import LABELS, Studies, is_text
from replica_detection_server.errors import ConflictError
from replica_detection_server.settings.case_ids import study_id, suffix_of
from replica_detection_server.util.file_state import FileStates


class Labels:
    """Label files. Empty files and links to other places do not count; of several for one study the latest does."""

    def __init__(self, studies: Studies):
        self._studies = studies
        self._folder = studies.folder / LABELS

    def look(self, seen: FileStates) -> dict[str, dict[str, Path]]:
        """Each label by tag and study; what may change is noted in `seen`."""
        seen.note_folder(self._folder)
        tags = self._tags()
        for tag in tags:
            seen.note_folder(self._folder / tag)
        return {tag: {id: paths[0] for id, paths in self._files(tag, seen).items()} for tag in tags}

    def file(self, study: str, tag: str) -> Path | None:
        """The label as it is now; its place is checked again."""
        return next(iter(self._files(tag).get(study, ())), None) if tag in self._tags() else None

    def folder(self, tag: str) -> Path:
        """The folder of the labels of a tag, made where it is missing. Raises ConflictError where it is a link."""
        path = self._folder / tag
        if self._folder.is_symlink() and not self._studies.is_inside(self._folder):
            raise ConflictError("the folder of the labels is a link to another place; nothing is written there")
        path.mkdir(parents=True, exist_ok=True)
        if not self._studies.is_inside(path):
            raise ConflictError("the folder of the labels is a link to another place; nothing is written there")
        return path

    def remove(self, study: str, tag: str | None = None, but: Path | None = None) -> None:
        """Removes the labels of a study, of one tag or all; of a linked one the link."""
        for one in self._tags() if tag is None else [tag]:
            for path in self._files(one).get(study, ()):
                if path != but:
                    path.unlink(missing_ok=True)

    def _tags(self) -> list[str]:
        with suppress(OSError):
            folders = [path for path in sorted(self._folder.iterdir()) if self._studies.is_inside(path)]
            return [p.name for p in folders if p.is_dir() and is_text(p.name) and not p.name.startswith(".")]
        return []

    def _files(self, tag: str, seen: FileStates | None = None) -> dict[str, list[Path]]:
        found: dict[str, list[tuple[int, Path]]] = {}
        with suppress(OSError):
            for path in sorted((self._folder / tag).iterdir()):
                if path.name.startswith(".") or not is_text(path.name) or not suffix_of(path.name):
                    continue
                if self._studies.all_servable((path,)):
                    found.setdefault(study_id(path.name), []).append((path.stat().st_mtime_ns, path))
                elif seen is not None:
                    seen.note_file(path)  # it may still be written
        return {id: [path for _, path in sorted(paths, reverse=True)] for id, paths in found.items()}
