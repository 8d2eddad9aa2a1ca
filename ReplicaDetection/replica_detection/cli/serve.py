"""`serve`."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from replica_detection.cli import server_options as of
from replica_detection.cli.application import app
from replica_detection.cli.options import (
    Alpha,
    Device,
    Embedding,
    K,
    Masks,
    Measures,
    PatientPattern,
    Patients,
    Profile,
    Segment,
    SliceEmbedding,
)
from replica_detection.errors import ConfigurationError

# Fields of the server's ServeOptions that have another name than the option.
FIELDS = {
    "allow_host": "allow_hosts",
    "oidc_role": "oidc_roles",
    "trusted_proxy": "trusted_proxies",
    "insecure_no_authentication": "without_authentication",
    "queue": "waiting",
}
REPEATABLE = ("allow_host", "oidc_role", "trusted_proxy")


@app.command()
def serve(
    studies: of.Studies,
    training: of.Training = None,
    index: of.Index = None,
    validation: of.Validation = None,
    data: of.Data = None,
    profile: Profile = "generic",
    segment: Segment = None,
    embedding: Embedding = None,
    slice_embedding: SliceEmbedding = None,
    allow_links_to: of.AllowLinksTo = None,
    masks: Masks = None,
    training_masks: of.TrainingMasks = None,
    validation_masks: of.ValidationMasks = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    measures: Measures = None,
    k: K = 50,
    alpha: Alpha = 0.05,
    null_size: of.NullSize = 500,
    device: Device = "auto",
    host: of.Host = "127.0.0.1",
    port: of.Port = 8000,
    allow_host: of.AllowHost = None,
    api_key_file: of.ApiKeyFile = None,
    realm_uri: of.RealmUri = "",
    oidc_issuer: of.OidcIssuer = "",
    oidc_audience: of.OidcAudience = "",
    oidc_roles_claim: of.OidcRolesClaim = "",
    oidc_name_claim: of.OidcNameClaim = "",
    oidc_role: of.OidcRole = None,
    insecure_no_authentication: of.WithoutAuthentication = False,
    trusted_proxy: of.TrustedProxy = None,
    access_record: of.AccessRecord = None,
    tls_certificate: of.TlsCertificate = None,
    tls_key: of.TlsKey = None,
    max_upload_mb: of.MaxUploadMb = 1024,
    max_upload_voxels: of.MaxUploadVoxels = 0,
    queue: of.Queue = 16,
    compute_seconds: of.ComputeSeconds = 600,
    compute_memory_mb: of.ComputeMemoryMb = 0,
    ratings_visible: of.RatingsVisible = "",
    max_connections: of.MaxConnections = 500,
    connections_per_address: of.ConnectionsPerAddress = 100,
) -> None:
    """Run the server for 3D Slicer, scripts and MONAI Label clients: review, comparison, ratings.

    Only this machine reaches it unless --host says otherwise. Ctrl-C stops it.

    Example: replica-detection serve --studies synthetic/ --training training/ --validation unseen/
    """
    options = locals()  # of all parameters, by name; typer needs each of them written out
    _launch(options.pop("studies"), options)


def _launch(studies: Path, options: dict[str, Any]) -> None:
    """Starts the server with the options of `serve`, by the names of its parameters."""
    try:
        from replica_detection_server.serving.launch import launch
        from replica_detection_server.serving.serve_options import ServeOptions
        from replica_detection_server.settings.configuration import Configuration
    except ImportError as error:
        raise ConfigurationError(
            f"the server cannot be loaded ({error}): pip install 'replica-detection[server]'"
        ) from None
    # The configuration has a field for each option about images and comparison; the others are about the network.
    compared = {f.name: options[f.name] for f in fields(Configuration) if f.name in options}
    listening = ServeOptions(**_fields({name: value for name, value in options.items() if name not in compared}))
    listening.check()
    launch(Configuration.of(studies, _pairs(compared)), listening)


def _pairs(options: dict[str, Any]) -> dict[str, str]:
    """The options that were given, in the text form of MONAI Label's `--conf` pairs."""
    given = {name: value for name, value in options.items() if value is not None}
    folders = given.pop("allow_links_to", None)
    pairs = {name: str(value) for name, value in given.items()}
    return pairs | ({"allow_links_to": os.pathsep.join(map(str, folders))} if folders else {})


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """The options by the names of the fields of ServeOptions, repeatable ones as tuples."""
    given: dict[str, Any] = options | {name: tuple(options[name] or ()) for name in REPEATABLE}
    return {FIELDS.get(name, name): value for name, value in given.items()}
