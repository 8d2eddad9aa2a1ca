"""What readers say of a synthetic image beside its nearest training image. Imports with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

# RELICT (arXiv 2502.17360): four points, 3 and 4 count as replica.
SCALE = {
    1: "different",
    2: "similar, but another anatomy",
    3: "nearly the same anatomy",
    4: "the same scan",
}
REPLICA_FROM = 3


@dataclass(frozen=True)
class Rating:
    """One reader's opinion of one pair.

    `rating_id` is made by whoever stores it first (a UUID), so that sending it twice counts once; `created` is
    ISO 8601 in UTC; `seconds` is the time spent on the case; `index_version` says which training index was shown.
    Append-only: a later rating of the same pair by the same reader replaces the earlier one in every count.
    """

    rating_id: str
    reader: str
    synthetic_id: str
    training_id: str
    rating: int
    comment: str = ""
    blinded: bool = False
    seconds: float = 0.0
    created: str = ""
    index_version: str = ""
