"""The lines that `serve` prints on its console once it listens."""

from __future__ import annotations

import threading

from rich.markup import escape

from replica_detection.cli.console import console, print_warnings
from replica_detection_server.serving.serve_options import ServeOptions
from replica_detection_server.settings.launch_settings import (
    MEBIBYTE,
    Settings,
)


def announce(settings: Settings, options: ServeOptions, port: int, said: list[str]) -> None:
    scheme = "https" if options.tls_certificate else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    who = {
        "none": "nobody needs a key" + (": every user of this machine can come in" if settings.loopback else ""),
        "key": "readers with a key of the key file",
        "token": f"users of {settings.realm_uri} with a role of this server",
    }[settings.authentication]
    reach = "this machine only" if settings.loopback else "every network that reaches this machine"
    console.print(f"[bold]Replica Detection[/bold] serves [bold]{scheme}://{host}:{port}[/bold]  (Ctrl-C stops it)")
    hosts = ", ".join(dict.fromkeys(("localhost", *settings.hosts)))
    console.print(f"  reached from   {reach}; Host names: {escape(hosts)}")
    console.print(f"  who            {escape(who)}")
    console.print("  closed         web pages of other origins, /reload, /logs, /proxy, /ohif, /model, /infer/wsi")
    console.print(f"  limits         {options.max_upload_mb} MiB an upload, {settings.waiting} waiting computations")
    console.print(f"                 {settings.compute_seconds:g} s and {_memory(settings)} MiB for each computation")
    console.print(f"  own folder     {escape(str(settings.data))} (results, ratings, sessions, log)")
    if settings.access_record:
        console.print(f"  access record  {escape(str(settings.access_record))}")
    print_warnings(said)


def tell_of_jobs() -> None:
    from monailabel.interfaces.utils.app import app_instance

    from replica_detection_server.serving.console_progress import ConsoleProgress

    telling = ConsoleProgress(app_instance().services, lambda line: console.print(escape(line)))
    threading.Thread(target=telling.run, name="telling", daemon=True).start()


def _memory(settings: Settings) -> int:
    from replica_detection_server.computing.workers import Limits

    return Limits.of(settings.compute_seconds, settings.compute_memory_mb).memory_bytes // MEBIBYTE
