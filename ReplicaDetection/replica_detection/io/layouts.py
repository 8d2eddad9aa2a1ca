"""Known ways to lay out a data set: masks beside their images, the channels of nnU-Net, the subjects of BIDS."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.mask_matching import is_marked, is_segmentation, mask_stem, without_channel
from replica_detection.io.paths import file_stem

Report = Callable[[InputError], None]

_MASK_FOLDERS = frozenset({
    "mask", "masks", "label", "labels", "labelstr", "labelsts", "labelsval", "segmentation", "segmentations",
    "seg", "segs", "roi", "rois", "groundtruth", "ground_truth", "annotation", "annotations",
})  # fmt: skip
_MASK_WORDS = frozenset({
    "seg", "segmentation", "mask", "label", "labels", "labelmap", "roi",
})  # fmt: skip
# imagesTr, imagesTs ... and the folder of their label maps.
_IMAGES_OF = re.compile(r"images(tr|ts|val)$", re.IGNORECASE)
_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?=_|$)")
_BIDS_ASIDE = frozenset({
    "derivatives", "sourcedata", "code",
})  # fmt: skip
# Time series, directions, maps of the field: none is an image of the anatomy.
_BIDS_OTHER = frozenset({
    "func", "dwi", "fmap", "perf", "eeg", "meg", "ieeg", "beh", "motion", "nirs",
})  # fmt: skip
# A mask has few values. Slices of some phantoms have few, too, but then both files have.
_FEW = 32
_LOOKED_AT = 3
_USE = "To compare masks, give their folder with --masks"


@dataclass
class Layout:
    """Image files that are cases, by the rules of the data set's layout.

    `dicom` are DICOM files; `ids` and `patients` of those images for which the layout says them, `masks` of images in
    layouts that hold both; `beside`: masks that lie among the images and are no images themselves.
    """

    images: list[Path]
    dicom: list[Path] = field(default_factory=list)
    ids: dict[Path, str] = field(default_factory=dict)
    patients: dict[Path, str] = field(default_factory=dict)
    masks: dict[Path, Path] = field(default_factory=dict)
    beside: list[Path] = field(default_factory=list)


def laid_out(
    paths: Sequence[Path], dicom: Sequence[Path], root: Path, add: Report, note: Report, *, tell_masks: bool = True
) -> Layout:
    """The layout of the image files below a folder.

    Args:
        paths: all image files of formats other than DICOM.
        dicom: all DICOM files.
        root: the folder.
        add: takes what is lost against expectation: channels of nnU-Net, segmentations without an image.
        note: takes masks that are no images, and parts of a data set that are left out by its own rules.
        tell_masks: tell the masks too; False where they are used.
    """
    kept = set(_subjects([*paths, *dicom], root, note))
    images = [path for path in paths if path in kept]
    masks = _masks_among(images, root, add)
    layout = Layout([path for path in images if path not in masks], beside=[path for path in images if path in masks])
    layout.dicom = [path for path in dicom if path in kept]
    _without_test_images(layout, root, note)
    _channels(layout, add)
    _labels_of(layout, root)
    _equal_names(layout)
    for path in layout.images:
        if subject := _subject(path):
            layout.patients[path] = subject
    used = set(layout.masks.values())
    unused = [path for path in layout.beside if path not in used and not _of_test_part(path, root)]
    if unused and tell_masks:
        note(InputError(unused[0], f"is taken for a mask, not for an image of its own{_more(unused)}", _USE))
    return layout


def _more(files: Sequence[Path]) -> str:
    """Words for all files but the first."""
    count = len(files) - 1
    return f", and so {'are' if count > 1 else 'is'} {count} other file{'s' if count > 1 else ''}" if count else ""


def _subjects(paths: list[Path], root: Path, note: Report) -> list[Path]:
    """The images without those that BIDS keeps apart; all of them where the folder is no BIDS data set."""
    if not any(re.match(r"sub-[A-Za-z0-9]+$", part) for path in paths for part in _folders(path, root)[:1]):
        return paths
    for what, names, place in (
        ("derived or source data of BIDS", _BIDS_ASIDE, lambda parts: parts[:1]),
        ("no anatomical image of BIDS (time series, diffusion, field maps)", _BIDS_OTHER, lambda parts: parts[-1:]),
    ):
        apart = [path for path in paths if not names.isdisjoint(place(_folders(path, root)))]
        if apart:
            note(InputError(apart[0], f"is {what}{_more(apart)}", "To use them, give their folder itself"))
            gone = set(apart)
            paths = [path for path in paths if path not in gone]
    return paths


def _masks_among(paths: Sequence[Path], root: Path, add: Report) -> set[Path]:
    """The files that are masks of other files by their folder or the end of their name."""
    inside = {path for path in paths if _in_mask_folder(path, root)}
    plain = [path for path in paths if path not in inside and not is_marked(path) and not _is_mask_word(path)]
    names = {name for path in plain for name in (file_stem(path), without_channel(file_stem(path)))}
    in_folder: dict[Path, list[str]] = {}
    for path in plain:
        in_folder.setdefault(path.parent, []).append(file_stem(path))
    found, folders = set(), set()
    for path in paths:
        stem, base = file_stem(path), mask_stem(path)
        if path in inside and (stem in names or base in names):
            found.add(path)
            folders.add(path.parent)
        elif _fits_beside(path, names, in_folder.get(path.parent, [])):
            found.add(path)
        elif is_segmentation(path):
            found.add(path)
            add(
                InputError(
                    path, "is a segmentation, and no image has its name", "Name it as its image, or move it away"
                )
            )
    # A folder of masks holds no image, if some of its masks fit none either.
    return found | {path for path in inside if path.parent in folders}


def _fits_beside(path: Path, names: set[str], in_folder: Sequence[str]) -> bool:
    """True for a file whose name says that it is a mask, where an image has the rest of the name."""
    if is_marked(path):
        base = mask_stem(path)
        return base in names or any(_begins(name, base) for name in in_folder)
    return _is_mask_word(path) and bool(in_folder)


def _begins(name: str, base: str) -> bool:
    """True for an image and its mask that share a beginning: BraTS_1_t1 and BraTS_1(_seg), or one subject of BIDS."""
    subject = _SUBJECT.match(base)
    return name.startswith((f"{base}_", f"{base}-", *((f"{subject[1]}_",) if subject else ())))


def _is_mask_word(path: Path) -> bool:
    """True for a file of one case's folder that is called nothing but `mask` or `seg`."""
    return file_stem(path).lower() in _MASK_WORDS


