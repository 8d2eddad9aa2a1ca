"""The `network` segmenter: exact against known functions on any grid, and clear about files that cannot be used."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.volume import Volume
from replica_detection.networks.weights import HEADER, build
from replica_detection.segmentation import Segmenter, make_segmenter
from replica_detection.segmentation.network import NetworkGrid

# PyTorch would rather have torch.export, but TorchScript is what bundles come as.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
UNET = {
    "class": "UNet",
    "arguments": {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
    },
}
TURNS = {
    "RAS": np.diag([1, 1, 1]),
    "LPI": np.diag([-1, -1, -1]),
    "PSL": np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]]),
    "IRA": np.array([[0, 1, 0], [0, 0, 1], [-1, 0, 0]]),
}


class Above(torch.nn.Module):
    """Above 100, as one logit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 100.0


class Levels(torch.nn.Module):
    """Background up to 50, then one channel up to 150, then the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([50 - x, torch.zeros_like(x), x - 150], dim=1)


class RightOfMiddle(torch.nn.Module):
    """The half with the larger first index, whatever the image shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = torch.arange(x.shape[2]).reshape(1, 1, -1, 1, 1)
        return (index - x.shape[2] / 2 + 0.25) * torch.ones_like(x)


class MeanAbove(torch.nn.Module):
    """Above 100 as the mean of 27 voxels, what lies outside being 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool3d(x, 3, stride=1, padding=1) - 100.0


class NotANumber(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0.0 * 0.0


class Halved(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, ::2, ::2, ::2]


def script(path: Path, module: torch.nn.Module) -> Path:
    torch.jit.save(torch.jit.script(module), str(path))
    return path


def weights(path: Path, architecture: dict | None, header: bool = True, **more: object) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    description = json.dumps({"architecture": architecture, "patch": [8, 8, 8], **more})
    save_file(build(UNET, 2).state_dict(), path, metadata={HEADER: description} if header else None)
    return path


def volume(shape=(20, 25, 9), turn="RAS", spacing=(1.0, 1.0, 1.0), tilt=0.0, seed=0) -> Volume:
    """Whole numbers other than 50, 100 and 150 at random."""
    array = np.random.default_rng(seed).integers(0, 20, shape).astype(np.float32) * 10 + 5
    tilted = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilted @ TURNS[turn] * np.array(spacing)
    affine[:3, 3] = 7, -30, 4
    return Volume(array, affine, True)


def world(v: Volume) -> np.ndarray:
    """(X, Y, Z, 3) RAS mm of each voxel."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in v.array.shape], indexing="ij"), -1)
    return index @ v.affine[:3, :3].T + v.affine[:3, 3]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("patch", [(8, 8, 8), (32, 16, 12)])
def test_threshold_is_exact_on_any_orientation(tmp_path: Path, turn: str, patch: tuple[int, ...]) -> None:
    v = volume(turn=turn, spacing=(0.7, 1.3, 2.0), tilt=0.2)
    found = make_segmenter(f"network:{script(tmp_path / 'a.ts', Above())}", patch=patch).segment(v)
    assert found.dtype == np.uint8
    assert np.array_equal(found, v.array > 100)


def test_a_volume_smaller_than_the_patch_goes_on_beyond_its_edges(tmp_path: Path) -> None:
    v = volume((6, 7, 5))
    bright = Volume(v.array + 150, v.affine, True)
    segmenter = make_segmenter(f"network:{script(tmp_path / 'a.ts', MeanAbove())}", patch=(16, 16, 16))
    assert segmenter.segment(bright).all()


@pytest.mark.parametrize("turn", TURNS)
def test_the_network_sees_axes_along_ras(tmp_path: Path, turn: str) -> None:
    v = volume((16, 16, 16), turn)
    found = make_segmenter(f"network:{script(tmp_path / 'a.pt', RightOfMiddle())}", patch=(16, 16, 16)).segment(v)
    right = world(v)[..., 0]
    assert np.array_equal(found, right > (right.min() + right.max()) / 2)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("spacing", [(2.0, 1.5, 3.1), (0.6, 0.9, 0.5), (2.0, 0.5, 1.0)])
