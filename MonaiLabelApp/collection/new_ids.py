"""The ids of training cases, and the names that a client may give to a new image or label."""

from __future__ import annotations

import re

from monailabel.interfaces.datastore import DefaultLabelTag

from replica_detection_server.errors import ForbiddenError, InvalidRequestError
from replica_detection_server.incoming import names
from replica_detection_server.settings.case_ids import TRAINING, suffix_of

# Names that a client may give to a new image or label; images already in the folder may have other names.
NEW_ID, TAG = re.compile(names.NEW_ID), re.compile(names.TAG)


def is_training(case_id: str) -> bool:
    return case_id.startswith(TRAINING)


def require_id(image_id: str) -> None:
    """Refuses an id that cannot name a new study (422), or that is a training id (403)."""
    if is_training(image_id):
        raise ForbiddenError("training cases are read only")
    if not NEW_ID.fullmatch(image_id) or suffix_of(image_id):
        raise InvalidRequestError(f"the id cannot be used: {names.FORMS[names.NEW_ID]}; leave out the extension")


def require_tag(tag: str) -> None:
    if not TAG.fullmatch(tag):
        raise InvalidRequestError(f"the tag cannot be used: {names.FORMS[names.TAG]}")


def tag_name(tag: str) -> str:
    """The tag as text. MONAI Label's own tags are members of an enumeration, which cannot be part of a path."""
    return tag.value if isinstance(tag, DefaultLabelTag) else tag
