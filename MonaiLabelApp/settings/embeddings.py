"""The embeddings that the server was started with, and the encoder that was trained here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.errors import ConfigurationError
from replica_detection.util.files import atomic_write

if TYPE_CHECKING:
    from replica_detection.embedding import Embedders
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection_server.settings.configuration import Configuration

# What the launch says for the encoder that the trainer `encoder` made.
TRAINED = "trained"


def made(configuration: Configuration) -> Embedders:
    """The embedders of the launch, the default where it names none.

    Raises:
        ConfigurationError: an unknown name, or `trained` before an encoder was.
        InputError: a file that cannot be used.
    """
    from replica_detection.embedding.stored import make_embedders

    images = configuration.embedding
    return make_embedders(_trained(configuration) if images == TRAINED else images, configuration.slice_embedding)


def as_named(configuration: Configuration, index: TrainingIndex) -> bool:
    """Whether an index was made with the embedders that the launch names. Raises as `made`."""
    from replica_detection.embedding import Embedders
    from replica_detection.embedding.stored import same_embedders

    if configuration.embedding is None and configuration.slice_embedding is None:
        return True
    chosen = made(configuration)
    named = Embedders(
        None if configuration.embedding is None else chosen.images,
        None if configuration.slice_embedding is None else chosen.slices,
    )
    return same_embedders(index.embedder_settings, named)


def training_folder(configuration: Configuration) -> Path:
    """Where an encoder is trained."""
    return configuration.models / "encoder"


def trained_file(configuration: Configuration) -> Path:
    """The encoder of the last training that came to its end: what `trained` means while another one runs."""
    return configuration.models / "encoder.safetensors"


def publish(configuration: Configuration) -> None:
    """Makes the best encoder of a finished training the one that `trained` means."""
    from replica_detection.networks.weights import WEIGHTS

    best = (training_folder(configuration) / WEIGHTS).read_bytes()
    with atomic_write(trained_file(configuration), "wb") as f:
        f.write(best)


def _trained(configuration: Configuration) -> str:
    """The name by which the core makes the encoder that was trained here."""
    from replica_detection.networks.weights import description_of, read_bytes

    file = trained_file(configuration)
    if not file.is_file():
        raise ConfigurationError(
            "--embedding trained: no encoder was trained on this server yet. Start it without, run the training task "
            "`encoder` to its end, and start it again with --embedding trained"
        )
    return f"{description_of(file, file, read_bytes(file)).get('training')}:{file}"