def test_there_and_back_through_another_spacing_moves_nothing(tmp_path: Path, turn: str, spacing: tuple) -> None:
    """Linear interpolation keeps a linear image as it is, so its threshold must come back exactly."""
    v = volume((30, 26, 34), turn, (1.0, 1.2, 0.9), tilt=0.1)
    ramp = world(v) @ np.array([1.0, -0.7, 0.4])
    ramp += 100 - ramp.mean()
    v = Volume(ramp.astype(np.float32), v.affine, True)
    path = script(tmp_path / "a.ts", Above())
    found = make_segmenter(f"network:{path}", spacing_mm=spacing, patch=(16, 16, 16)).segment(v)
    inside = (slice(7, -7),) * 3
    sure = np.abs(ramp[inside] - 100) > 0.02
    assert sure.mean() > 0.9
    assert np.array_equal(found[inside][sure], (ramp[inside] > 100)[sure])


def test_size_on_the_network_grid_follows_the_spacing() -> None:
    grid = NetworkGrid.of(volume((20, 30, 10), "PSL", (1.0, 2.0, 3.0)), (2.0, 1.5, 2.01))
    # Stored axes run P, S, L with 1, 2, 3 mm: 10 x 3 mm along R, 20 x 1 mm along A, 30 x 2 mm along S.
    assert grid.shape == (10, 20, 30)
    assert grid.size == (15, 13, 30)


@pytest.mark.parametrize("spacing", [0.7, 1.2, 2.0, 3.0])
def test_both_grids_show_the_same_field_of_view(spacing: float) -> None:
    """A voxel j of the new grid lies at (j + 1/2) n / m - 1/2 of the old one, for a linear image and for labels."""
    n = 36
    index = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None], (n, 4, 4))
    grid = NetworkGrid.of(Volume(np.ascontiguousarray(index), np.eye(4), True), (spacing, 1, 1))
    m = round(n / spacing)
    expected = (np.arange(m) + 0.5) * n / m - 0.5
    found = grid.image(index, None)
    assert found.shape == (m, 4, 4)
    assert found[5:-5, 2, 2] == pytest.approx(expected[5:-5], abs=1e-3)
    nearest = grid.labels(index.astype(np.uint8))[:, 2, 2]
    assert np.all(np.abs(nearest - expected) <= 0.5 + 1e-3)


def test_channels_become_the_label_values_in_their_order(tmp_path: Path) -> None:
    v = volume(turn="LPI")
    segmenter = make_segmenter(f"network:{script(tmp_path / 'a.ts', Levels())}", labels={7: "high", 2: "low"})
    expected = np.select([v.array > 150, v.array > 50], [7, 2], 0)
    assert segmenter.labels == {2: "low", 7: "high"}
    assert np.array_equal(segmenter.segment(v), expected)


def test_intensities_are_mapped_and_clipped(tmp_path: Path) -> None:
    v = volume()
    path = script(tmp_path / "a.ts", Above())
    windowed = make_segmenter(f"network:{path}", window=(-100, 300), threshold=0.5 - 100)
    assert np.array_equal(windowed.segment(v), v.array > 100)
    by_percentiles = make_segmenter(f"network:{path}", percentiles=(10, 90), threshold=0.5 - 100)
    middle = np.percentile(v.array, [10, 90]).mean()
    assert np.array_equal(by_percentiles.segment(v), v.array > middle)


