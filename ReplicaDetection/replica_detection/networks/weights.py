"""Files of trained networks: their kind, the description of their network, and the network loaded from them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_detection.errors import ConfigurationError, InputError, ReplicaDetectionError
from replica_detection.io.paths import require_exists, require_file, require_readable

if TYPE_CHECKING:
    import torch

# No other class is built from a description in a file.
ARCHITECTURES = ("UNet", "SegResNet", "DynUNet", "BasicUNet")
WEIGHTS, SIDECAR, HEADER = "best.safetensors", "network.json", "network"
DESCRIBED = ("architecture", "labels", "spacing_mm", "window", "percentiles", "patch", "overlap", "threshold")
_EXPORT = "Export it as TorchScript, or save its weights as safetensors with the network's class in network.json"


def build(architecture: dict[str, Any], channels: int) -> torch.nn.Module:
    """A 3D network of one of `ARCHITECTURES` with 1 input channel, `channels` output channels and random weights.

    Raises:
        ConfigurationError: another class, or arguments that it does not take.
    """
    from monai.networks import nets

    name, arguments = architecture.get("class"), architecture.get("arguments")
    if name not in ARCHITECTURES or not isinstance(arguments, dict):
        raise ConfigurationError(f"the network's class is {name!r}, known: {', '.join(ARCHITECTURES)}")
    required = {"spatial_dims": 3, "in_channels": 1, "out_channels": channels}
    for key, value in required.items():
        if arguments.get(key) != value:
            raise ConfigurationError(f"the network's {key} is {arguments.get(key)!r}, expected {value}")
    try:
        return getattr(nets, name)(**arguments)
    except Exception as error:  # whatever MONAI raises for an argument that it cannot use
        raise ConfigurationError(f"the network {name} takes no such arguments ({last_line(error)})") from error


def description_of(path: Path, file: Path, data: bytes) -> dict[str, Any]:
    """Description of a network without loading it: its header, else JSON beside it and a bundle's metadata."""
    if kind_of(file, data) == "safetensors" and (header := _header(file, data)) is not None:
        return header
    described = _metadata(path / "configs" / "metadata.json") if path.is_dir() else {}
    folder = path if path.is_dir() else file.parent
    for sidecar in (file.with_suffix(".json"), folder / SIDECAR):
        if sidecar.is_file():
            return {**described, **_json(sidecar, read_bytes(sidecar))}
    return described


def weights_file(path: Path) -> Path:
    """The file with the weights: `path`, or the one in a folder. Raises InputError where there is none."""
    require_exists(path)
    if not path.is_dir():
        require_file(path)
        return path
    for name in (WEIGHTS, "models/model.ts"):
        if (path / name).is_file():
            return path / name
    if (path / "models").is_dir():
        advice = "Export it with `python -m monai.bundle ckpt_export`, which makes models/model.ts"
        raise InputError(path, "is a MONAI bundle without models/model.ts", advice)
    advice = "Give a TorchScript or .safetensors file, a MONAI bundle, or the folder of a training that has validated"
    raise InputError(path, f"is a folder with neither {WEIGHTS} nor models/model.ts", advice)


def read_bytes(file: Path) -> bytes:
    """Content of a regular file. Raises InputError where it cannot be read."""
    require_readable(file)
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            file, f"cannot be read ({error.strerror or error})", "Give yourself the right to read it"
        ) from error


def kind_of(file: Path, data: bytes) -> str:
    """`torchscript` or `safetensors`, by content. Raises InputError for any other file."""
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 100_000_000:
        return "safetensors"
    if data[:2] == b"PK":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise InputError(file, "is cut off or damaged", "Copy or export it again") from error
        if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
            return "torchscript"
        if any(name.endswith("data.pkl") for name in names):
            raise InputError(file, "is a pickled checkpoint, which could run any code when it is opened", _EXPORT)
    if data[:1] == b"\x80":
        raise InputError(file, "is a pickle, which could run any code when it is opened", _EXPORT)
    raise InputError(file, "is neither TorchScript nor safetensors", "Give a TorchScript or .safetensors file")


