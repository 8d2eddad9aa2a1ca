"""The embeddings that the server was started with, and the encoder that was trained here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from replica_detection.errors import ConfigurationError
from replica_detection.util.files import atomic_write

if TYPE_CHECKING:
    from replica_detection.embedding import Embedders
    from replica_detection.index.training_index import TrainingIndex

# Name of the encoder that the trainer `encoder` made, in the options of the launch.
TRAINED = "trained"


class EmbeddingOptions(Protocol):
    """The part of `Configuration` that is read here: names of the embeddings, folder of networks trained here."""

    @property
    def embedding(self) -> str | None: ...
    @property
    def slice_embedding(self) -> str | None: ...
    @property
    def models(self) -> Path: ...


def make(options: EmbeddingOptions) -> Embedders:
    """The embedders of the launch, the default where it names none.

    Raises:
        ConfigurationError: an unknown name, or `trained` before an encoder was.
        InputError: a file that cannot be used.
    """
    from replica_detection.embedding.stored import make_embedders

    images = options.embedding
    return make_embedders(_trained(options) if images == TRAINED else images, options.slice_embedding)


def fits(options: EmbeddingOptions, index: TrainingIndex) -> bool:
    """True if an index was made with the embedders that the launch names. Raises as `make`."""
    from replica_detection.embedding import Embedders
    from replica_detection.embedding.stored import same_embedders

    if options.embedding is None and options.slice_embedding is None:
        return True
    chosen = make(options)
    named = Embedders(
        None if options.embedding is None else chosen.images,
        None if options.slice_embedding is None else chosen.slices,
    )
    return same_embedders(index.embedder_settings, named)


def training_folder(options: EmbeddingOptions) -> Path:
    """The folder in which an encoder is trained."""
    return options.models / "encoder"


def trained_file(options: EmbeddingOptions) -> Path:
    """The encoder of the last finished training, which `trained` names even while another one runs."""
    return options.models / "encoder.safetensors"


def publish(options: EmbeddingOptions) -> None:
    """Makes the best encoder of a finished training the one that `trained` names."""
    from replica_detection.networks.weights import WEIGHTS

    best = (training_folder(options) / WEIGHTS).read_bytes()
    with atomic_write(trained_file(options), "wb") as f:
        f.write(best)


def _trained(options: EmbeddingOptions) -> str:
    """The name by which the core makes the encoder that was trained here."""
    from replica_detection.networks.weights import description_of, read_bytes

    file = trained_file(options)
    if not file.is_file():
        raise ConfigurationError(
            "--embedding trained: no encoder was trained on this server yet. Start it without, run the training task "
            "`encoder` to its end, and start it again with --embedding trained"
        )
    return f"{description_of(file, file, read_bytes(file)).get('training')}:{file}"