def test_settings_make_it_again_and_hold_the_checksum_but_not_the_device(tmp_path: Path) -> None:
    path = weights(tmp_path / "a.safetensors", UNET, labels={"3": "blob"}, spacing_mm=[2, 2, 2], percentiles=[1, 99])
    made = make_segmenter(f"network:{path}", device="cpu")
    settings = json.loads(json.dumps(made.settings()))
    assert settings["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert settings["spacing_mm"] == [2, 2, 2]
    assert "device" not in settings
    again = make_segmenter(**{k: v for k, v in settings.items() if k != "version"})
    assert json.loads(json.dumps(again.settings())) == settings
    assert np.array_equal(made.segment(volume()), again.segment(volume()))


def test_safetensors_give_what_the_network_itself_gives(tmp_path: Path) -> None:
    v = volume((16, 16, 8))
    made = make_segmenter(f"network:{weights(tmp_path / 'a.safetensors', UNET)}", patch=(16, 16, 8))
    torch.manual_seed(0)
    with torch.no_grad():
        expected = build(UNET, 2).eval()(torch.from_numpy(v.array)[None, None])[0].argmax(0).numpy()
    assert 0 < expected.mean() < 1
    assert (made.segment(v) == expected).mean() > 0.999


def test_a_description_may_lie_beside_the_weights(tmp_path: Path) -> None:
    path = weights(tmp_path / "a.safetensors", None, header=False)
    with pytest.raises(InputError, match=r"network.json"):
        make_segmenter(f"network:{path}")
    (tmp_path / "network.json").write_text(json.dumps({"architecture": UNET, "labels": {"4": "x"}}), encoding="utf-8")
    assert make_segmenter(f"network:{path}").labels == {4: "x"}


@pytest.mark.parametrize("name", ["ViT", "system", "__import__", None])
def test_only_known_classes_are_made(tmp_path: Path, name: str) -> None:
    path = weights(tmp_path / "a.safetensors", {**UNET, "class": name})
    with pytest.raises(InputError, match="known: UNet, SegResNet"):
        make_segmenter(f"network:{path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 4}, "in_channels is 4, expected 1"),
        ({"out_channels": 3}, "out_channels is 3, expected 2"),
        ({"spatial_dims": 2}, "spatial_dims is 2, expected 3"),
        ({"channels": [4, 16]}, "of shape"),
        ({"channels": [10**5, 10**5]}, "of shape"),
        ({"wings": 2}, "takes no such arguments"),
    ],
)
def test_weights_that_do_not_fit_their_description(tmp_path: Path, change: dict, message: str) -> None:
    path = weights(tmp_path / "a.safetensors", {**UNET, "arguments": {**UNET["arguments"], **change}})
    with pytest.raises(InputError, match=message) as caught:
        make_segmenter(f"network:{path}")
    assert str(path) in str(caught.value)


def test_another_checksum_is_refused(tmp_path: Path) -> None:
    path = script(tmp_path / "a.ts", Above())
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert make_segmenter(f"network:{path}", sha256=right.upper()).settings()["sha256"] == right
    with pytest.raises(InputError, match=f"{right}, expected {'0' * 64}"):
        make_segmenter(f"network:{path}", sha256="0" * 64)


class Payload:
    def __init__(self, folder: str):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("write", [lambda p, f: f.write_bytes(pickle.dumps(p)), lambda p, f: torch.save(p, f)])
def test_a_pickle_is_refused_and_not_opened(tmp_path: Path, write) -> None:
    write(Payload(str(tmp_path / "made")), tmp_path / "a.pt")
    with pytest.raises(InputError, match="pickle"):
        make_segmenter(f"network:{tmp_path / 'a.pt'}")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["ts", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    make = (lambda p: script(p, Above())) if kind == "ts" else (lambda p: weights(p, UNET))
    whole = make(tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"cut\."):
        make_segmenter(f"network:{path}")


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.ts").touch()
    (tmp_path / "text.ts").write_text("hello, I am no network", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for name in ("absent.ts", "empty.ts", "text.ts", "folder"):
        with pytest.raises(InputError, match=name):
            make_segmenter(f"network:{tmp_path / name}")
    with pytest.raises(ConfigurationError, match="path"):
        make_segmenter("network")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (NotANumber(), "NaN"),
        (Levels(), "gives 3 channels, expected 2"),
        (Halved(), "same size"),
        (torch.nn.Conv3d(3, 2, 1), "does not take an image of shape"),
    ],
)
def test_networks_that_cannot_be_used(tmp_path: Path, module: torch.nn.Module, message: str) -> None:
    segmenter = make_segmenter(f"network:{script(tmp_path / 'a.ts', module)}", patch=(8, 8, 8))
    with pytest.raises(ConfigurationError, match=message) as caught:
        segmenter.segment(volume())
    assert str(tmp_path / "a.ts") in str(caught.value)