def _header(file: Path, data: bytes) -> dict[str, Any] | None:
    """The description in a safetensors file's metadata, None without one."""
    header = _json(file, data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__")
    text = metadata.get(HEADER) if isinstance(metadata, dict) else None
    return None if text is None else _json(file, str(text).encode())


def _metadata(file: Path) -> dict[str, Any]:
    """Labels, patch and spacing of a MONAI bundle, as far as its metadata state them."""
    if not file.is_file():
        return {}
    formats = _json(file, read_bytes(file)).get("network_data_format")
    try:
        inputs = next(iter(formats["inputs"].values()))  # type: ignore[index]
        outputs = next(iter(formats["outputs"].values()))  # type: ignore[index]
        channels, names = inputs.get("num_channels", 1), outputs.get("channel_def") or {}
        patch, spacing = inputs.get("spatial_shape"), inputs.get("spacing")
    except (TypeError, KeyError, AttributeError, StopIteration):
        return {}
    if channels != 1:
        raise InputError(file, f"says that the network takes {channels} channels", "Give one that takes 1 channel")
    described: dict[str, Any] = {"labels": {k: v for k, v in names.items() if str(k) != "0"} or None}
    if isinstance(patch, list) and len(patch) == 3 and all(isinstance(n, int) for n in patch):
        described["patch"] = patch
    return {**described, "spacing_mm": spacing, "value_range": inputs.get("value_range")}


def _json(file: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(
            file, f"holds a description that is no JSON ({error})", "Correct or export it again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(file, "holds a description that is no JSON object", "Correct or export it again")
    return value


def require_intensity(described: dict[str, Any], values: dict[str, Any], file: Path) -> None:
    """Raises ConfigurationError where metadata ask for values from 0 to 1, without a window or percentiles."""
    if described.get("value_range") == [0, 1] and values["window"] is None and values["percentiles"] is None:
        raise ConfigurationError(
            f"{file}: its metadata say that it takes values from 0 to 1, but not how they are made: give 'window' or "
            f"'percentiles', as an option or in a {SIDECAR} in the bundle's folder"
        )


def checked(values: dict[str, Any], kind: str, file: Path) -> dict[str, Any]:
    """The options of a segmentation network in their own types, defaults filled in.

    Raises:
        InputError: safetensors without a class of network.
        ConfigurationError: an option out of range.
    """
    if kind == "safetensors" and not isinstance(values["architecture"], dict):
        advice = f"Name class and arguments in {SIDECAR} beside it, class one of {', '.join(ARCHITECTURES)}"
        raise InputError(file, "holds weights, but not of which network", advice)
    labels = _checked_labels(values["labels"], file)
    if values["window"] is not None and values["percentiles"] is not None:
        raise ConfigurationError(f"{file}: give a window or percentiles, not both")
    overlap = 0.25 if values["overlap"] is None else values["overlap"]
    threshold = 0.0 if values["threshold"] is None else values["threshold"]
    if not _numbers([overlap, threshold], 2) or not 0 <= overlap < 1:
        raise ConfigurationError(
            f"{file}: overlap must be from 0 to below 1, threshold a number, found {overlap!r}, {threshold!r}"
        )
    for name, count in (("spacing_mm", 3), ("window", 2), ("percentiles", 2), ("patch", 3)):
        value = values[name]
        fine = value is None or _numbers(value, count)
        if fine and value is not None:
            fine = value[0] < value[1] if count == 2 else min(value) > 0
            fine = fine and not (name == "patch" and any(n != int(n) for n in value))
            fine = fine and not (name == "percentiles" and not 0 <= value[0] < value[1] <= 100)
        if not fine:
            raise ConfigurationError(f"{file}: {name} cannot be {value!r}; it is {count} numbers that make sense")
    tuples = {
        n: None if values[n] is None else tuple(map(float, values[n])) for n in ("spacing_mm", "window", "percentiles")
    }
    patch = tuple(map(int, values["patch"] or (96, 96, 96)))
    architecture = values["architecture"] if kind == "safetensors" else None
    return {
        "architecture": architecture,
        "labels": labels,
        **tuples,
        "patch": patch,
        "overlap": float(overlap),
        "threshold": float(threshold),
    }


def _checked_labels(stated: Any, file: Path) -> dict[int, str]:
    """Names by value, sorted; for None one label, `foreground`.

    Raises ConfigurationError for values outside 1 to 255.
    """
    try:
        labels = {1: "foreground"} if stated is None else {int(value): str(name) for value, name in stated.items()}
    except (AttributeError, TypeError, ValueError):
        labels = {}
    if not labels or min(labels) < 1 or max(labels) > 255:
        raise ConfigurationError(f"{file}: labels must name values from 1 to 255, found {stated!r}")
    return dict(sorted(labels.items()))


def _numbers(value: Any, count: int) -> bool:
    """True for a list or tuple of `count` finite numbers."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == count
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )


@lru_cache(maxsize=4)
def load_network(file: str, sha256: str, architecture: str, channels: int, device: str) -> torch.nn.Module:
    """The network in evaluation mode, cached between volumes. Raises InputError where the file has another checksum."""
    data = read_bytes(Path(file))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(file, "changed while it was being used", "Start again")
    if architecture:
        model = with_weights(Path(file), data, json.loads(architecture), partial(build, channels=channels))
    else:
        model = torchscript(Path(file), data)
    return model.to(device).eval()


def torchscript(file: Path, data: bytes) -> torch.nn.Module:
    """The program in a TorchScript file, on the CPU. Raises InputError where it cannot be loaded."""
    import torch

    try:
        return torch.jit.load(io.BytesIO(data), map_location="cpu")
    except (RuntimeError, ValueError, EOFError) as error:
        reason = f"is TorchScript that cannot be loaded ({last_line(error)})"
        raise InputError(file, reason, "Copy or export it again") from error


def with_weights(
    file: Path, data: bytes, architecture: dict[str, Any], make: Callable[[dict[str, Any]], torch.nn.Module]
) -> torch.nn.Module:
    """The network that `make` builds from a description, with the weights of a safetensors file.

    Raises:
        InputError: a damaged file, a description that cannot be built, or weights of other names or shapes, or that are
            NaN or infinite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(file, f"is cut off or damaged ({last_line(error)})", "Copy or export it again") from error
    try:
        # Shapes are compared before memory is allocated, since a description may ask for any size.
        with torch.device("meta"):
            model = make(architecture)
    except ReplicaDetectionError as error:
        raise InputError(file, str(error), "Correct the description of the network") from error
    twins: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        twins.setdefault(id(value), []).append(name)
    for names in twins.values():  # files hold only one name of a tensor that has several
        if held := [name for name in names if name in weights]:
            weights |= {name: weights[held[0]] for name in names if name not in weights}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stored = {name: tuple(value.shape) for name, value in weights.items()}
    for name in dict.fromkeys([*expected, *stored]):
        if expected.get(name) != stored.get(name):
            shapes = f"{stored.get(name)}, {architecture['class']} as described has {expected.get(name)}"
            text = f"holds {name} of shape {shapes}"
            raise InputError(file, text, "Give the weights of this network, or correct its description")
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise InputError(file, "holds weights that are NaN or infinite", "Give the weights of an earlier epoch")
    model.load_state_dict(weights, assign=True)
    return model


def last_line(error: BaseException) -> str:
    """The last line of an error's message, at most 200 characters; its class where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
