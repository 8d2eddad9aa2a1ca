"""Which DICOM files are one scan: a series, without what is no slice of it, wherever its files lie.

A SeriesInstanceUID groups files of one folder, one patient, one study and one series number; exports and anonymisers
leave it empty, share it, or give one to each slice, so that position and direction of the slices decide with it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from replica_detection.io.dicom import Header

Found = tuple[Path, Header]
T = TypeVar("T")


@dataclass(frozen=True)
class Series:
    """One scan, or one image.

    Attributes:
        slices: its files and their headers, in the order of their paths.
        folder: where they lie; of a series in several folders, the folder of these.
        foreign: files that state this series and are no slice of it, each with the reason.
        apart: another folder with slices of the same series that do not continue these, None without one.
    """

    slices: tuple[Found, ...]
    folder: Path
    foreign: tuple[tuple[Path, str], ...] = ()
    apart: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files, in the order of their paths."""
        return tuple(path for path, _ in self.slices)

    @property
    def header(self) -> Header:
        """Of its first file."""
        return self.slices[0][1]


def group(found: Sequence[Found]) -> list[Series]:
    """The scans among files of which none is left out, in the order of their first files."""
    by_uid = _grouped(found, lambda item: (item[0].parent, item[1].series))
    series = [part for (_, uid), items in by_uid.items() for part in _of_one_uid(items, uid)]
    return _one_uid_a_slice(_in_several_folders(series))


def _grouped(items: Sequence[T], key: Callable[[T], object]) -> dict:
    groups: dict = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _owner(header: Header) -> tuple[str | None, str, str]:
    return header.patient, header.study, header.number


def _of_one_uid(found: list[Found], uid: str) -> list[Series]:
    """The scans among the files of one folder that state the same SeriesInstanceUID, or none."""
    owners = list(_grouped(found, lambda item: _owner(item[1])).values())
    shared = not uid or len(owners) > 1
    series = []
    for items in owners:
        single = [item for item in items if item[1].projection]
        series += [_series([item]) for item in single]
        rest = [item for item in items if not item[1].projection]
        grey = [item for item in rest if not item[1].colour]
        colour = [] if not grey else [item for item in rest if item[1].colour]
        if rest:
            series += _of_one_kind(grey or rest, colour, shared=shared)
    return series


def _series(items: Sequence[Found], foreign: Sequence[tuple[Path, str]] = ()) -> Series:
    return Series(tuple(items), items[0][0].parent, tuple(foreign))


