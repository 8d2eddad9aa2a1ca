"""IndexOptions: how a training cohort is prepared and what its index can serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from replica_detection.embedding import Embedder, Embedders, make_embedder
from replica_detection.embedding.stored import DEFAULT as DEFAULT_EMBEDDING
from replica_detection.errors import ConfigurationError
from replica_detection.measures import DEFAULT, MEASURES
from replica_detection.preparation.profiles import profile_named
from replica_detection.segmentation import Segmenter, make_segmenter
from replica_detection.workers.runner import check_workers


@dataclass(frozen=True)
class IndexOptions:
    """Options of an index.

    Args:
        profile: a name in PROFILES; it fixes grid and intensity mapping.
        measures: names of the measures that the index must serve; `default` stands for the usual ones. None: all that
            can be used on the grid and, where the cohort has no masks and no segmenter is given, need none.
        segmenter: makes the masks of cases that have none, here and of every later query; a name such as `vessels` or
            `network:FILE`, or a Segmenter. None: no masks are made.
        embedding: makes the vectors of images; a name such as `invariants` or `dino:FILE`, or an Embedder. None: the
            default.
        slice_embedding: the same for single slices of a volume.
        strict: raise the InputError of the first file that cannot be used, instead of listing it.
        workers: number of processes that prepare cases side by side, or the address of a dask scheduler (`tcp://...`);
            None: all cores that this process may use, or this process alone where little is to be done.

    Raises:
        ConfigurationError: a name that is not known, or no measure at all.
        InputError: a file of a segmenter or an embedding that cannot be used.
    """

    profile: str = "generic"
    measures: Sequence[str] | None = None
    segmenter: Segmenter | str | None = None
    embedding: Embedder | str | None = None
    slice_embedding: Embedder | str | None = None
    strict: bool = False
    workers: int | str | None = None

    def __post_init__(self) -> None:
        profile_named(self.profile)
        check_workers(self.workers)
        if self.measures is not None:
            object.__setattr__(self, "measures", _names(self.measures))
        # Made now, so that a wrong name or file is told before any image is read.
        _ = self.mask_maker, self.embedders

    @cached_property
    def mask_maker(self) -> Segmenter | None:
        """The segmenter itself, None without one."""
        return make_segmenter(self.segmenter) if isinstance(self.segmenter, str) else self.segmenter

    @cached_property
    def embedders(self) -> Embedders:
        """The embedders themselves."""
        return Embedders(_embedder(self.embedding), _embedder(self.slice_embedding))


def _names(measures: Sequence[str]) -> tuple[str, ...]:
    if isinstance(measures, str):
        raise ConfigurationError(f"measures must be a list of names, found the text '{measures}'")
    if not measures:
        raise ConfigurationError(f"no measure was named; known: {', '.join(MEASURES)}")
    for name in measures:
        if name != DEFAULT and name not in MEASURES:
            raise ConfigurationError(f"unknown measure '{name}'; known: {', '.join(MEASURES)}")
    return tuple(measures)


def _embedder(embedding: Embedder | str | None) -> Embedder:
    return embedding if isinstance(embedding, Embedder) else make_embedder(embedding or DEFAULT_EMBEDDING)
