"""`segment` and `train-segmentation`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replica_detection.cli.application import app
from replica_detection.cli.console import Bars, console, print_problems
from replica_detection.cli.options import (
    COHORT_HELP,
    PROFILES_HELP,
    Device,
    Masks,
    PatientPattern,
    Patients,
    Strict,
)


@app.command()
def segment(
    cohort: Annotated[Path, typer.Argument(help="Images to be segmented. " + COHORT_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for the masks, named as the cases, and for previews/.")],
    name: Annotated[str, typer.Option("--segment", help="hemorrhage, vessels, or network:FILE.")],
    strict: Strict = False,
) -> None:
    """Write a mask for each image, and a picture of each to check it by eye.

    The masks can be corrected in any viewer and given back with --masks.

    Example: replica-detection segment scans/ --segment vessels --output scans_masks
    """
    from replica_detection.audit.masks import segment as run

    with Bars() as progress:
        done = run(cohort, output, name, strict=strict, progress=progress)
    print_problems(done.problems)
    previews, table = output / "previews", output / "masks.csv"
    console.print(f"{len(done.masks)} masks in {output}, pictures in {previews}, sizes in {table}")
    if done.empty:
        console.print(f"{len(done.empty)} of them are empty (first {done.empty[0]}): nothing was found there.")


@app.command("train-segmentation")
def train_segmentation(
    cohort: Annotated[Path, typer.Argument(help="Images with masks. " + COHORT_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for the network, its history and its curve.")],
    masks: Masks = None,
    validation: Annotated[
        Path | None, typer.Option(help="Images for validation. Without: a fifth of the patients.")
    ] = None,
    validation_masks: Annotated[Path | None, typer.Option(help="Masks of --validation.")] = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    profile: Annotated[str | None, typer.Option(help="Intensity mapping and spacing. " + PROFILES_HELP)] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images, at most.", min=1)] = 100,
    network: Annotated[str, typer.Option(help="unet, segresnet, dynunet or basicunet.")] = "unet",
    seed: Annotated[int, typer.Option(help="Same seed, same network (on the CPU).")] = 0,
    device: Device = "auto",
    strict: Strict = False,
) -> None:
    """Train a small segmentation network on a cohort with masks, for use as --segment network:OUTPUT.

    The best network by validation Dice is kept. Give the same command again to continue an interrupted training.

    Example: replica-detection train-segmentation scans/ --masks scans_masks/ --output vessel_network --profile tof-mra
    """
    from replica_detection.io.cohort import read_together
    from replica_detection.segmentation.training import train_segmentation as train
    from replica_detection.segmentation.training_options import SegmentationOptions

    options = SegmentationOptions(profile=profile, epochs=epochs, network=network, seed=seed, device=device)
    images, unseen = read_together(
        cohort,
        validation,
        masks=masks,
        other_masks=validation_masks,
        patients=patients,
        patient_pattern=patient_pattern,
        strict=strict,
    )
    assert images is not None
    with Bars() as progress:
        trained = train(images, output, validation=unseen, options=options, progress=progress)
    print_problems([*images.problems, *trained.problems])
    console.print(
        f"Best validation Dice {trained.best_dice:.3f} after epoch {trained.best_epoch} of {len(trained.history)}. "
        f"History and curve lie in {output}; use the network with --segment network:{output}"
    )
