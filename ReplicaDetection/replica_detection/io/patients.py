"""The patients of a cohort: from a table of ids, or from a pattern that finds them in ids and paths."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.case import Case
from replica_detection.io.cohort_tables import read_patients

SHOWN = 3
_SAME_ID = "Use the ids of the cohort, file names without extension, as text"


def with_table(
    cases: list[Case],
    path: Path,
    source: Path,
    add: Callable[[InputError], None],
    note: Callable[[InputError], None],
    beside: Collection[str] = (),
    *,
    required: bool = True,
    rows: bool = True,
) -> list[Case]:
    """The cases with the patients of a table `id,patient`; those without a row keep what they have.

    Args:
        cases: of one cohort, at least one.
        path: the table.
        source: of the cohort, for messages.
        add: takes what leaves a case without its patient.
        note: takes rows that no case needs, where every case has one.
        beside: ids of the other cohort of the run, whose rows are no surplus.
        required: False for the unseen images of a run: a table of the training images need not list any of them.
        rows: tell rows that are no case; False where the other cohort of the run tells them.

    Raises:
        InputError: the file is no such table.
    """
    patients = read_patients(path)
    ids = {case.id for case in cases}
    missing = [case.id for case in cases if case.id not in patients]
    elsewhere = patients.keys() & set(beside)
    surplus = [id for id in patients if id not in ids and id not in elsewhere] if rows else []
    named = len(cases) - len(missing)
    if not named and not elsewhere and rows:
        listed = next(iter(patients), "")
        found = f"lists no case of this cohort ({source}), e.g. id {listed!r} and case {cases[0].id!r}"
        add(InputError(path, found + _cause(surplus, missing), _SAME_ID))
    elif missing and (named or required):
        found = f"has no patient for {len(missing)} of {len(cases)} cases of {source} (first {_few(missing)})"
        if surplus:
            found += f", and {len(surplus)} of its ids are no case (first {_few(surplus)})"
        add(InputError(path, found + _cause(surplus, missing), f"{_SAME_ID}, a row for each case"))
    elif surplus:
        found = (
            f"lists {len(surplus)} id{'s that are' if len(surplus) > 1 else ' that is'} no case (first {_few(surplus)})"
        )
        note(InputError(path, found, "Every case has its patient; look whether images are missing"))
    return [replace(case, patient=patients.get(case.id) or case.patient) for case in cases]


def with_pattern(
    cases: list[Case],
    pattern: str,
    source: Path,
    add: Callable[[InputError], None],
    *,
    required: bool = True,
) -> list[Case]:
    """The cases with the patients that a regular expression finds in the case id or, failing that, in the path.

    Args:
        cases: of one cohort, at least one.
        pattern: searched for; the group named `patient` is the patient, else the first group. The path is that below
            `source`, with `/` on every system.
        source: of the cohort: a folder, or a list in a folder.
        add: takes the number of cases that do not match; those keep the patient that they have.
        required: False for the unseen images of a run, which may have names of another kind altogether.

    Raises:
        InputError: no case matches. ConfigurationError: the pattern is none, or has no group.
    """
    compiled = compiled_pattern(pattern)
    root = source if source.is_dir() else source.parent
    found = {case.id: _patient(compiled, case, root) for case in cases}
    missing = [id for id, patient in found.items() if not patient]
    if len(missing) == len(cases) and required:
        shown = f"{cases[0].id!r}" + (f", path {_below(cases[0], root)!r}" if cases[0].files else "")
        advice = "Correct the pattern: it is searched for in the case id, then in the path below the folder"
        raise InputError(source, f"has no case that fits the patient pattern {pattern!r}, e.g. id {shown}", advice)
    if missing:
        text = f"holds {len(missing)} of {len(cases)} cases that do not fit the patient pattern {pattern!r} (first "
        add(InputError(source, f"{text}{_few(missing)})", "Correct the pattern, or list the patients in a CSV"))
    return [replace(case, patient=found[case.id] or case.patient) for case in cases]


def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """The expression. Raises ConfigurationError where it cannot be read or has no group."""
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigurationError(f"patient_pattern {pattern!r} is no regular expression: {error}") from None
    if not compiled.groups:
        raise ConfigurationError(f"patient_pattern {pattern!r} has no group: put brackets around the patient")
    return compiled


def _patient(pattern: re.Pattern[str], case: Case, root: Path) -> str:
    group: str | int = "patient" if "patient" in pattern.groupindex else min(pattern.groupindex.values(), default=1)
    for text in (case.id, _below(case, root)):
        if (match := pattern.search(text)) and (match[group] or "").strip():
            return match[group].strip()
    return ""


def _below(case: Case, root: Path) -> str:
    if not case.files:
        return ""
    try:
        return PurePath(os.path.relpath(case.image, root)).as_posix()
    except ValueError:  # another drive
        return case.image.as_posix()


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN])


def _cause(surplus: Collection[str], missing: Collection[str]) -> str:
    """Why ids of a table are not those of cases, where one change makes some of them equal; "" for no known cause."""
    changes: list[tuple[str, Callable[[str], str]]] = [
        ("a spreadsheet has taken the leading zeros off", _without_zeros),
        ("a spreadsheet has made numbers of them", lambda id: _without_zeros(re.sub(r"[.,]0+$", "", id))),
        ("they differ in upper and lower case", str.casefold),
        ("the table has the extensions of the files", lambda id: re.sub(r"(\.(nii|seg|gz|[a-z]{3,5}))+$", "", id)),
        ("they differ in spaces, dots, dashes or underscores", lambda id: re.sub(r"[\W_]+", "", id).casefold()),
    ]
    for text, change in changes:
        if {change(id) for id in surplus} & {change(id) for id in missing}:
            return f": it seems that {text}"
    if any(re.fullmatch(r"\d([.,]\d+)?E\+\d+", id, re.IGNORECASE) for id in surplus):
        return ": it seems that a spreadsheet has shortened long numbers"
    return ""


def _without_zeros(id: str) -> str:
    return re.sub(r"\d+", lambda number: number[0].lstrip("0") or "0", id)