def _of_one_kind(items: list[Found], colour: list[Found], *, shared: bool) -> list[Series]:
    """One series; where its files differ in kind or geometry, the slices of the scan, and what is foreign to it."""
    foreign = [(path, f"is a colour image ({header.colour})") for path, header in colour]
    kinds: list[list[Found]] = []
    for item in items:
        known = next((kind for kind in kinds if not _difference(kind[0][1], item[1])), None)
        kinds.append([item]) if known is None else known.append(item)
    kinds.sort(key=len, reverse=True)
    scan, others = kinds[0], [item for kind in kinds[1:] for item in kind]
    few = len(scan) >= 3 and len(others) <= max(1, len(scan) // 4)
    # Without a slice of its own the scan would have a gap.
    whole = all(header.kind != scan[0][1].kind for _, header in others) or _places(scan, most=1.5) == "even"
    if few and whole:
        foreign += [(path, f"differs in {_difference(scan[0][1], header)}") for path, header in others]
        return [_series(scan, foreign)]
    if shared:
        return [_series(scan, foreign), *(_series(kind) for kind in kinds[1:])]
    return [_series(items, foreign)]  # reading says how its slices differ


def _difference(one: Header, other: Header) -> str:
    """The first quality in which two slices differ so that they are no slices of one scan; "" where there is none."""
    if one.kind != other.kind:
        return "its kind (SOPClassUID)"
    if one.size != other.size:
        return "size"
    if not _near(one.directions, other.directions, 1e-3):
        return "direction"
    if not _near(one.spacing, other.spacing, 1e-4):
        return "voxel size"
    return "stating a position" if (one.position is None) != (other.position is None) else ""


def _near(one: Sequence[float] | None, other: Sequence[float] | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def _heights(found: Sequence[Found]) -> np.ndarray | None:
    """Sorted places along the normal (mm), None where slices do not state one."""
    first = found[0][1].directions
    if first is None or any(header.position is None for _, header in found):
        return None
    normal = np.cross(first[:3], first[3:])
    return np.sort(np.array([header.position for _, header in found]) @ normal)


def _places(found: Sequence[Found], most: float = 1.05) -> str:
    """ "even" where no gap between slices is more than `most` times another, "same" where some share a place or state
    none, else "uneven"."""
    heights = _heights(found)
    if heights is None or len(heights) < 2:
        return "same"
    gaps = np.diff(heights)
    if gaps.min() < 0.01:
        return "same"
    return "even" if gaps.max() <= most * gaps.min() + 0.01 else "uneven"


def _in_several_folders(series: list[Series]) -> list[Series]:
    """Joins the parts of a series that lie in several folders; a copy in another folder stays a scan of its own."""
    joined: list[Series] = []
    for (uid, *_), parts in _grouped(series, lambda part: (part.header.series, *_owner(part.header))).items():
        if not uid or len(parts) == 1:
            joined += parts
            continue
        for alike in _clusters(parts, _same_geometry):
            if _continuation(alike) == "even":
                joined.append(_joined(alike))
            else:
                joined += _joined_one_by_one(alike)
    return joined


def _joined_one_by_one(parts: Sequence[Series]) -> list[Series]:
    joined: list[Series] = []
    for part in parts:
        places = [_continuation((other, part)) for other in joined]
        if "even" in places:
            k = places.index("even")
            joined[k] = _joined((joined[k], part))
        else:
            apart = joined[places.index("uneven")].folder if "uneven" in places else None
            joined.append(replace(part, apart=apart))
    return joined


def _continuation(parts: Sequence[Series]) -> str:
    """The places of the slices of all parts, as `_places`.

    "same" also where parts share a folder or an instance, or have too few slices to tell; "uneven" also where parts of
    which one lies between the slices of another share an InstanceNumber, as two scans would.
    """
    headers = [header for part in parts for _, header in part.slices]
    few = len(headers) < 3 or len({part.folder for part in parts}) < len(parts)
    if few or len({header.instance for header in headers}) < len(headers):
        return "same"
    places = _places([item for part in parts for item in part.slices])
    if places == "even" and len({header.place for header in headers}) < len(headers):
        ends = sorted(heights[[0, -1]].tolist() for part in parts if (heights := _heights(part.slices)) is not None)
        if any(low < high for (_, high), (low, _) in pairwise(ends)):
            return "uneven"
    return places


def _clusters(parts: Sequence[Series], alike: Callable[[Series, Series], bool]) -> list[list[Series]]:
    """Parts that are alike to the first of their cluster, in their order."""
    clusters: list[list[Series]] = []
    for part in parts:
        known = next((cluster for cluster in clusters if alike(cluster[0], part)), None)
        clusters.append([part]) if known is None else known.append(part)
    return clusters


def _same_geometry(one: Series, two: Series) -> bool:
    return not one.header.projection and not _difference(one.header, two.header)


def _joined(parts: Sequence[Series]) -> Series:
    slices = sorted((item for part in parts for item in part.slices), key=lambda item: str(item[0]))
    folder = Path(os.path.commonpath([part.folder for part in parts]))
    foreign = tuple(item for part in parts for item in part.foreign)
    return Series(tuple(slices), folder, foreign, next((part.apart for part in parts if part.apart), None))


def _one_uid_a_slice(series: list[Series]) -> list[Series]:
    """Stacks single slices of one patient in one folder that follow one another, each with a series of its own."""
    stacks: list[Series] = []
    single: list[Series] = []
    for part in series:
        alone = len(part.slices) == 1 and part.header.series and not part.header.projection and not part.header.colour
        (single if alone else stacks).append(part)
    for parts in _grouped(single, lambda part: (part.folder, part.header.patient, part.header.number)).values():
        for alike in _clusters(parts, _same_geometry):
            items = [item for part in alike for item in part.slices]
            # Three images may lie at even gaps by chance, many hardly so.
            if len(alike) > 2 and _places(items, most=1.05 if len(alike) < 8 else 2.0) == "even":
                stacks.append(_series(items, [told for part in alike for told in part.foreign]))
            else:
                stacks += alike
    return sorted(stacks, key=lambda part: str(part.slices[0][0]))
