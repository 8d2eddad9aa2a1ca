"""`replica_detection_server.serving.asgi:app`: the server that `replica-detection serve` runs.

From the outside in: redacted replies with one log line each, the counters of /metrics, trusted hosts and origins,
repeated headers, /health and /ready, authentication, the access record, limits of requests (addresses, sizes, JSON),
and a FastAPI application that holds the routes named here and no others.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import schedule
from fastapi import FastAPI
from monailabel.config import settings as of_monai_label
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.utils import processes
from starlette.types import ASGIApp

from replica_detection.errors import ConfigurationError
from replica_detection.version import __version__
from replica_detection_server import stock
from replica_detection_server.access.authentication import Authentication, Keyring
from replica_detection_server.access.identity import ROLES
from replica_detection_server.access.keys import ApiKeys
from replica_detection_server.access.oauth import Realm
from replica_detection_server.computing.queue import Queue
from replica_detection_server.data_folder.sweeping import sweep
from replica_detection_server.incoming import error_responses, request_limits
from replica_detection_server.incoming.request_limits import RefuseRepeatedHeaders, RequestLimits
from replica_detection_server.incoming.trusted_hosts import TrustedHosts
from replica_detection_server.records.access_record import AccessRecord
from replica_detection_server.records.case_codes import CaseCodes
from replica_detection_server.records.recorded_replies import RecordedReplies
from replica_detection_server.records.redacted_replies import RedactedReplies
from replica_detection_server.records.redaction import Scrub, where
from replica_detection_server.records.request_log import RequestLog
from replica_detection_server.serving import metrics
from replica_detection_server.serving.health import Health
from replica_detection_server.settings.launch_settings import Settings, current
from replica_detection_server.uploads.sessions import UploadSessions

logger = logging.getLogger(__name__)


def build(settings: Settings) -> tuple[FastAPI, ASGIApp]:
    """The routes, and the whole with what stands before them.

    Raises InputError for a key file or access record that cannot be used.
    """
    application = FastAPI(
        title="Replica Detection", version=__version__, docs_url=None, redoc_url=None, lifespan=_lifespan
    )
    keyring = Keyring(ApiKeys.read(settings.api_key_file)) if settings.api_key_file else None
    record = AccessRecord(settings.access_record) if settings.access_record else None
    realm = _realm(settings) if settings.realm_uri else None
    scrub = Scrub(settings.folders)
    application.state.authentication = settings.authentication
    application.state.max_upload_bytes = settings.max_upload_bytes
    application.state.settings = settings
    application.state.realm = realm
    application.state.keyring = keyring
    application.state.record = record
    application.state.scrub = scrub
    application.state.queue = Queue(waiting=settings.waiting)
    request_limits.limit_forms()
    error_responses.register(application)
    stock.register(application)
    application.include_router(metrics.router)
    # From the inside out: the last one sees a request first.
    limited = RequestLimits(application, settings.max_upload_bytes)
    recorded = RecordedReplies(limited, record) if record is not None else limited
    application.state.gate = authenticated = Authentication(recorded, keyring, realm)
    once = RefuseRepeatedHeaders(Health(authenticated, application))
    trusted = TrustedHosts(once, settings.hosts, any_address=not settings.loopback)
    log = RequestLog(CaseCodes(settings.data), named=settings.authentication != "none")
    return application, RedactedReplies(metrics.Measured(trusted, application), scrub, log)


@asynccontextmanager
async def _lifespan(application: FastAPI) -> AsyncIterator[None]:
    try:
        _begin(application.state.settings)
        application.openapi()  # takes a while the first time
        yield
        _end()
    except Exception as error:
        logger.error("failed: %s", where(error))
        raise


def _begin(settings: Settings) -> None:
    instance = app_instance()
    instance._sessions = UploadSessions(settings.sessions, of_monai_label.MONAI_LABEL_SESSION_EXPIRY)
    instance.server_mode(True)
    instance.on_init_complete()
    schedule.every(5).minutes.do(_sweep, settings.data)


def _end() -> None:
    for kind in ("train", "scoring", "batch_infer"):
        stock.jobs.stop(kind)
    app_instance().services.close()


def end_computations() -> None:
    """Ends the running computations; a caller that waits for one is told that the server stops."""
    app_instance().services.workers.close()


def _sweep(data: Path) -> None:
    kinds = ("train", "scoring", "batch_infer")
    try:
        jobs = app_instance().services.jobs.all()
        running = any(processes(kind) for kind in kinds) or any(job.state == "running" for job in jobs)
        sweep(data, jobs_run=running)
    except Exception as error:  # it would end the thread that removes sessions as well
        logger.error("sweeping failed: %s", where(error))


def _realm(settings: Settings) -> Realm:
    """The provider of tokens; options that the command line leaves out come from MONAI Label's own settings."""
    names = {
        role: getattr(of_monai_label, f"MONAI_LABEL_AUTH_ROLE_{role.upper()}", f"monailabel-{role}") for role in ROLES
    }
    return Realm(
        settings.realm_uri,
        of_monai_label.MONAI_LABEL_AUTH_CLIENT_ID,
        names | dict(settings.oidc_roles),
        settings.oidc_name_claim or of_monai_label.MONAI_LABEL_AUTH_TOKEN_USERNAME,
        settings.oidc_roles_claim or of_monai_label.MONAI_LABEL_AUTH_TOKEN_ROLES,
        settings.oidc_audience,
    )


def _made() -> tuple[FastAPI, ASGIApp]:
    settings = current()
    if settings is None:
        raise ConfigurationError(
            "this application is started by `replica-detection serve`, which also protects its files"
        )
    return build(settings)


# The app object adds the routes under /replica to `application` when it is made.
application, app = _made()
