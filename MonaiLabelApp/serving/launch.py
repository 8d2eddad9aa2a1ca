"""The hardened launch: checks its options, prepares a private folder, and runs the server until it is stopped."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from starlette.types import ASGIApp

from replica_detection.cli.console import console
from replica_detection.errors import ConfigurationError, ReplicaDetectionError
from replica_detection.version import __version__
from replica_detection_server.access.keys import ApiKeys
from replica_detection_server.data_folder.private_folder import private_folder
from replica_detection_server.incoming.connections import (
    Connections,
    Limits,
    open_files,
)
from replica_detection_server.records.redaction import Scrub, configuration, where
from replica_detection_server.serving import tls
from replica_detection_server.serving.announcement import announce, tell_of_jobs
from replica_detection_server.serving.launch_checks import (
    both_families,
    role_names,
)
from replica_detection_server.serving.reloading import ignore_signal_until_started, reload_on_signal
from replica_detection_server.serving.serve_options import ServeOptions
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.settings.launch_settings import (
    MEBIBYTE,
    VARIABLE,
    Settings,
)
from replica_detection_server.util.addresses import is_address, is_loopback

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

# Variables that would undo what the launch sets: MONAI_LABEL_CORS_ORIGINS also stops MONAI Label from starting.
NEVER = ("MONAI_LABEL_CORS_ORIGINS", "MONAI_LABEL_DATASTORE", "MONAI_LABEL_API_STR", "MONAI_LABEL_APP_CONF")
SECONDS_TO_STOP = 10
# MONAI Label loads an app by its file; tests replace it by one with faulty tasks.
MAIN = Path(__file__).resolve().parents[1] / "main.py"


def launch(given: Configuration, options: ServeOptions) -> None:
    """Runs the server until Ctrl-C or SIGTERM; then ends its jobs and returns.

    Raises:
        ConfigurationError, InputError: the arguments cannot be used; nothing was started.
        ReplicaDetectionError: the port is taken, another server uses the data folder, or the server did not start.
    """
    said = options.check()
    said += ApiKeys.read(options.api_key_file).warnings() if options.api_key_file else []
    if options.tls_certificate and options.tls_key:
        said += tls.checked(options.tls_certificate, options.tls_key)
    ignore_signal_until_started()
    with _socket(options.host, options.port) as listener, private_folder(given) as found:
        settings = _settings(given, options)
        logging.config.dictConfig(configuration(settings.logs, Scrub(settings.folders)))
        logging.captureWarnings(True)
        threading.excepthook = _in_a_thread
        warnings.simplefilter("ignore")
        _prepare_environment(settings)
        app = _made(given, settings, listener.getsockname()[1])
        _serve(app, settings, options, listener, [*said, *found, *_found_at_the_start()])
    _leave_if_busy()


def _settings(given: Configuration, options: ServeOptions) -> Settings:
    names = (socket.gethostname(), socket.getfqdn()) if not is_loopback(options.host) else ()
    own = () if is_address(options.host) else (options.host,)
    settings = Settings(
        data=given.data,
        loopback=is_loopback(options.host),
        hosts=tuple(dict.fromkeys((*own, *names, *options.allow_hosts))),
        api_key_file=options.api_key_file,
        realm_uri=options.issuer,
        oidc_audience=options.oidc_audience,
        oidc_roles_claim=options.oidc_roles_claim,
        oidc_name_claim=options.oidc_name_claim,
        oidc_roles=role_names(options.oidc_roles),
        access_record=options.access_record,
        max_upload_bytes=options.max_upload_mb * MEBIBYTE,
        max_upload_voxels=options.max_upload_voxels,
        waiting=options.waiting,
        compute_seconds=options.compute_seconds,
        compute_memory_mb=options.compute_memory_mb,
        ratings_visible=options.ratings_visible,
        folders=_folders(given),
    )
    for folder in (settings.sessions, settings.temporary, settings.logs):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
    return settings


def _folders(given: Configuration) -> tuple[tuple[str, str], ...]:
    """Every folder whose path is hidden in replies and logs, with the name that stands for it."""
    named = {
        "studies": given.studies,
        "training": given.training,
        "training masks": given.training_masks,
        "validation": given.validation,
        "validation masks": given.validation_masks,
        "masks": given.masks,
        "index": given.index,
        "patients": given.patients,
        "data": given.data,
        "app": Path(__file__).resolve().parents[1],
        "home": Path.home(),
        "python": Path(sys.prefix),
    }
    named |= {key.replace("_", " "): path for key, path in given.named_files.items()}
    named |= {f"linked {n}": path for n, path in enumerate(given.link_folders, 1)}
    return tuple((str(path), f"<{name}>") for name, path in named.items() if path is not None)


def _prepare_environment(settings: Settings) -> None:
    """Sets the variables that MONAI Label reads when it is imported, here and in its job processes."""
    for name in NEVER:
        os.environ.pop(name, None)
    os.environ.update(
        {
            VARIABLE: settings.to_json(),
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
            "MONAI_LABEL_TRACKING_ENABLED": "false",
            "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "true",
            "MONAI_LABEL_DATASTORE_READ_ONLY": "false",
            "MONAI_LABEL_SESSIONS": "true",
            "MONAI_LABEL_SESSION_PATH": str(settings.sessions),
            "MONAI_LABEL_INFER_CONCURRENCY": "-1",
            "MONAI_LABEL_AUTH_ENABLE": "true" if settings.realm_uri else "false",
            "MONAI_LABEL_AUTH_REALM_URI": settings.realm_uri or "http://localhost",
            # Uploads and results pass through files; in /tmp other users of the machine could read them.
            "TMPDIR": str(settings.temporary),
            "TEMP": str(settings.temporary),
            "TMP": str(settings.temporary),
            "PYTHONPATH": _python_path(),
        }
    )
    tempfile.tempdir = str(settings.temporary)
    empty = Path(tempfile.mkdtemp(prefix="cwd-"))
    # MONAI Label reads a .env of the working folder as settings, and opens an id that exists there as a file.
    os.chdir(empty)


def _python_path() -> str:
    """The user's Python path, with absolute folders because the working folder changes."""
    return os.pathsep.join(str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)


