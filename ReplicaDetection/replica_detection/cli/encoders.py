"""`train-encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replica_detection.cli.application import app
from replica_detection.cli.console import Bars, console, print_problems
from replica_detection.cli.options import COHORT_HELP, Device, PatientPattern, Patients, Profile, Strict

OtherImages = Annotated[
    Path | None, typer.Option(help="Other images for validation. Without: a fifth of the patients.")
]
Patience = Annotated[int, typer.Option(help="Validations without improvement after which the training ends.", min=1)]
Rotation = Annotated[
    float | None, typer.Option(help="Degrees about each axis, either way. Default: 5, for deepssim 10.", min=0)
]
AsPublished = Annotated[
    bool, typer.Option("--as-published", help="Head and learning rate of the paper, for thousands of images.")
]


@app.command("train-encoder")
def train_encoder(
    cohort: Annotated[Path, typer.Argument(help="The generator's training images. " + COHORT_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for the encoder, its history and its curve.")],
    kind: Annotated[str, typer.Option(help="contrastive (Dar et al.) or deepssim (Scardace et al.).")] = "contrastive",
    validation: OtherImages = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    profile: Profile = "generic",
    network: Annotated[str, typer.Option(help="dar, resnet18 or resnet50.")] = "dar",
    epochs: Annotated[int, typer.Option(help="Passes over the images, at most.", min=1)] = 200,
    batch: Annotated[int, typer.Option(help="Images compared with each other in a step.", min=2)] = 10,
    patience: Patience = 30,
    rotation: Rotation = None,
    flips: Annotated[str, typer.Option(help="Axes to mirror: 0 (left-right), 1, 2; empty for none.")] = "0,1,2",
    contrast: Annotated[float, typer.Option(help="Size of the change of contrast; 0 for none.", min=0)] = 0.5,
    size: Annotated[int, typer.Option(help="Voxels along an axis, at most.", min=8)] = 64,
    as_published: AsPublished = False,
    seed: Annotated[int, typer.Option(help="Same seed, same encoder (on the CPU).", min=0)] = 0,
    device: Device = "auto",
    strict: Strict = False,
) -> None:
    """Train an encoder on the training cohort, for use as --embedding contrastive:OUTPUT or deepssim:OUTPUT.

    The encoder with the smallest validation loss is kept. Give the same command again to continue an interrupted
    training.

    Example: replica-detection train-encoder training/ --output my_encoder --profile brain-mr
    """
    from replica_detection.embedding.training import train_encoder as train
    from replica_detection.embedding.training_options import EncoderOptions
    from replica_detection.io.cohort import read_together

    options = EncoderOptions(
        kind=kind,
        profile=profile,
        network=network,
        epochs=epochs,
        batch=batch,
        patience=patience,
        seed=seed,
        rotation_degrees=rotation,
        flips=_axes(flips),
        contrast=contrast,
        max_size=size,
        as_published=as_published,
        device=device,
    )
    images, unseen = read_together(
        cohort, validation, patients=patients, patient_pattern=patient_pattern, strict=strict
    )
    assert images is not None
    with Bars() as progress:
        trained = train(images, output, validation=unseen, options=options, progress=progress)
    print_problems([*images.problems, *trained.problems])
    console.print(
        f"Smallest validation loss {trained.best_loss:.4f} after epoch {trained.best_epoch} of {len(trained.history)}. "
        f"History and curve lie in {output}; use the encoder with --embedding {kind}:{output}"
    )


def _axes(flips: str) -> tuple[int, ...]:
    try:
        return tuple(int(axis) for axis in flips.split(",") if axis.strip())
    except ValueError:
        raise typer.BadParameter(f"--flips is '{flips}': it must be axes such as 0,2") from None
