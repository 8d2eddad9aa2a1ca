"""Cases of a cohort, read and prepared a few ahead of their use; a bad file becomes a Problem."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.cohort import Case, Cohort, Problem
from replica_detection.io.volume import Volume, read_mask, read_volume
from replica_detection.preparation.prepare import PreparedImage, prepare
from replica_detection.preparation.profiles import Preparation
from replica_detection.util.cores import kernel_threads

T = TypeVar("T")


class MaskMaker(Protocol):
    """Makes the mask of an image, as a `segmentation.Segmenter` does."""

    @property
    def name(self) -> str: ...

    def segment(self, volume: Volume) -> np.ndarray: ...


SAMPLE = 24
NAMED = 3  # files, and reasons, that an error names
WORKERS = 3


def load_prepared(
    cases: Sequence[Case],
    preparation: Preparation,
    *,
    with_masks: bool,
    segmenter: MaskMaker | None = None,
    strict: bool = False,
) -> Iterator[tuple[Case, PreparedImage | Problem]]:
    """Yields each case in order, with its prepared image or with the Problem that prevented it.

    Args:
        cases: in any number; a few are read ahead by threads.
        preparation: the common grid and intensity mapping.
        with_masks: add masks; the case's own takes precedence, else `segmenter` makes one, if there is any.
        segmenter: makes missing masks.
        strict: raise the InputError of the first case that cannot be used.
    """

    def load(case: Case) -> PreparedImage | Problem:
        return load_case(case, preparation, with_masks=with_masks, segmenter=segmenter, strict=strict)

    workers = min(WORKERS, kernel_threads())
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Case, Future[PreparedImage | Problem]]] = deque()
        try:
            for case in cases:
                waiting.append((case, pool.submit(load, case)))
                # A few cases ahead keep the threads busy; more would only fill the memory.
                if len(waiting) > 2 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def load_case(
    case: Case,
    preparation: Preparation,
    *,
    with_masks: bool,
    segmenter: MaskMaker | None = None,
    strict: bool = False,
) -> PreparedImage | Problem:
    """The prepared image of one case, or the Problem that prevented it; the arguments as `load_prepared` has them."""

    def read(case: Case) -> PreparedImage:
        volume = read_volume(case)
        if with_masks and case.has_mask:
            origin = "array" if case.mask is None else "file"
            return prepare(volume, preparation, read_mask(case, volume), origin)
        if with_masks and segmenter is not None:
            return prepare(volume, preparation, segmenter.segment(volume), segmenter.name)
        return prepare(volume, preparation)

    return or_problem(case, read, "Leave it out, or compare cohorts of one kind", strict=strict)


def or_problem(case: Case, work: Callable[[Case], T], advice: str, *, strict: bool) -> T | Problem:
    """Result of `work` on the case, or the Problem that prevented it; with `strict` its InputError is raised.

    A ConfigurationError means that this image does not fit the others; `advice` says what to do then.
    """
    try:
        return work(case)
    except InputError as error:
        if strict:
            raise
        return Problem.of(error)
    except ConfigurationError as error:
        wrapped = InputError(case.image, str(error), advice)
        if strict:
            raise wrapped from error
        return Problem.of(wrapped)


def sample_volumes(cohort: Cohort, *, strict: bool = False, size: int = SAMPLE) -> Iterator[Volume]:
    """Yields about `size` volumes spread evenly over the cohort; unreadable ones are skipped.

    Raises:
        InputError: no image of the cohort can be read; with `strict`, the first that cannot be.
    """
    step = max(1, len(cohort.cases) // size)
    first, problems, any_readable = cohort.cases[::step], [], False
    rest = (case for n, case in enumerate(cohort.cases) if n % step)
    # The rest only where none of the first could be read.
    for cases in (first, rest):
        for case in cases:
            try:
                volume = read_volume(case)
            except InputError as error:
                if strict:
                    raise
                problems.append(Problem.of(error))
                continue
            any_readable = True
            yield volume
        if any_readable:
            return
    raise nothing_usable(cohort.source, (*cohort.problems, *problems))


def nothing_usable(source: Path, problems: Sequence[Problem]) -> InputError:
    """The error for a cohort without any usable image: the first files of each reason, for the first reasons."""
    by_reason: dict[str, list[str]] = {}
    for problem in dict.fromkeys(problems):
        path = Path(problem.path)
        name = path.relative_to(source) if path.is_relative_to(source) and path != source else path
        by_reason.setdefault(problem.message.rstrip("."), []).append(str(name))
    told = [f"{_first(names)}: {reason}" for reason, names in list(by_reason.items())[:NAMED]]
    more = len(by_reason) - NAMED
    told += [f"and {more} more reason{'s' if more > 1 else ''}"] if more > 0 else []
    left_out = sum(map(len, by_reason.values()))
    why = f" ({left_out} file{'s' if left_out > 1 else ''} left out. {'; '.join(told)})" if told else ""
    return InputError(source, f"holds no image that can be used{why}", "Mend the files or name another folder")


def _first(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
