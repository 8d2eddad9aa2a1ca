"""Embedders by a network's file, against the same networks run by hand; and files that cannot be used."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from Core.made_up import volume
from replica_detection.embedding import Embedder, dino, make_embedder, medicalnet, restore_embedder
from replica_detection.embedding.architectures import build_encoder
from replica_detection.embedding.dar_encoder import dar_size
from replica_detection.embedding.torch_embedder import with_intensity
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.networks.weights import HEADER

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
SPACING = (1.0, 1.0, 1.0)
RESNET = {"class": "resnet10", "arguments": {"spatial_dims": 3, "n_input_channels": 1, "feed_forward": False}}


def images(count: int = 2) -> np.ndarray:
    return np.stack([volume(n) for n in range(count)]) / np.float32(1000)


# ------------------------------------------------------------------------------------------------------- MedicalNet


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of `resnet_50_23dataset.pth`: a state dict, names from inside a DataParallel, and no
    counts of batches, which PyTorch did not store then."""
    torch.manual_seed(0)
    weights = medicalnet.encoder().state_dict()
    layout = {f"module.{name}": value for name, value in weights.items() if "num_batches" not in name}
    path = tmp_path_factory.mktemp("medicalnet") / "resnet_50_23dataset.pth"
    torch.save({"state_dict": layout}, path)
    return path


def test_medicalnet_gives_the_last_stage_as_grid_and_as_mean(published: Path) -> None:
    x = images(1)
    grid, gap = (make_embedder(f"medicalnet_{pooling}:{published}") for pooling in ("grid", "gap"))
    found = grid.embed(x, SPACING)
    assert found.shape == (1, 2048 * 4 * 4 * 4), "as RELICT names it"
    mean = gap.embed(x, SPACING)
    assert mean.shape == (1, 2048)
    np.testing.assert_allclose(found.reshape(2048, 64).mean(1), mean[0], rtol=1e-4, atol=1e-6)
    # MONAI's own forward, which pools.
    network = medicalnet.encoder()
    weights = torch.load(published, weights_only=True)["state_dict"]
    network.load_state_dict({n.removeprefix("module."): v for n, v in weights.items()}, strict=False)
    cube = torch.nn.functional.interpolate(torch.from_numpy(x[:, None]), (128, 128, 128), mode="trilinear")
    inside = cube > 0
    scored = torch.where(inside, (cube - cube[inside].mean()) / cube[inside].std(correction=0), 0)
    with torch.no_grad():
        expected = network.eval()(scored)[0].numpy()
    np.testing.assert_allclose(mean[0], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert [layer.shape[1] for layer in gap.layers(x, SPACING)] == [256, 512, 1024, 2048]


def test_medicalnet_gives_the_same_bits_twice(published: Path) -> None:
    """Its own code puts random noise where the image is 0."""
    x = images(1)
    x[x < 0.5] = 0
    first, second = (make_embedder(f"medicalnet_gap:{published}").embed(x, SPACING) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_medicalnet_takes_safetensors_and_tells_files_apart(published: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = torch.load(published, weights_only=True)["state_dict"]
    save_file(weights, tmp_path / "a.safetensors")
    a, b = (make_embedder(f"medicalnet_gap:{f}") for f in (published, tmp_path / "a.safetensors"))
    assert a.sha256 != b.sha256
    assert np.array_equal(a.embed(images(1), SPACING), b.embed(images(1), SPACING))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("module.layer4.2.conv3.weight"), r"layer4\.2\.conv3\.weight of shape None"),
        (lambda w: w.update({"module.conv1.weight": torch.zeros(64, 3, 7, 7, 7)}), r"conv1\.weight of shape \(64, 3"),
        (lambda w: w.update({"module.layer5.weight": torch.zeros(1)}), r"layer5\.weight, which"),
        (lambda w: w["module.bn1.bias"].fill_(np.nan), "NaN"),
    ],
)
def test_other_weights_than_medicalnets_are_refused(published: Path, tmp_path: Path, change, message: str) -> None:
    weights = torch.load(published, weights_only=True)["state_dict"]
    change(weights)
    torch.save({"state_dict": weights}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=message):
        make_embedder(f"medicalnet_grid:{tmp_path / 'other.pth'}")


class Bad:
    def __reduce__(self):
        return print, ("run",)


