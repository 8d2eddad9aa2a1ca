"""A synthetic set without its replicas and near-duplicates, and a manifest that gives the reason for each case."""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from replica_detection.audit.synthetic_duplicates import DuplicateGroup, near_duplicate_groups
from replica_detection.detection.options import resolve_device
from replica_detection.detection.run_inputs import as_result, index_of, synthetic_of
from replica_detection.errors import InputError
from replica_detection.io.cohort import Case, Cohort
from replica_detection.io.volume import voxel_files
from replica_detection.progress import Progress, silent
from replica_detection.results import wording
from replica_detection.results.result import IDENTICAL, TO_REVIEW, CaseSummary, DetectionResult, NullInfo
from replica_detection.util.csv_tables import write_csv
from replica_detection.util.files import write_advice

MANIFEST = "manifest.csv"
_STAYS = {
    "undefined": "kept, but could not be judged",
    "undecided": "kept, but undecided",
    "suspicious": "kept, though suspicious",
}
_COLUMNS = ("synthetic_id", "kept", "reason", "verdict", "score", "nearest_training_id", "kept_instead", "files")


@dataclass(frozen=True)
class Decision:
    """The decision on a case, with its reason.

    `kept_instead` is the near-duplicate that stands for it. `case` is None where there is no image. `files` are those
    that could not be read.
    """

    synthetic_id: str
    kept: bool
    reason: str
    summary: CaseSummary | None = None
    kept_instead: str = ""
    case: Case | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FilteredSet:
    """Decisions on every image of a synthetic set, in the order of the set.

    Attributes:
        decisions: of every image.
        source: where the set lies.
        warnings: what limits the decisions, and how many images stay that were not cleared.
    """

    decisions: tuple[Decision, ...]
    source: Path
    warnings: tuple[str, ...] = ()

    @property
    def kept_ids(self) -> tuple[str, ...]:
        """Ids of the images that stay."""
        return tuple(d.synthetic_id for d in self.decisions if d.kept)

    @property
    def duplicates(self) -> int:
        """Number of images that went as near-duplicates of images that stay."""
        return sum(bool(d.kept_instead) for d in self.decisions)

    @property
    def flagged(self) -> int:
        """Number of images that went by their verdict."""
        gone = sum(not d.kept and d.case is not None and d.summary is not None for d in self.decisions)
        return gone - self.duplicates

    @property
    def cases(self) -> int:
        """Number of images in the set."""
        return sum(d.case is not None for d in self.decisions)

    def write(self, folder: str | os.PathLike[str], *, copy: bool = True) -> None:
        """Copies the files of the images that stay into `folder`, with `manifest.csv`: see `write_filtered`."""
        write_filtered(self.decisions, self.source, Path(folder), copy=copy)


def filter_replicas(
    result: DetectionResult | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    images: Any = None,
    without_suspicious: bool = False,
    keep_duplicates: bool = False,
    copy: bool = True,
    device: str = "auto",
    progress: Progress = silent,
) -> FilteredSet:
    """The synthetic set without its replicas, and without near-duplicates among the synthetic images themselves.

    Of near-duplicates the image with the lowest score stays. What stays is not proved to be unlike the training images:
    the run's error rates, and everything that it cannot see, apply to it. Suspicious and undecided images stay unless
    `without_suspicious` says otherwise, and so do those that could not be judged; reasons and `warnings` say so.

    Args:
        result: a finished run, or its folder.
        output: new folder for the files of the images that stay, and for `manifest.csv`. None: nothing is written.
        images: the synthetic images, where they are no longer where they were; as `Cohort.of` takes them.
        without_suspicious: leave out suspicious and undecided images too.
        keep_duplicates: do not look for near-duplicates.
        copy: False: only the manifest is written. Images in memory have no files to copy: take `kept_ids`.
        device: `auto`, `cpu` or `cuda`, for the search of near-duplicates.
        progress: called with (stage, done, total).

    Raises:
        InputError: the images or the index are no longer where they were, `output` cannot be used, or images in memory
            were to be copied.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        rng = np.random.default_rng(0)
        training, unseen = rng.random((12, 16, 16, 16)), rng.random((10, 16, 16, 16))
        images = np.concatenate([training[:2], rng.random((4, 16, 16, 16))])
        training, unseen, images = (rd.Cohort.from_arrays(a, spacing=1) for a in (training, unseen, images))
        result = rd.detect(images, training, validation=unseen, measures=["mae", "ssim"])
        kept = rd.filter_replicas(result)
        assert len(kept.kept_ids) == 4
        ```
    """
    read = as_result(result)
    cohort = synthetic_of(read, images)
    if output is not None:
        _require_place(cohort.cases, Path(cohort.source), Path(output), copy=copy)
    decisions = decide(read, cohort, without_suspicious=without_suspicious)
    limits: tuple[str, ...] = ()
    if not keep_duplicates:
        stays = {d.synthetic_id for d in decisions if d.kept}
        rest = replace(cohort, cases=tuple(c for c in cohort.cases if c.id in stays))
        index = index_of(read)
        measures = index.measures([m.name for m in read.run.measures], resolve_device(device), aligning=False)
        found = near_duplicate_groups(rest, index, measures, alpha=read.run.alpha, progress=progress)
        decisions = decide(read, cohort, found.groups, without_suspicious=without_suspicious)
        limits = found.warnings
    filtered = FilteredSet(tuple(decisions), Path(cohort.source), (*_kept_uncleared(decisions, read.run.null), *limits))
    if output is not None:
        filtered.write(output, copy=copy)
    return filtered


