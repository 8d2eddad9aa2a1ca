"""A warning about the protections that MONAI Label's own launch lacks, printed by the app at its start."""

from __future__ import annotations

import sys

UNPROTECTED = (
    "no authentication unless MONAI_LABEL_AUTH_ENABLE is set, and with it every valid token is refused",
    "any web page that is open in a browser of this machine can send requests and read the answers",
    "an uploaded archive can write files anywhere that this user can, a request for training can run code",
    "/reload, /logs, /proxy and PUT /model are open to everyone who reaches the port",
    "one running inference stops every other request, and file sizes have no limit",
    "the log and the replies name images, patients' files and folders of this machine",
)


def hardened() -> bool:
    """True if this process was started by `replica-detection serve`."""
    return "replica_detection_server.serving.asgi" in sys.modules


def unprotected_launch_warning() -> str:
    """The warning, empty in a server that `replica-detection serve` started."""
    if hardened():
        return ""
    listed = "\n".join(f"  - {door}" for door in UNPROTECTED)
    return (
        "This is MONAI Label's own launch. It leaves open:\n"
        f"{listed}\n"
        "Use it on a machine of your own with --host 127.0.0.1. `replica-detection serve` closes all of these."
    )