def test_pickles_that_hold_more_than_tensors_are_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"state_dict": Bad()}, tmp_path / "bad.pth")
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Bad()))
    for name in ("bad.pth", "bad.pkl"):
        with pytest.raises(InputError, match="no checkpoint of plain tensors"):
            make_embedder(f"medicalnet_gap:{tmp_path / name}")
    assert "run" not in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{" + b" " * 8)
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        make_embedder(f"medicalnet_gap:{tmp_path / 'cut.safetensors'}")


def test_weights_may_move_into_the_index_but_not_change(published: Path, tmp_path: Path) -> None:
    made = make_embedder(f"medicalnet_gap:{published}")
    elsewhere = {**made.settings(), "path": str(tmp_path / "gone" / published.name)}
    with pytest.raises(InputError, match="is gone"):
        restore_embedder(elsewhere, None, tmp_path)
    (tmp_path / published.name).write_bytes(published.read_bytes())
    assert restore_embedder(elsewhere, None, tmp_path).sha256 == made.sha256
    torch.save({}, tmp_path / published.name)
    with pytest.raises(InputError, match="other weights"):
        restore_embedder(elsewhere, None, tmp_path)


# ---------------------------------------------------------------------------------------------------- any network


def safetensors(path: Path, architecture: dict | None, **described: object) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = build_encoder(architecture or RESNET)
    description = {"architecture": architecture, **described}
    save_file(network.state_dict(), path, metadata={HEADER: json.dumps(description)})
    return path


def test_a_monai_network_with_safetensors_gives_what_it_gives_itself(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", RESNET, size=[24, 28, 20], intensity="minus-one-one")
    x = images()
    torch.manual_seed(0)
    network = build_encoder(RESNET).eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(2 * x - 1)[:, None]).numpy()
    np.testing.assert_allclose(make_embedder(f"network:{path}").embed(x, SPACING), expected, rtol=1e-4, atol=1e-5)


class Maps(torch.nn.Module):
    """Two feature maps, and tokens last."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first = torch.cat([x, 2 * x], 1)
        return first, torch.nn.functional.avg_pool3d(x, 2), first.flatten(2).transpose(1, 2)


def torchscript(path: Path, module: torch.nn.Module, **described: object) -> Path:
    torch.jit.save(torch.jit.script(module), str(path))
    path.with_suffix(".json").write_text(json.dumps(described), encoding="utf-8")
    return path


def test_several_outputs_are_layers_and_the_last_is_the_vector(tmp_path: Path) -> None:
    made = make_embedder(f"network:{torchscript(tmp_path / 'a.ts', Maps(), size=[24, 28, 20])}")
    x = images(1)
    mean = x.mean()
    np.testing.assert_allclose(made.embed(x, SPACING), [[mean, 2 * mean]], rtol=1e-4)
    layers = made.layers(x, SPACING)
    assert [layer.shape for layer in layers] == [(1, 2), (1, 1), (1, 2)]
    np.testing.assert_allclose(layers[1], [[mean]], rtol=1e-4)
    flat = make_embedder(f"network:{torchscript(tmp_path / 'b.ts', Maps(), size=[24, 28, 20], pooling='flatten')}")
    assert flat.embed(x, SPACING).shape == (1, 2 * 24 * 28 * 20)


class NotANumber(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0.0 * 0.0


class TwoDimensional(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 2)


@pytest.mark.parametrize(
    ("module", "described", "message"),
    [
        (NotANumber(), {"size": [8, 8, 8]}, "NaN"),
        (TwoDimensional(), {"size": [8, 8, 8]}, "does not take an image of shape"),
        (TwoDimensional(), {"size": [8, 8]}, "takes 2D images, found 3D"),
        (Maps(), {"size": [8]}, "size"),
        (Maps(), {}, "size None"),
        (Maps(), {"size": [8, 8, 8], "intensity": "loud"}, "intensity 'loud'"),
        (Maps(), {"size": [8, 8, 8], "pooling": "puddle"}, "pooling 'puddle'"),
    ],
)
def test_networks_and_descriptions_that_cannot_be(tmp_path: Path, module, described: dict, message: str) -> None:
    path = torchscript(tmp_path / "a.ts", module, **described)
    with pytest.raises((InputError, ConfigurationError), match=message):
        make_embedder(f"network:{path}").embed(images(1), SPACING)


@pytest.mark.parametrize(
    "architecture",
    [
        None,
        {"class": "os.system", "arguments": {}},
        {"class": "resnet10", "arguments": {"spatial_dims": 7}},
        {"class": "resnet10", "arguments": {**RESNET["arguments"], "pretrained": True}},
        {"class": "resnet18", "arguments": RESNET["arguments"]},
    ],
)
def test_weights_need_the_description_of_their_encoder(tmp_path: Path, architecture: dict | None) -> None:
    path = tmp_path / "a.safetensors"
    safetensors(path, RESNET, size=[8, 8, 8])
    data = path.read_bytes()
    from safetensors.torch import load, save_file

    header = {HEADER: json.dumps({"architecture": architecture, "size": [8, 8, 8]})}
    save_file(load(data), path, metadata=header)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        make_embedder(f"network:{path}")


@pytest.mark.parametrize("intensity", ["zero-one", "minus-one-one", "z-score"])
def test_intensities(intensity: str) -> None:
    x = np.array([[0.0, 0.2], [0.4, 0.9]], np.float32)
    known = {"zero-one": x, "minus-one-one": 2 * x - 1}
    found = with_intensity(x, intensity)
    if intensity in known:
        np.testing.assert_array_equal(found, known[intensity])
    else:
        assert found[0, 0] == 0
        assert found[x > 0].mean() == pytest.approx(0, abs=1e-6)
        assert found[x > 0].std() == pytest.approx(1, abs=1e-6)
        assert not with_intensity(np.zeros((3, 3), np.float32), "z-score").any()


@pytest.mark.parametrize(
    ("grid", "size"), [((35, 50, 35), (32, 64, 32)), ((256, 256, 32), (64, 64, 32)), ((9, 3), (8, 8))]
)
def test_the_small_encoder_ends_on_a_grid_of_four(grid: tuple, size: tuple) -> None:
    assert dar_size(grid, 64) == size
    encoder = build_encoder({"class": "DarEncoder", "arguments": {"size": list(size), "dimensions": 32}})
    *features, vector = encoder.eval()(torch.zeros(2, 1, *size))
    assert vector.shape == (2, 32)
    assert features[-1].shape[2:] == (4,) * len(size)
    channels = [f.shape[1] for f in features]
    assert channels == [32 * 2**n for n in range(len(features))]


# ----------------------------------------------------------------------------------------------------------- DINO


def dino_weights(path: Path, patch: int = 16, side: int = 14, registers: int = 0, scaled: bool = False) -> Path:
    """Random weights of a transformer of width 128 and 6 blocks in the published layout."""
    torch.manual_seed(1)
    width, depth = 128, 6
    w = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, side * side + 1, width),
        "patch_embed.proj.weight": torch.randn(width, 3, patch, patch) * 0.05,
        "patch_embed.proj.bias": torch.randn(width),
        "norm.weight": torch.rand(width) + 0.5,
        "norm.bias": torch.randn(width),
    }
    if registers:
        w["register_tokens"] = torch.randn(1, registers, width)
        w["mask_token"] = torch.zeros(1, width)
    for n in range(depth):
        for norm in ("norm1", "norm2"):
            w[f"blocks.{n}.{norm}.weight"], w[f"blocks.{n}.{norm}.bias"] = torch.rand(width) + 0.5, torch.randn(width)
        shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        shapes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, shape in shapes.items():
            w[f"blocks.{n}.{name}.weight"], w[f"blocks.{n}.{name}.bias"] = (
                torch.randn(shape) * 0.1,
                torch.randn(shape[0]),
            )
        if scaled:
            w[f"blocks.{n}.ls1.gamma"], w[f"blocks.{n}.ls2.gamma"] = torch.rand(width), torch.rand(width)
    torch.save(w, path)
    return path


def by_pytorch(w: dict[str, torch.Tensor], x: torch.Tensor, registers: int = 0, scaled: bool = False) -> torch.Tensor:
    """The class token by PyTorch's own attention, with the position tokens as they are."""
    width = w["cls_token"].shape[2]
    functional = torch.nn.functional
    tokens = functional.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    tokens = torch.cat([w["cls_token"], tokens.flatten(2).transpose(1, 2)], 1) + w["pos_embed"]
    if registers:
        tokens = torch.cat([tokens[:, :1], w["register_tokens"], tokens[:, 1:]], 1)
    for n in range(6):
        p = {k.removeprefix(f"blocks.{n}."): v for k, v in w.items() if k.startswith(f"blocks.{n}.")}
        attention = torch.nn.MultiheadAttention(width, width // 64, batch_first=True).eval()
        attention.load_state_dict(
            {
                "in_proj_weight": p["attn.qkv.weight"],
                "in_proj_bias": p["attn.qkv.bias"],
                "out_proj.weight": p["attn.proj.weight"],
                "out_proj.bias": p["attn.proj.bias"],
            }
        )
        y = functional.layer_norm(tokens, (width,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        y = attention(y, y, y, need_weights=False)[0]
        tokens = tokens + (y * p["ls1.gamma"] if scaled else y)
        y = functional.layer_norm(tokens, (width,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        y = functional.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"])
        y = functional.linear(functional.gelu(y), p["mlp.fc2.weight"], p["mlp.fc2.bias"])
        tokens = tokens + (y * p["ls2.gamma"] if scaled else y)
    return functional.layer_norm(tokens, (width,), w["norm.weight"], w["norm.bias"], 1e-6)[:, 0]


@pytest.mark.parametrize(("registers", "scaled"), [(0, False), (0, True), (4, True)])
def test_dino_is_the_transformer_that_its_weights_describe(tmp_path: Path, registers: int, scaled: bool) -> None:
    path = dino_weights(tmp_path / "dino.pth", registers=registers, scaled=scaled)
    made = make_embedder(f"dino:{path}")
    assert isinstance(made, dino.Dino)
    x = np.random.default_rng(0).random((1, 224, 224), np.float32)
    w = torch.load(path, weights_only=True)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = by_pytorch(w, (torch.from_numpy(x)[:, None].expand(-1, 3, -1, -1) - mean) / std, registers, scaled)
    np.testing.assert_allclose(made.embed(x, (1, 1)), expected.numpy(), rtol=1e-3, atol=1e-3)
    assert [layer.shape for layer in made.layers(x, (1, 1))] == [(1, 128)] * 3


def test_dino_positions_follow_the_grid_of_patches(tmp_path: Path) -> None:
    """DINOv2 stores 37 x 37 places for 518 pixels; 224 pixels have 16 x 16 patches of 14."""
    made = make_embedder(f"dino:{dino_weights(tmp_path / 'v2.pth', patch=14, side=37, scaled=True)}")
    assert made.size == (224, 224)
    network = made.network
    with torch.no_grad():
        side = network.position_tokens(37, 37)
        assert torch.equal(side, network.pos_embed)
        smaller = network.position_tokens(16, 16)
    assert smaller.shape == (1, 257, 128)
    assert torch.equal(smaller[:, 0], network.pos_embed[:, 0])
    # Places that rise linearly along the rows nearly do so after interpolation (the cubic of torch bends lines by up
    # to 0.1), over the same field of view.
    with torch.no_grad():
        network.pos_embed[0, 1:] = torch.arange(37.0).repeat_interleave(37)[:, None]
        rows = network.position_tokens(16, 16)[0, 1:, 0].reshape(16, 16)[:, 8].numpy()
    np.testing.assert_allclose(rows[2:-2], ((np.arange(16) + 0.5) * 37 / 16 - 0.5)[2:-2], atol=0.1)
    assert made.embed(np.random.default_rng(0).random((2, 60, 90), np.float32), (1, 1)).shape == (2, 128)


def test_files_that_are_no_dino_are_refused(tmp_path: Path, published: Path) -> None:
    with pytest.raises(InputError, match="no DINO transformer"):
        make_embedder(f"dino:{published}")
    path = dino_weights(tmp_path / "dino.pth")
    w = torch.load(path, weights_only=True)
    w["blocks.3.mlp.fc2.bias"] = torch.zeros(7)
    torch.save(w, path)
    with pytest.raises(InputError, match=r"blocks\.3\.mlp\.fc2\.bias of shape \(7,\)"):
        make_embedder(f"dino:{path}")


def test_embedders_by_file_are_deterministic_and_know_their_weights(tmp_path: Path) -> None:
    made: list[Embedder] = [
        make_embedder(f"dino:{dino_weights(tmp_path / 'dino.pth')}"),
        make_embedder(f"network:{safetensors(tmp_path / 'n.safetensors', RESNET, size=[16, 16, 16])}"),
    ]
    for embedder, x in zip(made, (images(1)[:, :, :, 5], images(1)), strict=True):
        again = restore_embedder(json.loads(json.dumps(embedder.settings())), None, tmp_path)
        assert embedder.embed(x, SPACING).tobytes() == again.embed(x, SPACING).tobytes()
        assert len(embedder.sha256) == 64
        assert embedder.sha256[:12] in embedder.definition
        assert not embedder.saw_training