def decide(
    result: DetectionResult,
    synthetic: Cohort,
    groups: Sequence[DuplicateGroup] = (),
    *,
    without_suspicious: bool = False,
) -> list[Decision]:
    """One decision for each case of the cohort and of the result, in the order of the cohort.

    Of each group of near-duplicates the case with the lowest score stays; cases that go as replicas do not count. Cases
    that were not cleared (suspicious, undecided, not judged) stay, and the reason says so; cases that the run never saw
    do not.

    Args:
        groups: near-duplicates among the cases that are not replicas (`near_duplicate_groups`).
        without_suspicious: leave out suspicious and undecided cases too.
    """
    summaries = {c.synthetic_id: c for c in result.summary}
    gone = TO_REVIEW if without_suspicious else ("replica",)
    stays = {c.synthetic_id for c in result.summary if c.verdict not in gone}
    instead: dict[str, tuple[str, bool]] = {}
    for group in groups:
        members = sorted((i for i in group.ids if i in stays), key=lambda i: _rank(summaries[i]))
        instead |= dict.fromkeys(members[1:], (members[0], group.identical))
    skipped = list(result.run.synthetic.skipped)
    decisions = []
    for case in synthetic.cases:
        unread = None if case.id in summaries else next((s for s in skipped if _is_file_of(case, s[0])), None)
        if unread is None:
            decisions.append(_decision(case.id, summaries.get(case.id), case, case.id in stays, instead))
        else:
            skipped.remove(unread)
            decisions.append(Decision(case.id, False, f"could not be read: {unread[1]}", case=case))
    present = set(synthetic.ids)
    decisions += [
        Decision(i, False, "its image is no longer there as it was compared", s)
        for i, s in summaries.items()
        if i not in present
    ]
    decisions += [Decision("", False, f"could not be read: {why}", files=(Path(path),)) for path, why in skipped]
    return decisions


def _is_file_of(case: Case, path: str) -> bool:
    """True for a file of the case by the path that a run noted, which may begin at the folder it was started in."""
    parts = tuple(part for part in Path(path).parts if part not in (".", ".."))
    return any(file.parts[-len(parts) :] == parts for file in case.files) if parts else False


