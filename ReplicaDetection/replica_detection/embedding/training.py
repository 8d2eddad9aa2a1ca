"""Training of an encoder on the user's training cohort: contrastive (Dar et al.) or by SSIM (Scardace et al.)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replica_detection.embedding.architectures import build_encoder
from replica_detection.embedding.network import tensors
from replica_detection.embedding.resampling import resampled
from replica_detection.embedding.torch_embedder import with_intensity
from replica_detection.embedding.training_options import EncoderOptions
from replica_detection.embedding.views import Views
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.cohort import Cohort, Problem
from replica_detection.networks.device import pick_device
from replica_detection.networks.training_run import (
    Names,
    State,
    files_of,
    read_state,
    train,
)
from replica_detection.preparation.loading import load_prepared, nothing_usable, sample_volumes
from replica_detection.preparation.prepare import plan
from replica_detection.preparation.profiles import profile_named
from replica_detection.progress import Progress, silent
from replica_detection.util.lock import Lock

if TYPE_CHECKING:
    import torch

INTENSITY = "minus-one-one"
# Of the published codes: numbers of the vector, and temperature of NT-Xent.
DIMENSIONS = {"contrastive": 32, "deepssim": 256}
TEMPERATURE = 0.07
DROPOUT, PUBLISHED_DROPOUT = 0.1, 0.5
NAMES = {
    "contrastive": Names("validation_loss", "validation NT-Xent", "NT-Xent", smaller_is_better=True),
    "deepssim": Names("validation_loss", "validation squared error", "squared error to SSIM", smaller_is_better=True),
}
VALIDATION_VIEWS = 4


@dataclass(frozen=True)
class EncoderReport:
    """Outcome of a training.

    Args:
        output: its folder.
        kind: as in `EncoderOptions`.
        history: (epoch, loss, validation loss); the last is NaN where the epoch was not validated.
        best_epoch: epoch of the weights that are kept.
        best_loss: their validation loss.
        training, validation: ids of the cases.
        problems: files that were left out.
        resumed_from: number of epochs that were done when this call began.
        stopped_early: `patience` ended the training.
    """

    output: Path
    kind: str
    history: tuple[tuple[int, float, float], ...]
    best_epoch: int
    best_loss: float
    training: tuple[str, ...]
    validation: tuple[str, ...]
    problems: tuple[Problem, ...]
    resumed_from: int
    stopped_early: bool

    @property
    def finished_before(self) -> bool:
        """True where nothing was left to do."""
        return self.resumed_from == len(self.history)


@dataclass(frozen=True)
class _Images:
    """Images at the encoder's size, (N, size) float16 in [0, 1], with the ids of their cases."""

    ids: tuple[str, ...]
    arrays: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def train_encoder(
    cohort: Any,
    output: str | os.PathLike[str],
    *,
    validation: Any = None,
    options: EncoderOptions | None = None,
    progress: Progress = silent,
) -> EncoderReport:
    """Train an encoder for the embeddings `contrastive:OUTPUT` or `deepssim:OUTPUT`.

    `contrastive` (Dar et al., Nat. Biomed. Eng. 2025): NT-Xent with temperature 0.07 between an image and one altered
    view of it; all other images of the batch are negatives. The paper alters by rotation and flips and names contrast,
    which its code leaves out. Here all three are altered, and flips run along every axis by default.
    `deepssim` (Scardace et al., arXiv 2509.16582): squared error between the cosine of two altered images and the SSIM
    of the unaltered pair, for all pairs of a batch.

    `output` then holds `best.safetensors` (of the epoch with the smallest validation loss, description in its header),
    `network.json`, `history.csv`, `history.png`, and `last.pt`, from which the same call continues after the last full
    epoch. On the CPU, with the same number of threads, a resumed run gives the same numbers as one that was never
    stopped, and the same seed gives the same weights. All images are in memory at the encoder's size.

    Args:
        cohort: the generator's training images, at least 4, as `Cohort.of` takes them; so is `validation`.
        output: a folder; it is created where it is missing.
        validation: other images of other patients; None: a fifth of the cohort's patients.
        options: None: the defaults of `EncoderOptions`.
        progress: `preparing` per image, `training` per step.

    Raises:
        InputError: too few images or patients, or `output` holds a damaged training or another process writes to it.
        ConfigurationError: no GPU where `cuda` is asked for, or `output` holds a training with other options or files.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        scans = rd.Cohort.from_arrays(np.random.default_rng(0).random((6, 16, 16, 16)), spacing=1)
        trained = rd.train_encoder(scans, "encoder", options=rd.EncoderOptions(epochs=1, max_size=16, device="cpu"))
        assert len(trained.history) == 1
        ```
    """
    import torch

    options = options or EncoderOptions()
    cohort = Cohort.of(cohort)
    validation = None if validation is None else Cohort.of(validation)
    output, target = Path(output), pick_device(options.device)
    run = json.dumps([options.fixed_options(), files_of(cohort), files_of(validation)])
    state = read_state(output, run) if options.resume else None
    before = len(state.history) if state else 0
    if state is not None and state.finished(options.schedule):
        return _report(state, output, options, (), before)
    training, unseen, problems = _images(cohort, validation, options, progress)
    if state is None:
        state = _begin(run, training, unseen, options)
    if list(training.ids) != state.training or list(unseen.ids) != state.validation:
        raise ConfigurationError(f"{output} holds a training on other cases; start again without resume")
    output.mkdir(parents=True, exist_ok=True)
    with Lock(output), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        _train(state, training, unseen, options, output, target, progress)
    return _report(state, output, options, problems, before)


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """NT-Xent loss of K pairs, (K, D) each: mean cross-entropy of each vector's partner among the 2K - 1 others.

    Similarity is the cosine divided by the temperature (Chen et al. 2020, equation 1; Dar et al., section "contrastive
    learning").
    """
    import torch

    vectors = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    similarity = vectors @ vectors.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf)
    partner = torch.arange(len(vectors), device=vectors.device).roll(len(first))
    return torch.nn.functional.cross_entropy(similarity, partner)


