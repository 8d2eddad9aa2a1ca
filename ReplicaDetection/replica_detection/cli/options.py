"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROFILES_HELP = "generic, head-ct, tof-mra, brain-mr, knee-mr or chest-xray. Fixes grid and intensity mapping."
COHORT_HELP = "A folder (searched recursively), a CSV with the columns id,image[,mask][,patient], or a dataset.json."

Profile = Annotated[str, typer.Option(help=PROFILES_HELP)]
Patients = Annotated[
    Path | None, typer.Option(help="CSV with the columns id,patient: scans of one patient do not count as copies.")
]
PatientPattern = Annotated[
    str | None,
    typer.Option(
        help="Instead of --patients: a regular expression that is searched for in the case id, then in the path below "
        "the folder. Its group (the one named patient, or the first) is the patient: '^(p[0-9]+)_'."
    ),
]
Measures = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated, such as mae,rmse,ssim; default,memorization_index adds to the default ones. "
        "Without: all default ones that the index serves."
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(help="Folder of masks of the region of interest (hematoma, vessels ...), named by the case ids."),
]
Segment = Annotated[
    str | None,
    typer.Option(help="Make masks where none are given: hemorrhage, vessels, or network:FILE. Your own masks win."),
]
Embedding = Annotated[
    str | None,
    typer.Option(
        help="What the feature level compares: invariants (default; no file needed), medicalnet_grid:FILE, "
        "medicalnet_gap:FILE, contrastive:FOLDER, deepssim:FOLDER, dino:FILE (2D), or network:FILE."
    ),
]
SliceEmbedding = Annotated[
    str | None, typer.Option(help="The same for single slices of a volume, for slice_votes: a 2D embedding.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first file that cannot be used; otherwise skip it.")
]
K = Annotated[int, typer.Option("--k", help="Neighbourhood of the distance ratio.", min=1)]
Align = Annotated[
    bool,
    typer.Option(
        "--align/--no-align",
        help="Also look for copies that were mirrored, rotated, shifted or scaled. Without: compare images in place.",
    ),
]
PLACES = "Places where the work runs"
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that work side by side, one core and about 1 GB of memory each. Without: all cores that this "
        "process may use.",
        min=1,
        rich_help_panel=PLACES,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="A running dask cluster: the address of its scheduler, such as tcp://host:8786. Index, images and output "
        'lie at the same path on every worker. Needs pip install "replica-detection[distributed]".',
        rich_help_panel=PLACES,
    ),
]
LocalCluster = Annotated[
    int | None,
    typer.Option(
        "--cluster",
        help="A dask cluster of this many processes, started here: --workers with dask's dashboard.",
        min=1,
        rich_help_panel=PLACES,
    ),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Begin anew, instead of where an interrupted run stopped. A finished index and null stay.",
        rich_help_panel=PLACES,
    ),
]
Alpha = Annotated[float, typer.Option(help="Error rate of the verdicts.", min=1e-6, max=0.5)]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: an NVIDIA GPU where torch sees one.")]


def names(measures: str | None) -> tuple[str, ...] | None:
    """The names between the commas; None where the option was not given."""
    return tuple(n.strip() for n in measures.split(",") if n.strip()) if measures is not None else None