def write_filtered(decisions: Iterable[Decision], source: Path, output: Path, *, copy: bool = True) -> None:
    """Copies the files of the kept cases into `output`, with `manifest.csv`; all of it or nothing.

    The source is only read. Files below the source's folder keep their place below `output`; others go into a folder
    named as the case.

    Args:
        source: folder or list that the cohort was read from.
        output: must not exist, or be an empty folder, and not lie inside the source's folder.
        copy: False: only the manifest is written.

    Raises:
        InputError: `output` cannot be used, two cases would need one file name, or a file cannot be copied.
    """
    decisions, output = list(decisions), Path(output)
    root = _require_place((d.case for d in decisions if d.case), source, output, copy=copy)
    output.parent.mkdir(parents=True, exist_ok=True)
    work = output.with_name(f".{output.name[:40]}.{secrets.token_hex(4)}.tmp")
    work.mkdir()
    try:
        taken: dict[Path, str] = {}
        for d in decisions if copy else ():
            if d.kept and d.case is not None:
                _copy(d.case, root, work, taken)
        write_csv(work / MANIFEST, _COLUMNS, (_row(d) for d in decisions))
        if output.exists():
            output.rmdir()
        work.replace(output)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        advice = write_advice(error, "Check free space and permissions")
        raise InputError(error.filename or output, f"cannot be copied ({error.strerror or error})", advice) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _require_place(cases: Iterable[Case], source: Path, output: Path, *, copy: bool) -> Path:
    """The folder of the source. Raises InputError where nothing can be copied to `output`, or it holds something."""
    root = (source if source.is_dir() else source.parent).resolve()
    if copy and any(case.volume is not None for case in cases):
        advice = "Write the manifest alone (copy=False), and take the images of `kept_ids`"
        raise InputError(source, "are images in memory, which have no files to copy", advice)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(output, "exists already", "Name a new folder")
    if copy and (output.resolve() == root or output.resolve().is_relative_to(root)):
        raise InputError(output, f"lies inside the synthetic images ({root})", "Name a folder elsewhere")
    return root


def _kept_uncleared(decisions: Iterable[Decision], null: NullInfo) -> list[str]:
    """A warning for each kind of image that stays without having been cleared."""
    kept = Counter(d.summary.verdict for d in decisions if d.kept and d.summary is not None)
    advice = "look at them, or leave them out (without_suspicious)"
    warnings = []
    if kept["undecided"]:
        why = wording.undecided_reason(null)
        images = wording.count(kept["undecided"], "undecided image")
        warnings.append(f"{images} kept ({why}): {advice}. {wording.missing_sentence(null)}".strip())
    if kept["suspicious"]:
        warnings.append(f"{wording.count(kept['suspicious'], 'suspicious image')} kept: {advice}")
    if kept["undefined"]:
        images = wording.count(kept["undefined"], "image")
        warnings.append(f"{images} kept that could not be judged; {MANIFEST} gives the reasons")
    return warnings


def _rank(summary: CaseSummary) -> float:
    return summary.score if summary.score == summary.score else 1.0


def _decision(
    name: str, summary: CaseSummary | None, case: Case, stays: bool, instead: dict[str, tuple[str, bool]]
) -> Decision:
    if summary is None:
        return Decision(name, False, "was not in the run", case=case)
    if not stays:
        reason = f"{summary.verdict}: {_resembles(summary)}"
        return Decision(name, False, reason, summary, case=case)
    if name in instead:
        other, identical = instead[name]
        return Decision(
            name, False, f"{'identical to' if identical else 'near-duplicate of'} {other}", summary, other, case
        )
    reason, why = _STAYS.get(summary.verdict, "kept"), wording.reason(summary).removeprefix("Not judged: ")
    return Decision(name, True, f"{reason}: {why[0].lower()}{why[1:]}" if why else reason, summary, case=case)


def _resembles(summary: CaseSummary) -> str:
    if summary.reason == IDENTICAL:
        return f"identical to training case {summary.nearest_training_id}, or a mirrored or turned copy of it"
    return f"resembles training case {summary.nearest_training_id}"


def _copy(case: Case, root: Path, work: Path, taken: dict[Path, str]) -> None:
    for path in dict.fromkeys(p for f in case.files for p in voxel_files(f)):
        whole = path.parent.resolve() / path.name  # a link is copied under its own name
        target = whole.relative_to(root) if whole.is_relative_to(root) else Path(case.id) / path.name
        if taken.setdefault(target, case.id) != case.id:
            found = f"and a file of case {taken[target]!r} would both become {target}"
            raise InputError(path, found, "Write the manifest alone and copy by it")
        (work / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, work / target)


def _row(d: Decision) -> dict[str, object]:
    return {
        "synthetic_id": d.synthetic_id,
        "kept": d.kept,
        "reason": d.reason,
        "verdict": d.summary.verdict if d.summary else "",
        "score": d.summary.score if d.summary else None,
        "nearest_training_id": d.summary.nearest_training_id if d.summary else "",
        "kept_instead": d.kept_instead,
        "files": tuple(map(str, d.case.files if d.case else d.files)),
    }