def similarity_error(first: torch.Tensor, second: torch.Tensor, ssim: torch.Tensor) -> torch.Tensor:
    """Mean squared difference between the cosines of all pairs of two altered sides, (K, D) each, and the `ssim` (K, K)
    of the unaltered images."""
    import torch

    a, b = (torch.nn.functional.normalize(side, dim=1) for side in (first, second))
    return ((a @ b.T - ssim) ** 2).mean()


def _images(
    cohort: Cohort, validation: Cohort | None, options: EncoderOptions, progress: Progress
) -> tuple[_Images, _Images, list[Problem]]:
    """Prepared images for training and for validation, and the files that were left out.

    Raises InputError where a part has fewer than 2 images.
    """
    from replica_detection.embedding.dar_encoder import dar_size

    preparation = plan(profile_named(options.profile), sample_volumes(cohort))
    size = dar_size(preparation.grid, options.max_size)
    problems: list[Problem] = []
    images_of: list[dict[str, np.ndarray]] = []
    cohorts = [c for c in (cohort, validation) if c is not None]
    total = sum(len(c.cases) for c in cohorts)
    for part in cohorts:
        images_of.append({})
        for case, prepared in load_prepared(part.cases, preparation, with_masks=False):
            if isinstance(prepared, Problem):
                problems.append(prepared)
            else:
                images_of[-1][case.id] = resampled(prepared.image, size).astype(np.float16)
            progress("preparing", sum(map(len, images_of)) + len(problems), total)
    if not images_of[0]:
        raise nothing_usable(cohort.source, (*cohort.problems, *problems))
    if validation is None:
        held_out = _held_out(cohort, list(images_of[0]), options.seed)
        images_of.append({id: images_of[0].pop(id) for id in held_out})
    for use, images in zip(("training", "validation"), images_of, strict=True):
        if len(images) < 2:
            raise InputError(cohort.source, f"leaves {len(images)} images for {use}", "Give at least 4 patients")
    sets = [_Images(tuple(images), np.stack(list(images.values()))) for images in images_of]
    return sets[0], sets[1], problems


def _held_out(cohort: Cohort, usable: Sequence[str], seed: int) -> list[str]:
    """Ids of the images of a fifth of the patients, at least two patients."""
    patients: dict[str, list[str]] = {}
    for case in cohort.cases:
        if case.id in usable:
            patients.setdefault(case.patient or f"case {case.id}", []).append(case.id)
    names = sorted(patients)
    order = np.random.default_rng([seed, 0]).permutation(len(names))
    chosen = {id for i in order[: max(2, round(len(names) / 5))] for id in patients[names[i]]}
    return [id for id in usable if id in chosen]


