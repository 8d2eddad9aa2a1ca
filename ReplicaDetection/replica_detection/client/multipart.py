"""Files as the body of a form, streamed from disk."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from replica_detection.client.cancelling import Cancel, check
from replica_detection.client.series import ARCHIVE
from replica_detection.errors import InputError
from replica_detection.io.paths import ARRAY_SUFFIXES, DICOM_SUFFIXES, IMAGE_SUFFIXES, is_dicom_name
from replica_detection.progress import Progress, silent

BLOCK = 2**18


class Multipart:
    """Files as the body of a form, streamed from disk.

    Args:
        files: form field to file. Only the extension of a name is sent: the rest may name a patient.
        progress: called with ("uploading", bytes sent, bytes in all).

    Raises:
        InputError: a file cannot be read, or is not the whole image.
    """

    def __init__(self, files: Mapping[str, Path], progress: Progress = silent):
        self._progress, self._boundary = progress, secrets.token_hex(16)
        self._parts = []
        for field, path in files.items():
            if path.is_dir() or path.name.lower().endswith((".nhdr", ".mhd", *ARRAY_SUFFIXES)):
                advice = "Save the image as .nii.gz, .nrrd or .mha"
                raise InputError(path, "is no image in a single file, which is what can be sent", advice)
            with _readable(path):
                # Scanners name DICOM files as they like.
                known = ARCHIVE if path.suffix.lower() == ARCHIVE else ending(path)
                name = f"{field}{'.dcm' if is_dicom_name(path) else known}"
                size = path.stat().st_size
            head = f'Content-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
            head = f"--{self._boundary}\r\n{head}Content-Type: application/octet-stream\r\n\r\n"
            self._parts.append((head.encode(), path, size))
        self._end = f"--{self._boundary}--\r\n".encode()

    @property
    def headers(self) -> dict[str, str]:
        length = sum(len(head) + size + 2 for head, _, size in self._parts) + len(self._end)
        return {"Content-Type": f"multipart/form-data; boundary={self._boundary}", "Content-Length": str(length)}

    def blocks(self, cancel: Cancel) -> Iterator[bytes]:
        done, total = 0, sum(size for *_, size in self._parts)
        for head, path, size in self._parts:
            yield head
            for block in _blocks(path, size):
                check(cancel)
                yield block
                done += len(block)
                self._progress("uploading", done, total)
            yield b"\r\n"
        yield self._end


def ending(path: Path) -> str:
    """The extension of a format that is known here, in lower case; "" for all else."""
    return next((s for s in (*IMAGE_SUFFIXES, *DICOM_SUFFIXES) if path.name.lower().endswith(s)), "")


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    with _readable(path), path.open("rb") as file:
        left = size
        while left:
            block = file.read(min(BLOCK, left))
            if not block:
                raise InputError(path, "became shorter while it was sent", "Try again when nothing else writes to it")
            left -= len(block)
            yield block


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror or error})", "Check the file") from error