def _in_mask_folder(path: Path, root: Path) -> bool:
    return any(part.lower() in _MASK_FOLDERS for part in _folders(path, root))


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    """Names of the folders between `root` and the file."""
    return path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()


def _without_test_images(layout: Layout, root: Path, note: Report) -> None:
    """Of a folder with imagesTr and imagesTs the training part counts, as in the list of a Decathlon."""
    parts = {parts[0] for path in layout.images if (parts := _folders(path, root))}
    if "imagesTr" in parts:
        apart = [path for path in layout.images if _of_test_part(path, root)]
        if apart:
            found = f"belongs to the test part, as do all {len(apart)} images there; the training part is read"
            note(InputError(apart[0], found, "To use them, give their folder itself"))
            layout.images = [path for path in layout.images if not _of_test_part(path, root)]


def _of_test_part(path: Path, root: Path) -> bool:
    return _folders(path, root)[:1] in (("imagesTs",), ("labelsTs",))


def _channels(layout: Layout, add: Report) -> None:
    """One case for the channels `a_0000`, `a_0001` ... of nnU-Net, the first channel, with the id `a`.

    Numbers alone are none: `scan_0001`, `scan_0002` are two scans, unless they lie in imagesTr or alike.
    """
    folders: dict[Path, list[Path]] = {}
    for path in layout.images:
        folders.setdefault(path.parent, []).append(path)
    left_out: list[Path] = []
    for folder, files in folders.items():
        ends = [file_stem(path)[-5:] for path in files]
        if not all(re.fullmatch(r"_\d{4}", end) for end in ends):
            continue
        if not (_IMAGES_OF.match(folder.name) or (len(files) > 1 and set(ends) == {"_0000"})):
            continue
        for path, end in zip(files, ends, strict=True):
            if end == "_0000":
                layout.ids[path] = without_channel(file_stem(path))
            else:
                left_out.append(path)
    if left_out:
        advice = "The first channel (_0000) is read. To compare another one, list its files in a CSV id,image"
        add(InputError(left_out[0], f"is a further channel of nnU-Net{_more(left_out)}", advice))
        gone = set(left_out)
        layout.images = [path for path in layout.images if path not in gone]


def _labels_of(layout: Layout, root: Path) -> None:
    """The label maps of imagesTr in labelsTr beside it are masks of its cases, as the list of a Decathlon says."""
    labels = {(path.parent, file_stem(path)): path for path in layout.beside}
    for path in layout.images:
        part = _IMAGES_OF.match(path.parent.name)
        if part and path.parent != root:
            folder = path.parent.with_name(f"labels{part[1]}")
            mask = labels.get((folder, layout.ids.get(path, file_stem(path))))
            if mask is not None:
                layout.masks[path] = mask


def _equal_names(layout: Layout) -> None:
    """Files of one name in two folders, or of two formats: masks are those that alone hold few whole numbers."""
    by_id: dict[str, list[Path]] = {}
    for path in layout.images:
        by_id.setdefault(layout.ids.get(path, file_stem(path)), []).append(path)
    pairs: dict[tuple[Path, str, Path, str], list[tuple[Path, Path]]] = {}
    for first, *others in by_id.values():
        for path in others:
            key = (first.parent, _ending(first), path.parent, _ending(path))
            pairs.setdefault(key, []).append((first, path))
    masks: set[Path] = set()
    for equal in pairs.values():
        # An empty mask says nothing, so a few are looked at.
        side = next((found for pair in equal[:_LOOKED_AT] if (found := _mask_side(*pair)) is not None), None)
        if side is not None:
            masks |= {pair[side] for pair in equal}
    if masks:
        layout.beside += [path for path in layout.images if path in masks]
        layout.images = [path for path in layout.images if path not in masks]


def _ending(path: Path) -> str:
    return path.name[len(file_stem(path)) :].lower()


def _mask_side(first: Path, second: Path) -> int | None:
    """0 or 1: which of two files is a mask of the other; None where neither is, or both."""
    few = _is_label_map(first), _is_label_map(second)
    return None if few[0] == few[1] else few.index(True)


def _is_label_map(path: Path) -> bool:
    """True for an image that holds few different values, whole and not negative; False where it cannot be read."""
    from replica_detection.io.volume import read_volume

    try:
        values = read_volume(path).array
    except (InputError, OSError):
        return False
    if values.min() < 0 or not (values == np.rint(values)).all():
        return False
    return len(np.unique(values)) <= _FEW


def _subject(path: Path) -> str:
    """The subject of BIDS that an image is of: `sub-01` of sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz; "" for others."""
    subject = _SUBJECT.match(file_stem(path))
    return subject[1] if subject and subject[1] in path.parts[:-1] else ""
