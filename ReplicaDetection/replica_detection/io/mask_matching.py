"""The mask of each case: which file of a folder of masks belongs to which case, by one rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.case import Case
from replica_detection.io.passed_over import tell_passed_over
from replica_detection.io.paths import file_stem, is_image_name, is_regular, walk

# What is put behind the name of an image to name its mask.
_MARK = re.compile(r"[._-](seg|segmentation|mask|label|labels|labelmap|roi|dseg)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_\d{4}$")
# `segment` writes these beside its masks.
_PREVIEWS, _TABLE = "previews", "masks.csv"
_KEEP_ONE = "Keep one of them"
_NAMES = "Name each mask like its case, or list both in a CSV with the columns id,image,mask"
Report = Callable[[InputError], None]


def mask_stem(path: Path) -> str:
    """The name of the image that a mask's name speaks of: without extension and `_seg`, `-label`, `.seg` or alike."""
    return _MARK.sub("", file_stem(path))


def is_marked(path: Path) -> bool:
    """True for a name that ends like that of a mask: `a_mask.nii.gz`, `a-label.nrrd`, `a.seg.nrrd`."""
    return _MARK.search(file_stem(path)) is not None


def is_segmentation(path: Path) -> bool:
    """True for `.seg.nrrd`, which 3D Slicer gives to segmentations and nothing else."""
    return path.name.lower().endswith(".seg.nrrd")


def without_channel(stem: str) -> str:
    """The name of a case of nnU-Net: that of its image file without `_0000`."""
    return _CHANNEL.sub("", stem)


def with_masks(
    cases: list[Case], source: Path, folder: Path, add: Report, note: Report, files: Iterable[Path] | None = None
) -> list[Case]:
    """The cases with the masks of a folder; those that have one keep it, those for which none fits stay without.

    A mask belongs to the case whose id it is named by, the mark of a mask (`_seg`, `-label` ...) aside. Where no mask
    has the id, it may have the name of the image file, unless that is the id of another case. So `segment` names its
    masks by the id, and gets them back.

    Args:
        cases: of one cohort, at least one.
        source: of the cohort, for messages.
        folder: of the masks, searched recursively.
        add: takes what leaves a case without its mask, or makes it doubtful.
        note: takes masks that fit no case, where every case has one.
        files: the masks, where the folder holds other images too. None: all that it holds.

    Raises:
        InputError: the folder holds no mask, or none that fits a case.
    """
    found = _Masks.of(folder, add, files)
    chosen = _Choice(found, cases, add)
    matched = [case if case.mask is not None else replace(case, mask=chosen.mask_of(case)) for case in cases]
    chosen.tell_two_names()
    if all(case.mask is None for case in matched) and not chosen.taken:
        example = f"mask {next(iter(found.by_stem))!r} and case {cases[0].id!r} of {source}"
        raise InputError(folder, f"no mask has the name of a case, e.g. {example}", _NAMES)
    left = [path for path in found.files if path not in chosen.taken]
    if left:
        bare = [case.id for case in matched if case.mask is None]
        others = len(left) - 1
        more = f", and so do {others} other masks" if others > 1 else ", and so does another mask" if others else ""
        lacking = f"; {len(bare)} of {len(cases)} cases of {source} have no mask (first {bare[0]})" if bare else ""
        (add if bare else note)(InputError(left[0], f"fits no case{more}{lacking}", _NAMES))
    return matched


@dataclass(frozen=True)
class _Masks:
    """The masks of a folder, by their names and by the names of images that these speak of."""

    folder: Path
    files: tuple[Path, ...]
    by_stem: dict[str, list[Path]]
    by_image: dict[str, list[Path]]

    @classmethod
    def of(cls, folder: Path, add: Report, files: Iterable[Path] | None) -> _Masks:
        every = list(walk(folder, add) if files is None else files)
        every = [path for path in every if not _is_preview(path) and is_regular(path)]
        masks = [path for path in every if is_image_name(path)]
        others = [path for path in every if not is_image_name(path)]
        tell_passed_over(others, masks, add, "mask")
        if not masks:
            advice = "Give the folder that holds the masks, as .nii.gz, .nrrd, .mha or .png"
            raise InputError(folder, "holds no mask", advice)
        by_stem: dict[str, list[Path]] = {}
        by_image: dict[str, list[Path]] = {}
        for path in masks:
            by_stem.setdefault(file_stem(path), []).append(path)
            by_image.setdefault(mask_stem(path), []).append(path)
        return cls(folder, tuple(masks), by_stem, by_image)


class _Choice:
    """The masks given to cases so far."""

    def __init__(self, masks: _Masks, cases: list[Case], add: Report):
        self.masks, self.add = masks, add
        self.ids = {case.id for case in cases}
        self.taken: set[Path] = set()
        self.two_names: list[tuple[Case, Path, Path]] = []

    def mask_of(self, case: Case) -> Path | None:
        own = self._named(case.id)
        if not own and case.id.endswith("_0000") and without_channel(case.id) not in self.ids:
            own = self._named(without_channel(case.id))
        file = file_stem(case.files[0]) if len(case.files) == 1 else case.id
        other = self._named(file) if file != case.id else []
        if own and other and without_channel(file) != case.id:
            self.two_names.append((case, own[0], other[0]))
        # A mask with the id of another case is that case's.
        fits = own or ([] if file in self.ids else other)
        self.taken.update(fits)
        if len(fits) > 1:
            same = len({path.name for path in fits}) < len(fits)
            names = ", ".join(str(path.relative_to(self.masks.folder)) if same else path.name for path in fits)
            self.add(InputError(fits[0], f"several masks fit case {case.id!r}: {names}", _KEEP_ONE))
        return fits[0] if len(fits) == 1 else None

    def _named(self, name: str) -> list[Path]:
        """The masks that a name of an image fits, but for those that have the very id of another case."""
        marked = self.masks.by_image.get(name, [])
        marked = [path for path in marked if file_stem(path) == name or file_stem(path) not in self.ids]
        return list(dict.fromkeys((*self.masks.by_stem.get(name, []), *marked)))

    def tell_two_names(self) -> None:
        if self.two_names:
            case, own, other = self.two_names[0]
            count = len(self.two_names)
            more = f" (and {count - 1} other case{'s' if count > 2 else ''} alike)" if count > 1 else ""
            found = f"is the mask of case {case.id!r} by its id, but its image {case.files[0].name} is named like"
            advice = "The id decides. Give ids that are not the names of other images' files"
            self.add(InputError(own, f"{found} the mask {other.name}{more}", advice))


def _is_preview(path: Path) -> bool:
    return path.parent.name == _PREVIEWS and (path.parent.parent / _TABLE).is_file()