def _made(given: Configuration, settings: Settings, port: int) -> ASGIApp:
    """The application around the app object, made first so that its faults are reported before anything listens."""
    folder = settings.data / "app"
    folder.mkdir(exist_ok=True)
    # MONAI Label writes into the folder of its app, and an installed one is read-only.
    shutil.copyfile(MAIN, folder / "main.py")
    try:
        from monailabel.interfaces.utils.app import app_instance
        from monailabel.main import Main
    except ImportError as error:
        raise ConfigurationError(
            f"the server needs MONAI Label ({error}): pip install 'replica-detection[server]', Python 3.11 or 3.12"
        ) from None
    arguments = ["start_server", "--app", str(folder), "--studies", str(given.studies), "--port", str(port)]
    for key, value in json.loads(given.to_json()).items():
        if key != "studies" and value is not None:
            arguments += ["--conf", key, str(value)]
    starter = Main.__new__(Main)  # its constructor sets up a log with names of cases and folders
    starter.actions = {"start_server"}
    starter.start_server_init_settings(starter.args_parser().parse_args(arguments))
    from replica_detection_server.serving import asgi

    app_instance()
    return asgi.app


def _found_at_the_start() -> list[str]:
    """Notices of the app about its files; tests run apps that have none."""
    from monailabel.interfaces.utils.app import app_instance

    return list(getattr(app_instance(), "notices", list)())


def _serve(app: ASGIApp, settings: Settings, options: ServeOptions, listener: socket.socket, said: list[str]) -> None:
    from replica_detection_server.incoming.protocol import BoundedServer
    from replica_detection_server.serving import asgi

    limits = Limits(open_files(options.max_connections), options.connections_per_address)
    asgi.application.state.connections = Connections(limits)

    class Announcing(BoundedServer):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                announce(settings, options, listener.getsockname()[1], said)
                tell_of_jobs()
                logger.info("started: version %s, authentication by %s", __version__, settings.authentication)
                reload_on_signal(self.config)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            asgi.end_computations()  # else their callers would be waited for
            await super().shutdown(sockets)

    server = Announcing(_uvicorn_config(app, options), asgi.application.state.connections)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        server.run(sockets=[listener])
    except (KeyboardInterrupt, SystemExit):  # uvicorn passes the signal on once it has stopped
        pass
    finally:
        logger.info("stopped")
        logging.shutdown()
    if not server.started:
        raise ReplicaDetectionError(f"the server did not start; {settings.logs / 'server.log'} says where it failed")
    console.print("Stopped.")


def _uvicorn_config(app: ASGIApp, options: ServeOptions) -> uvicorn.Config:
    import uvicorn

    from replica_detection_server.incoming.protocol import BoundedHttp

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=BoundedHttp,
        workers=1,  # jobs and sessions live in one process
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=SECONDS_TO_STOP,
        ssl_certfile=options.tls_certificate,
        ssl_keyfile=options.tls_key,
        # Only the headers of a proxy of --trusted-proxy count; uvicorn's default trusts those of this machine.
        proxy_headers=bool(options.trusted_proxies),
        forwarded_allow_ips=both_families(options.trusted_proxies),
    )
    if options.tls_certificate and options.tls_key:
        config.load()
        # Not uvicorn's own context, whose ciphers depend on its version.
        config.ssl = tls.context(options.tls_certificate, options.tls_key)
    return config


@contextmanager
def _socket(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket, made first so that a port in use is reported before anything else is done."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"--host {host} is no address of a network ({error})") from None
    with socket.socket(family, kind, protocol) as listener:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ReplicaDetectionError(
                f"cannot listen on {host} port {port} ({error.strerror or error}). Choose another --port or --host."
            ) from None
        yield listener


def _in_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Logs an error of a thread without its message, which may name a patient."""
    if failed.exc_value is not None:
        logger.error("failed in a thread: %s", where(failed.exc_value))


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _leave_if_busy() -> None:
    """Ends the process if a computation still runs without a caller; its results are on disk whole or not at all."""
    busy = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    end = time.monotonic() + 2
    for thread in busy:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in busy):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
