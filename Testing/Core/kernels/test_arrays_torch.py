"""Arrays on a device: which stay there, that none is stale, and filters equal to SciPy's."""

import gc

import numpy as np
import pytest
import torch
from scipy import ndimage

from replica_detection.kernels import arrays_torch, mae, rmse, ssim, torch_device
from replica_detection.kernels.arrays_torch import Residents, filtered, gaussian_bands

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("device", DEVICES)
def test_read_only_arrays_travel_once_and_others_each_time(device, tmp_path):
    held = Residents(device)
    kept = read_only(np.random.default_rng(0).random((3, 4, 5), np.float32))
    assert held.tensor(kept) is held.tensor(kept)
    assert held.tensor(kept[1:]) is held.tensor(kept[1:])  # a view of the same memory
    np.testing.assert_array_equal(held.tensor(kept[1:]).cpu(), kept[1:])
    np.save(tmp_path / "mapped.npy", kept)
    mapped = np.asarray(np.load(tmp_path / "mapped.npy", mmap_mode="r"))
    assert held.tensor(mapped) is held.tensor(mapped)
    changing = np.zeros((2, 3), np.float32)
    view = changing[:]
    view.flags.writeable = False
    assert not held.tensor(view).any()
    changing[:] = 1  # through the array that owns the memory
    assert held.tensor(view).all()


@pytest.mark.parametrize("device", DEVICES)
def test_freed_arrays_and_the_oldest_make_room(device):
    held = Residents(device)
    held.room = 4000
    arrays = [read_only(np.full(250, n, np.float32)) for n in range(6)]
    first = held.tensor(arrays[0])
    for array in arrays[1:4]:
        held.tensor(array)
    assert held.tensor(arrays[0]) is first
    held.tensor(arrays[4])  # in place of number 1, the one that was not used for longest
    assert held.tensor(arrays[0]) is first
    assert len(held._kept) == 4
    arrays.clear()
    del array
    gc.collect()
    assert not held._kept
    big = read_only(np.zeros(501, np.float32))
    assert not held.keeps(big) and held.tensor(big) is not held.tensor(big)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float64])
def test_large_arrays_arrive_whole_through_small_buffers(device, dtype, monkeypatch):
    monkeypatch.setattr(arrays_torch, "BUFFER", 64)
    array = np.random.default_rng(0).integers(0, 255, (7, 9, 11)).astype(dtype)
    held = Residents(device)
    for given in (array, array[:, ::2], array.transpose(2, 0, 1)):
        np.testing.assert_array_equal(held.tensor(given).cpu().numpy(), given)
    rows = np.array([5, 1, 5, 0])
    for given in (array, read_only(array)):
        np.testing.assert_array_equal(held.gathered(given, rows).cpu().numpy(), array[rows])
        pieces = [(place, part.cpu().numpy()) for place, part in held.pieces(given, 3)]
        assert [place for place, _ in pieces] == [slice(0, 3), slice(3, 6), slice(6, 7)]
        np.testing.assert_array_equal(np.concatenate([part for _, part in pieces]), array)


@pytest.mark.parametrize("shape", [(9, 12, 7), (1, 8, 9), (8, 9, 1), (2, 3, 1)], ids=str)
@pytest.mark.parametrize(("sigma", "truncate"), [(1.5, 2.0), (1.0, 4.0)])
def test_the_gaussian_is_that_of_scipy(shape, sigma, truncate):
    images = np.random.default_rng(0).standard_normal((2, *shape))
    found = filtered(torch.from_numpy(images), gaussian_bands(shape, sigma, truncate, "cpu"))
    for image, smooth in zip(images, found.numpy(), strict=True):
        width = [sigma if n > 1 else 0 for n in shape]
        expected = ndimage.gaussian_filter(image, width, mode="nearest", truncate=truncate)
        np.testing.assert_allclose(smooth, expected, atol=1e-12)


def test_the_measures_of_a_block_share_one_upload(monkeypatch):
    uploads = []
    held = arrays_torch.residents(torch_device("torch-cpu"))
    uploaded = held._uploaded
    monkeypatch.setattr(held, "_uploaded", lambda array: uploads.append(array.shape) or uploaded(array))
    rng = np.random.default_rng(0)
    training, queries = read_only(rng.random((5, 12, 13, 14), np.float32)), rng.random((2, 12, 13, 14), np.float32)
    for _ in range(2):
        for measure in (mae, rmse, ssim):
            measure(queries, training, device="torch-cpu")
    assert uploads.count(training.shape) == 1 and uploads.count(queries.shape) == 6
