"""Faults of a request in words: the part and its expected form, never its value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

LONGEST = 2000
THE_REQUEST = "the request"

# By the kinds of error of pydantic, the first whose pattern fits; {names} are of the error's own figures.
_WORDS = (
    (r"missing.*", "is missing"),
    (r"int_.*", "must be a whole number"),
    (r"(float|decimal)_.*|finite_number|multiple_of", "must be a number"),
    (r"bool_.*", "must be true or false"),
    (r"string_too_short", "must have at least {min_length} letters"),
    (r"string_too_long", "may have at most {max_length} letters"),
    (r"string_pattern_mismatch", "has letters or a form that are not possible here"),
    (r"string_.*|bytes_.*", "must be text"),
    (r"greater_than_equal", "must be {ge} or more"),
    (r"greater_than", "must be more than {gt}"),
    (r"less_than_equal", "must be {le} or less"),
    (r"less_than", "must be less than {lt}"),
    (r"literal_error|enum", "must be one of {expected}"),
    (r"json_.*", "is no JSON"),
    (r"(dict|mapping|model|dataclass)_.*", "must be a JSON object"),
    (r"(list|tuple|set|frozen_set|iterable)_.*", "must be a list"),
    (r"too_short", "has too few entries"),
    (r"too_long", "has too many entries"),
    (r"(extra_forbidden|unexpected_.*)", "is not known"),
    (r"(date|time).*", "must be a time, such as 2026-01-31T14:05:00Z"),
)
# By the pattern that a text must fit, where that can be said better than above.
FORMS: dict[str, str] = {}
# Faults that this program found itself; their text is for people.
OURS = "name_fault"


def in_words(error: RequestValidationError) -> str:
    """The faults of a request and their parts, without values, which may be names."""
    found: dict[str, str] = {}
    for fault in error.errors():
        # Where a part may have several types, only the fault of the first is told; the others repeat it.
        found.setdefault(_part(fault.get("loc", ())), _words(fault))
    return "; ".join(f"{part}: {words}" for part, words in found.items())[:LONGEST] or f"{THE_REQUEST}: cannot be used"


def _part(place: Sequence[Any]) -> str:
    """The field, after query, path, form or body; the rest is internal to pydantic."""
    name = place[1] if len(place) > 1 else ""
    return name if isinstance(name, str) and re.fullmatch(r"[A-Za-z][\w-]{0,40}", name) else THE_REQUEST


def _words(fault: Mapping[str, Any]) -> str:
    kind = str(fault.get("type", ""))
    if kind == OURS:
        return str(fault.get("msg"))
    if "UploadFile" in str(fault.get("msg")):
        return "must be a file"
    figures = dict(fault.get("ctx") or {})
    if str(figures.get("pattern")) in FORMS:
        return FORMS[str(figures["pattern"])]
    words = next((words for pattern, words in _WORDS if re.fullmatch(pattern, kind)), "cannot be used")
    if "expected" in figures:
        figures["expected"] = ", ".join(re.findall(r"'([^']+)'", str(figures["expected"]))) or "what the page / names"
    try:
        return words.format_map(figures)
    except KeyError:
        return "cannot be used"
