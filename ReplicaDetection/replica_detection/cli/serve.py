"""`serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from replica_detection.cli.application import app
from replica_detection.cli.options import (
    COHORT_HELP,
    Alpha,
    Device,
    Embedding,
    K,
    Masks,
    Measures,
    Patients,
    Profile,
    Segment,
    SliceEmbedding,
)
from replica_detection.errors import ConfigurationError


@app.command()
def serve(
    studies: Annotated[Path, typer.Option(help="Folder of the synthetic images.")],
    training: Annotated[
        Path | None, typer.Option(help="The images that the generator was trained on; only read. " + COHORT_HELP)
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Training index (*.rdindex). Built from --training where it is missing.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Real images that the generator never saw: the null. " + COHORT_HELP)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder for results, ratings, sessions and the log. Default: the user's data.")
    ] = None,
    profile: Profile = "generic",
    segment: Segment = None,
    embedding: Embedding = None,
    slice_embedding: SliceEmbedding = None,
    allow_links_to: Annotated[
        list[Path] | None, typer.Option(help="A folder that links among the studies may point into. Repeatable.")
    ] = None,
    masks: Masks = None,
    training_masks: Annotated[Path | None, typer.Option(help="Masks of --training.")] = None,
    validation_masks: Annotated[Path | None, typer.Option(help="Masks of --validation.")] = None,
    patients: Patients = None,
    measures: Measures = None,
    k: K = 50,
    alpha: Alpha = 0.05,
    null_size: Annotated[int, typer.Option(help="Cases of the null, at most.", min=1)] = 500,
    device: Device = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on. Any but the loopback needs keys or tokens.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 chooses a free port.", min=0, max=65535)] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name by which clients reach the server, such as that of a proxy.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Lines `name:key`, see make-key. Ratings carry the name. Sent as Authorization: Bearer KEY. "
            "SIGHUP reads the file again."
        ),
    ] = None,
    realm_uri: Annotated[
        str,
        typer.Option(help="Keycloak realm whose tokens are accepted, as in MONAI Label. The same as --oidc-issuer."),
    ] = "",
    oidc_issuer: Annotated[
        str, typer.Option(help="OpenID Connect provider whose tokens are accepted, e.g. https://login.example/tenant.")
    ] = "",
    oidc_audience: Annotated[
        str, typer.Option(help="Audience that tokens must name (`aud`). Default: the client monailabel-app.")
    ] = "",
    oidc_roles_claim: Annotated[
        str, typer.Option(help="Claim of a token that lists roles, # between levels. Default: realm_access#roles.")
    ] = "",
    oidc_name_claim: Annotated[
        str, typer.Option(help="Claim of a token that names the reader. Default: preferred_username.")
    ] = "",
    oidc_role: Annotated[
        list[str] | None,
        typer.Option(
            help="ROLE=NAME: what the provider calls user, annotator, reviewer, trainer or admin. Repeatable."
        ),
    ] = None,
    insecure_no_authentication: Annotated[
        bool,
        typer.Option(
            "--insecure-no-authentication", help="Listen to other machines without keys or tokens: everyone gets in."
        ),
    ] = False,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address of a proxy whose X-Forwarded-For tells the client's address. Repeatable."),
    ] = None,
    access_record: Annotated[
        Path | None, typer.Option(help="File for an auditor, with a line for each scan that a reader is shown.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file: certificate to answer HTTPS with.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file: key of --tls-certificate.")] = None,
    max_upload_mb: Annotated[int, typer.Option(help="Largest upload in MiB.", min=1, max=1 << 20)] = 1024,
    max_upload_voxels: Annotated[
        int,
        typer.Option(
            help="Largest uploaded image in voxels. 0: twice the largest training image, at least 2^24.", min=0
        ),
    ] = 0,
    queue: Annotated[int, typer.Option(help="Computations that may wait; further ones get 503.", min=0)] = 16,
    compute_seconds: Annotated[
        float, typer.Option(help="Seconds after which a computation for a request is ended.", min=1)
    ] = 600,
    compute_memory_mb: Annotated[
        int, typer.Option(help="MiB of memory beyond which it is ended too. 0: a third of the machine's.", min=0)
    ] = 0,
    ratings_visible: Annotated[
        str,
        typer.Option(help="Ratings that readers see: all, or own (default with keys or tokens). Reviewers see all."),
    ] = "",
    max_connections: Annotated[int, typer.Option(help="Open connections, at most.", min=8, max=50_000)] = 500,
    connections_per_address: Annotated[
        int,
        typer.Option(
            help="Connections from one other machine, at most. This machine has no limit: it may be a proxy.", min=1
        ),
    ] = 100,
) -> None:
    """Run the server for 3D Slicer, scripts and MONAI Label clients: review, comparison, ratings.

    Only this machine reaches it unless --host says otherwise. Ctrl-C stops it.

    Example: replica-detection serve --studies synthetic/ --training training/ --validation unseen/
    """
    try:
        from replica_detection_server.serving.launch import launch
        from replica_detection_server.serving.serve_options import ServeOptions
        from replica_detection_server.settings.configuration import Configuration
    except ImportError as error:
        raise ConfigurationError(
            f"the server cannot be loaded ({error}): pip install 'replica-detection[server]'"
        ) from None
    pairs = {
        "training": training,
        "index": index,
        "validation": validation,
        "data": data,
        "profile": profile,
        "segment": segment,
        "embedding": embedding,
        "slice_embedding": slice_embedding,
        "masks": masks,
        "allow_links_to": os.pathsep.join(map(str, allow_links_to)) if allow_links_to else None,
        "training_masks": training_masks,
        "validation_masks": validation_masks,
        "patients": patients,
        "measures": measures,
        "k": k,
        "alpha": alpha,
        "null_size": null_size,
        "device": device,
    }
    given = {key: str(value) for key, value in pairs.items() if value is not None}
    listening = ServeOptions(
        host=host,
        port=port,
        allow_hosts=tuple(allow_host or ()),
        api_key_file=api_key_file,
        realm_uri=realm_uri,
        oidc_issuer=oidc_issuer,
        oidc_audience=oidc_audience,
        oidc_roles_claim=oidc_roles_claim,
        oidc_name_claim=oidc_name_claim,
        oidc_roles=tuple(oidc_role or ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        access_record=access_record,
        without_authentication=insecure_no_authentication,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        max_upload_mb=max_upload_mb,
        max_upload_voxels=max_upload_voxels,
        waiting=queue,
        compute_seconds=compute_seconds,
        compute_memory_mb=compute_memory_mb,
        ratings_visible=ratings_visible,
        max_connections=max_connections,
        connections_per_address=connections_per_address,
    )
    listening.check()
    launch(Configuration.of(studies, given), listening)
