"""`make-key`, `case-code`, `check-access-record`: the files around a server."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from replica_detection.cli.application import app
from replica_detection.cli.console import console
from replica_detection.errors import ConfigurationError, ReplicaDetectionError

NEEDED = "the server is not installed ({error}): pip install 'replica-detection[server]'"


@app.command("make-key")
def make_key(
    name: Annotated[str, typer.Argument(help="Whose key it is; written into ratings.")],
    role: Annotated[
        str,
        typer.Option(
            help="reader: looks, compares, rates, saves labels, scores. reviewer: also sees the ratings of all and "
            "how far they agree. trainer: also trainings and the index. admin: everything, such as removing images."
        ),
    ] = "reader",
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day on which the key works (UTC).")
    ] = None,
    hashed: Annotated[
        bool,
        typer.Option("--hashed", help="Write a hash (scrypt) into the line, so that reading the file gives no key."),
    ] = False,
) -> None:
    """Make an API key for a reader of the server, and its line for --api-key-file.

    The key is shown this once. Append the line to the file and send the server
    SIGHUP, or restart it.

    Example: replica-detection make-key anna --expires 2027-01-31 --hashed
    """
    try:
        from replica_detection_server.access.keys import made_key
    except ImportError as error:
        raise ConfigurationError(NEEDED.format(error=error)) from None
    try:
        key, line = made_key(name, role, expires.date() if expires else None, hashed=hashed)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    # No markup and no line breaks: both are copied.
    typer.echo(f"Key for {name}, to give to them alone:\n\n    {key}\n\nLine for the key file:\n\n    {line}")


@app.command("case-code")
def case_code(
    case: Annotated[str, typer.Argument(help="Id of a synthetic image, or train:ID.")],
    data: Annotated[Path, typer.Option(help="The server's --data folder, whose secret makes the codes.")],
) -> None:
    """Print the code under which a server's log mentions a case.

    Example: grep $(replica-detection case-code syn_001 --data /var/lib/replica-detection) server.log
    """
    try:
        from replica_detection_server.records.case_codes import CaseCodes
    except ImportError as error:
        raise ConfigurationError(NEEDED.format(error=error)) from None
    typer.echo(CaseCodes(data, make=False).code(case))


@app.command("check-access-record")
def check_access_record(
    files: Annotated[list[Path], typer.Argument(help="The record; of several files (also .gz) the oldest first.")],
    continued: Annotated[
        bool,
        typer.Option("--continued", help="Older files were removed on purpose: the first line may follow on them."),
    ] = False,
) -> None:
    """Check that no line of an access record was changed or removed.

    Example: replica-detection check-access-record access.jsonl-* access.jsonl
    """
    try:
        from replica_detection_server.records.access_record import check
    except ImportError as error:
        raise ConfigurationError(NEEDED.format(error=error)) from None
    found = check(files, continued=continued)
    for line in found.torn:
        console.print(f"Line {line} is no line of the record; a crash or a full disk may have torn it.")
    for fault in found.faults:
        console.print(escape(f"{fault}."), soft_wrap=True)
    if found.begins_late and len(found.faults) == 1:
        raise ReplicaDetectionError("the beginning of the access record was not given; what was given is whole")
    if found.faults:
        raise ReplicaDetectionError("the access record was changed")
    if not found.first:
        console.print("The record is empty.")
        return
    console.print(f"Whole: lines {found.first} to {found.end.number}, the last with SHA-256", found.end.digest)
