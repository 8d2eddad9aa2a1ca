"""Pictures: orientation, bits, colour and masks, against Pillow and against what was drawn."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from scipy.ndimage import gaussian_filter

from replica_detection.errors import InputError
from replica_detection.io.volume import Volume, read_mask, read_volume


def film(seed: int = 0, shape: tuple[int, int] = (120, 90)) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 5)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int, subsampling: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()


def deep_png(channels: np.ndarray) -> bytes:
    """A PNG with 16 bits in each of 2 (grey and alpha), 3 or 4 channels, which Pillow does not write."""
    height, width, count = channels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_orientation_tags_are_applied_as_by_pillow(tmp_path: Path, orientation: int, suffix: str, mode: str):
    tag, file = Image.Exif(), tmp_path / f"a{suffix}"
    tag[0x0112] = orientation
    Image.fromarray(film()).convert(mode).save(file, exif=tag)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("L"))
    volume = read_volume(file)
    assert np.array_equal(volume.array.T, expected)
    assert any("orientation tag" in note for note in volume.warnings) == (orientation > 1)


@pytest.mark.parametrize("count", [3, 4])
def test_sixteen_bits_of_each_channel_are_kept(tmp_path: Path, count: int):
    grey = np.random.default_rng(0).integers(0, 2**16, (9, 8)).astype(np.uint16)
    channels = np.stack([grey, grey, grey, np.full_like(grey, 2**16 - 1)][:count], -1)
    (tmp_path / "a.png").write_bytes(deep_png(channels))
    assert np.array_equal(read_volume(tmp_path / "a.png").array.T, grey)
    channels[..., 0] = np.minimum(grey, 2**16 - 300) + 255
    (tmp_path / "b.png").write_bytes(deep_png(channels))
    weights = np.array([0.299, 0.587, 0.114])
    assert np.array_equal(read_volume(tmp_path / "b.png").array.T, np.rint(channels[..., :3] @ weights))
    channels[..., 0] = 2**16 - 1 - grey
    (tmp_path / "c.png").write_bytes(deep_png(channels))
    with pytest.raises(InputError, match="colour picture"):
        read_volume(tmp_path / "c.png")


def test_sixteen_bits_with_an_alpha_channel_are_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(deep_png(np.full((9, 8, 2), 2**16 - 1)))
    with pytest.raises(InputError, match="16 bit grey values with an alpha"):
        read_volume(tmp_path / "a.png")


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("kind", ["noise", "noise, compressed", "warm", "blue film"])
def test_grey_films_in_colour_pictures_are_read_by_their_luminance(
    tmp_path: Path, quality: int, subsampling: int, kind: str
):
    """Channels that differ by the noise of a scanner or of compression, or by the tint of the film."""
    grey = film()
    colours = np.repeat(grey[..., None], 3, -1).astype(float)
    if kind.startswith("noise"):
        colours += np.random.default_rng(1).normal(0, 4, colours.shape)
    else:
        colours *= {"warm": (1, 0.98, 0.95), "blue film": (0.93, 0.97, 1)}[kind]
    pixels = np.clip(colours, 0, 255).astype(np.uint8)
    if kind == "noise":
        file = tmp_path / "a.png"
        Image.fromarray(pixels).save(file)
    else:
        file = tmp_path / "a.jpg"
        file.write_bytes(jpeg(pixels, quality, subsampling))
    volume = read_volume(file)
    with Image.open(file) as image:
        assert np.abs(volume.array.T - np.asarray(image.convert("L"), float)).max() <= 1
    assert np.corrcoef(volume.array.T.ravel(), grey.ravel())[0, 1] > 0.99
    # Strong compression can leave no difference at all.
    assert volume.warnings[0].startswith(("a RGB picture whose channels hardly differ", "a RGB picture with identical"))
    assert kind == "noise, compressed" or "by its luminance" in volume.warnings[0]


def marked(kind: str) -> np.ndarray:
    """A grey film with something in colour on it."""
    grey = film(shape=(400, 500))
    pixels = np.repeat(grey[..., None], 3, -1)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    if kind == "writing":
        pen.text((10, 10), "L  PORTABLE  12:30", fill=(255, 255, 0))
    elif kind == "box":
        pen.rectangle((100, 100, 160, 150), outline=(255, 0, 0), width=2)
    pixels = np.array(image)
    if kind == "overlay":
        pixels[100:200, 150:250] = 0.6 * pixels[100:200, 150:250] + 0.4 * np.array([255, 0, 0])
    elif kind == "Doppler":
        pixels[100:160, 150:230] = np.random.default_rng(0).integers(0, 255, (60, 80, 3))
    elif kind == "colour map":
        pixels = np.stack([grey, 255 - grey, grey // 2], -1)
    return pixels


@pytest.mark.parametrize("kind", ["writing", "box"])
@pytest.mark.parametrize("lossy", [False, True])
def test_small_coloured_marks_are_read_and_told(tmp_path: Path, kind: str, lossy: bool):
    file = tmp_path / ("a.jpg" if lossy else "a.png")
    file.write_bytes(jpeg(marked(kind), 75, 2)) if lossy else Image.fromarray(marked(kind)).save(file)
    assert "small coloured marks" in read_volume(file).warnings[0]


@pytest.mark.parametrize("kind", ["overlay", "Doppler", "colour map"])
@pytest.mark.parametrize("quality", [50, 95, None])
def test_colour_is_refused_with_the_way_to_convert_it(tmp_path: Path, kind: str, quality: int | None):
    file = tmp_path / ("a.jpg" if quality else "a.png")
    file.write_bytes(jpeg(marked(kind), quality, 2)) if quality else Image.fromarray(marked(kind)).save(file)
    with pytest.raises(InputError, match="is a colour picture") as refused:
        read_volume(file)
    assert "% of its pixels" in refused.value.found and "-colorspace Gray" in refused.value.advice


def test_real_films_in_nearly_grey_colours_are_read(real_data: Path, tmp_path: Path):
    """As published sets have them: films whose channels differ a little."""
    files = sorted((real_data / "xray").glob("*.jpeg"))[:4]
    assert files
    for number, file in enumerate(files):
        with Image.open(file) as image:
            grey = np.asarray(image.convert("L").resize((300, 240)), float)
        noise = np.random.default_rng(number).normal(0, 4, (*grey.shape, 3))
        pixels = np.clip(grey[..., None] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        assert np.abs(read_volume(tmp_path / "a.png").array.T - grey).mean() < 4


def test_a_mask_is_read_by_its_labels(tmp_path: Path):
    labels = np.arange(48).reshape(6, 8).astype(np.uint8) % 3
    like = Volume(np.zeros((8, 6), np.float32), np.eye(4), False)
    palette = Image.fromarray(labels, "P")
    palette.putpalette([255, 255, 255, 0, 0, 0, 200, 0, 0])  # the background white, label 1 black
    palette.save(tmp_path / "p.png")
    Image.fromarray(labels.astype(np.uint16) * 1000).save(tmp_path / "deep.png")
    Image.fromarray(np.repeat(labels[..., None], 3, -1)).save(tmp_path / "same.png")
    assert np.array_equal(read_mask(tmp_path / "p.png", like).T, labels)
    assert np.array_equal(read_mask(tmp_path / "deep.png", like).T, labels.astype(int) * 1000)
    assert np.array_equal(read_mask(tmp_path / "same.png", like).T, labels)
    Image.fromarray(np.stack([labels, labels * 2, labels], -1)).save(tmp_path / "colours.png")
    with pytest.raises(InputError, match="mask in colours"):
        read_mask(tmp_path / "colours.png", like)
    for name in ("lossy.jpg", "lossy.png"):  # whatever its name says
        Image.fromarray(labels * 127).save(tmp_path / name, "JPEG", quality=100)
        with pytest.raises(InputError, match="stored with loss"):
            read_mask(tmp_path / name, like)
