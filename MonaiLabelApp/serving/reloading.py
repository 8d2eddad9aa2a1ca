"""SIGHUP: keys, certificate and keys of the token provider are read again, and files that are added to opened again.

A faulty file is not used: the old one stays, and the log says so. Windows has no such signal.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.errors import InputError
from replica_detection_server.access.keys import ApiKeys, readable_by_others
from replica_detection_server.records.redaction import log_files
from replica_detection_server.serving.tls import renew

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

NUMBER = getattr(signal, "SIGHUP", None)


def ignore_signal_until_started() -> None:
    """A SIGHUP while the server starts does nothing: it reads everything then anyway."""
    if NUMBER is not None:
        # Not SIG_IGN, which job processes would inherit.
        signal.signal(NUMBER, lambda number, frame: None)


def reload_on_signal(config: uvicorn.Config) -> None:
    """From now on SIGHUP reloads. Called in the server's event loop."""
    if NUMBER is not None:
        asyncio.get_running_loop().add_signal_handler(NUMBER, reload, config)


def reload(config: uvicorn.Config) -> None:
    """Reads all parts again, each independently of the others."""
    _tried("the log", _log)
    _tried("the key file", _keys)
    _tried("the certificate", lambda: _certificate(config))
    _tried("the access record", _record)
    _tried("the keys of the token provider", _realm)


def _tried(what: str, again: Callable[[], str]) -> None:
    try:
        said = again()
    except InputError as error:
        logger.error("reload: %s stays as it was: %s: %s", what, Path(error.path).name, error.found)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        logger.error("reload: %s stays as it was: %s", what, str(why))
    else:
        if said:
            logger.info("reload: %s: %s", what, said)


def _keys() -> str:
    from replica_detection_server.serving.asgi import application

    path, keyring = application.state.settings.api_key_file, application.state.keyring
    if keyring is None:
        return ""
    keyring.keys = ApiKeys.read(path).knowing(keyring.keys)
    for warning in (*keyring.keys.warnings(), *(["chmod 600 the key file"] if readable_by_others(path) else [])):
        logger.warning("reload: %s", warning)
    return f"{len(keyring.keys.owners)} keys are in use"


def _certificate(config: uvicorn.Config) -> str:
    certificate, context = config.ssl_certfile, config.ssl
    if certificate is None or context is None:
        return ""

    renew(context, Path(certificate), Path(config.ssl_keyfile or certificate))
    return "new connections get that of the file"


def _record() -> str:
    from replica_detection_server.serving.asgi import application

    if application.state.record is None:
        return ""
    application.state.record.reopen()
    return "opened again"


def _realm() -> str:
    from replica_detection_server.serving.asgi import application

    if application.state.realm is None:
        return ""
    application.state.realm.forget()
    return "fetched with the next token"


def _log() -> str:
    for file in log_files():
        file.reopen()
    return "its files were opened again"