def test_weights_of_nan_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = build(UNET, 2)
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    save_file(model.state_dict(), tmp_path / "a.safetensors", {HEADER: json.dumps({"architecture": UNET})})
    with pytest.raises(InputError, match="NaN"):
        make_segmenter(f"network:{tmp_path / 'a.safetensors'}")


@pytest.mark.parametrize(
    "options",
    [
        {"labels": {0: "background"}},
        {"labels": {300: "x"}},
        {"labels": {}},
        {"window": (5, 5)},
        {"window": (0, 1), "percentiles": (0, 100)},
        {"percentiles": (0, 101)},
        {"patch": (8, 8)},
        {"patch": (8, 8, 0)},
        {"overlap": 1.0},
        {"spacing_mm": (1, 1, float("nan"))},
        {"spacing_mm": "1,1,1"},
        {"device": "tpu"},
        {"wings": 2},
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict) -> None:
    path = script(tmp_path / "a.ts", Above())
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        make_segmenter(f"network:{path}", **options)


def test_a_single_slice_is_refused(tmp_path: Path) -> None:
    flat = volume((20, 20, 1))
    with pytest.raises(ConfigurationError, match="3D"):
        make_segmenter(f"network:{script(tmp_path / 'a.ts', Above())}").segment(flat)


def bundle(folder: Path, module: torch.nn.Module | None, **image: object) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    inputs = {"type": "image", "num_channels": 1, "spatial_shape": [16, 16, 16], **image}
    outputs = {"type": "image", "num_channels": 3, "channel_def": {"0": "background", "1": "low", "2": "high"}}
    metadata = {"network_data_format": {"inputs": {"image": inputs}, "outputs": {"pred": outputs}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    code = f"$__import__('os').mkdir({str(folder / 'made')!r})"
    (folder / "configs" / "inference.json").write_text(
        json.dumps({"network_def": code, "imports": [code]}), encoding="utf-8"
    )
    if module is not None:
        script(folder / "models" / "model.ts", module)
    return folder


def test_a_bundle_gives_its_labels_and_none_of_its_code_runs(tmp_path: Path) -> None:
    v = volume()
    segmenter = make_segmenter(f"network:{bundle(tmp_path / 'b', Levels(), value_range=[-1000, 1000])}")
    assert segmenter.labels == {1: "low", 2: "high"}
    assert segmenter.settings()["patch"] == (16, 16, 16)
    assert np.array_equal(segmenter.segment(v), np.select([v.array > 150, v.array > 50], [2, 1], 0))
    assert not (tmp_path / "b" / "made").exists()


def test_bundles_that_need_more(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        make_segmenter(f"network:{bundle(tmp_path / 'scaled', Levels(), value_range=[0, 1])}")
    assert isinstance(make_segmenter(f"network:{tmp_path / 'scaled'}", window=(0, 200)), Segmenter)
    (tmp_path / "scaled" / "network.json").write_text(json.dumps({"window": [0, 200]}), encoding="utf-8")
    assert make_segmenter(f"network:{tmp_path / 'scaled'}").settings()["window"] == (0.0, 200.0)
    with pytest.raises(InputError, match="4 channels"):
        make_segmenter(f"network:{bundle(tmp_path / 'four', Levels(), num_channels=4)}")
    only_pickle = bundle(tmp_path / "pickled", None)
    (only_pickle / "models" / "model.pt").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match="ckpt_export"):
        make_segmenter(f"network:{only_pickle}")
