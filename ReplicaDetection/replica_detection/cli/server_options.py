"""Options of `serve`, beside those that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replica_detection.cli.options import COHORT_HELP

# ------------------------------------------------------------------------------------------------ images and comparison

Studies = Annotated[Path, typer.Option(help="Folder of the synthetic images.")]
Training = Annotated[
    Path | None, typer.Option(help="The images that the generator was trained on; only read. " + COHORT_HELP)
]
Index = Annotated[
    Path | None, typer.Option(help="Training index (*.rdindex). Built from --training where it is missing.")
]
Validation = Annotated[
    Path | None, typer.Option(help="Real images that the generator never saw: the null. " + COHORT_HELP)
]
Data = Annotated[
    Path | None, typer.Option(help="Folder for results, ratings, sessions and the log. Default: the user's data.")
]
AllowLinksTo = Annotated[
    list[Path] | None, typer.Option(help="A folder that links among the studies may point into. Repeatable.")
]
TrainingMasks = Annotated[Path | None, typer.Option(help="Masks of --training.")]
ValidationMasks = Annotated[Path | None, typer.Option(help="Masks of --validation.")]
NullSize = Annotated[int, typer.Option(help="Cases of the null, at most.", min=1)]

# --------------------------------------------------------------------------------------------------- network and access

Host = Annotated[str, typer.Option(help="Address to listen on. Any but the loopback needs keys or tokens.")]
Port = Annotated[int, typer.Option(help="0 chooses a free port.", min=0, max=65535)]
AllowHost = Annotated[
    list[str] | None, typer.Option(help="Another name by which clients reach the server, such as that of a proxy.")
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="Lines `name:key`, see make-key. Ratings carry the name. Sent as Authorization: Bearer KEY. "
        "SIGHUP reads the file again."
    ),
]
RealmUri = Annotated[
    str, typer.Option(help="Keycloak realm whose tokens are accepted, as in MONAI Label. The same as --oidc-issuer.")
]
OidcIssuer = Annotated[
    str, typer.Option(help="OpenID Connect provider whose tokens are accepted, e.g. https://login.example/tenant.")
]
OidcAudience = Annotated[
    str, typer.Option(help="Audience that tokens must name (`aud`). Default: the client monailabel-app.")
]
OidcRolesClaim = Annotated[
    str, typer.Option(help="Claim of a token that lists roles, # between levels. Default: realm_access#roles.")
]
OidcNameClaim = Annotated[
    str, typer.Option(help="Claim of a token that names the reader. Default: preferred_username.")
]
OidcRole = Annotated[
    list[str] | None,
    typer.Option(help="ROLE=NAME: what the provider calls user, annotator, reviewer, trainer or admin. Repeatable."),
]
WithoutAuthentication = Annotated[
    bool,
    typer.Option(
        "--insecure-no-authentication", help="Listen to other machines without keys or tokens: everyone gets in."
    ),
]
TrustedProxy = Annotated[
    list[str] | None,
    typer.Option(help="Address of a proxy whose X-Forwarded-For tells the client's address. Repeatable."),
]
AccessRecord = Annotated[
    Path | None, typer.Option(help="File for an auditor, with a line for each scan that a reader is shown.")
]
TlsCertificate = Annotated[Path | None, typer.Option(help="PEM file: certificate to answer HTTPS with.")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file: key of --tls-certificate.")]
MaxUploadMb = Annotated[int, typer.Option(help="Largest upload in MiB.", min=1, max=1 << 20)]
MaxUploadVoxels = Annotated[
    int,
    typer.Option(help="Largest uploaded image in voxels. 0: twice the largest training image, at least 2^24.", min=0),
]
Queue = Annotated[int, typer.Option(help="Computations that may wait; further ones get 503.", min=0)]
ComputeSeconds = Annotated[float, typer.Option(help="Seconds after which a computation for a request is ended.", min=1)]
ComputeMemoryMb = Annotated[
    int, typer.Option(help="MiB of memory beyond which it is ended too. 0: a third of the machine's.", min=0)
]
RatingsVisible = Annotated[
    str, typer.Option(help="Ratings that readers see: all, or own (default with keys or tokens). Reviewers see all.")
]
MaxConnections = Annotated[int, typer.Option(help="Open connections, at most.", min=8, max=50_000)]
ConnectionsPerAddress = Annotated[
    int,
    typer.Option(
        help="Connections from one other machine, at most. This machine has no limit: it may be a proxy.", min=1
    ),
]