def _begin(run: str, training: _Images, unseen: _Images, options: EncoderOptions) -> State:
    size, dimensions = list(training.arrays.shape[1:]), DIMENSIONS[options.kind]
    if options.network == "dar":
        head = {
            "dropout": PUBLISHED_DROPOUT if options.as_published else DROPOUT,
            # The cosine of two images' SSIM is never negative, as that of centred vectors must be on average.
            "normalized": options.kind == "contrastive" and not options.as_published,
        }
        architecture = {"class": "DarEncoder", "arguments": {"size": size, "dimensions": dimensions, **head}}
    else:
        shape = {"spatial_dims": len(size), "n_input_channels": 1, "num_classes": dimensions}
        architecture = {"class": options.network, "arguments": shape}
    description = {
        "architecture": architecture,
        "size": size,
        "intensity": INTENSITY,
        "pooling": "gap",
        "training": options.kind,
    }
    return State(run, description, list(training.ids), list(unseen.ids), [], (0, math.nan, {}))


def _train(
    state: State,
    training: _Images,
    unseen: _Images,
    options: EncoderOptions,
    output: Path,
    device: torch.device,
    progress: Progress,
) -> None:
    import torch

    torch.manual_seed(options.seed)
    model = build_encoder(state.description["architecture"]).to(device)
    optimizer: torch.optim.Optimizer
    if options.kind == "deepssim":
        optimizer = torch.optim.AdamW(model.parameters(), options.initial_rate, weight_decay=1e-3)
    else:
        optimizer = torch.optim.Adam(model.parameters(), options.initial_rate)
    loss_of = _contrast if options.kind == "contrastive" else _similarity

    def losses(rng: np.random.Generator) -> Iterator[torch.Tensor]:
        for chosen in _batches(rng.permutation(len(training)), options.batch):
            yield loss_of(model, training.arrays[chosen].astype(np.float32), options.views, rng, device)

    def validate() -> tuple[float, dict[str, float]]:
        # The same views each time, so that only the encoder makes a difference.
        rng = np.random.default_rng([options.seed, 0, 1])
        values = []
        with torch.no_grad():
            for _ in range(VALIDATION_VIEWS):
                for chosen in _batches(np.arange(len(unseen)), options.batch):
                    images = unseen.arrays[chosen].astype(np.float32)
                    values.append(float(loss_of(model, images, options.views, rng, device)))
        return float(np.mean(values)), {}

    steps = len(_batches(np.arange(len(training)), options.batch))
    names = NAMES[options.kind]
    train(state, options.schedule, output, model, optimizer, losses, validate, names, steps=steps, progress=progress)


def _batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Batches of `size` indices; a last batch of one, which has nothing to compare with, joins the one before."""
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def _contrast(
    model: Callable[[torch.Tensor], Any], images: np.ndarray, views: Views, rng: np.random.Generator, device: Any
) -> torch.Tensor:
    """Contrastive loss of the images and one view of each; in the authors' code, too, the other side is not altered."""
    altered = np.stack([views.of(image, rng) for image in images])
    first, second = _vectors(model, np.concatenate([images, altered]), device).chunk(2)
    return nt_xent(first, second)


def _similarity(
    model: Callable[[torch.Tensor], Any], images: np.ndarray, views: Views, rng: np.random.Generator, device: Any
) -> torch.Tensor:
    import torch

    from replica_detection import kernels

    altered = np.stack([views.of(image, rng) for _ in range(2) for image in images])
    first, second = _vectors(model, altered, device).chunk(2)
    target = torch.from_numpy(kernels.ssim(images, images).astype(np.float32)).to(device)
    return similarity_error(first, second, target)


def _vectors(model: Callable[[torch.Tensor], Any], images: np.ndarray, device: Any) -> torch.Tensor:
    import torch

    data = torch.from_numpy(with_intensity(images, INTENSITY))[:, None].to(device)
    return tensors(model(data))[-1]


def _report(
    state: State, output: Path, options: EncoderOptions, problems: Sequence[Problem], before: int
) -> EncoderReport:
    return EncoderReport(
        output,
        options.kind,
        tuple(state.history),
        state.best[0],
        state.best[1],
        tuple(state.training),
        tuple(state.validation),
        tuple(problems),
        before,
        state.stopped_early(options.schedule) and len(state.history) < options.epochs,
    )
