"""MAE, RMSE and SSIM of all pairs against NumPy and scikit-image in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from replica_detection.errors import ConfigurationError
from replica_detection.kernels import mae, rmse, ssim, voxel_torch
from replica_detection.kernels.arrays import window_weights

# Even and odd, longer and shorter than a tile of the kernels (16 x 64 valid positions), just that, and the least size.
GRIDS = [(40, 30), (11, 11), (95, 151), (20, 31, 17), (11, 11, 11), (13, 44, 83), (12, 42, 74), (33, 12, 25)]
DEVICES = ["cpu", "torch-cpu"] + ["cuda"] * torch.cuda.is_available()
SETTINGS = {
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "truncate": 3.5},
    "uniform": {},
}


def block(cases: int, grid: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Noise, then smooth blobs on an empty background, then constants and two flat levels, near 0 and near 1."""
    rng = np.random.default_rng(seed)
    volumes = np.empty((cases, *grid), np.float32)
    for case, volume in enumerate(volumes):
        smooth = gaussian_filter(rng.standard_normal(grid), 2)
        steps = np.where(smooth > 0, 0.93, 0.87 if (case // 4 + seed) % 2 else 0.04)
        kinds = rng.random(grid), np.clip(smooth / smooth.max(), 0, 1), np.full(grid, rng.random()), steps
        volume[:] = kinds[case % 4]
    return volumes


def pairwise(measure, queries: np.ndarray, training: np.ndarray) -> np.ndarray:
    return np.array([[measure(q.astype(np.float64), n.astype(np.float64)) for n in training] for q in queries])


def reference_ssim(window: str, data_range: float = 1.0):
    return lambda a, b: structural_similarity(a, b, data_range=data_range, **SETTINGS[window])


def reference_mae(a, b):
    return np.mean(np.abs(a - b))


def reference_rmse(a, b):
    return np.sqrt(np.mean((a - b) ** 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equal_to_numpy(grid, device):
    queries, training = block(5, grid), block(7, grid, seed=1)
    np.testing.assert_allclose(mae(queries, training, device), pairwise(reference_mae, queries, training), atol=1e-6)
    np.testing.assert_allclose(rmse(queries, training, device), pairwise(reference_rmse, queries, training), atol=1e-6)


@pytest.mark.parametrize("window", SETTINGS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_ssim_equals_scikit_image(grid, window):
    queries, training = block(5, grid), block(7, grid, seed=1)
    expected = pairwise(reference_ssim(window), queries, training)
    np.testing.assert_allclose(ssim(queries, training, window=window), expected, rtol=0, atol=1e-5)
    for device in DEVICES[1:]:
        found = ssim(queries, training, window=window, device=device)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_many_cases_and_voxels():
    """More queries, cases and voxels than one task of the kernels takes, in counts that leave a rest."""
    rng = np.random.default_rng(0)
    queries, training = rng.random((33, 50, 67), np.float32), rng.random((38, 50, 67), np.float32)
    np.testing.assert_allclose(mae(queries, training), pairwise(reference_mae, queries, training), atol=1e-6)
    np.testing.assert_allclose(rmse(queries, training), pairwise(reference_rmse, queries, training), atol=1e-6)
    some = pairwise(reference_ssim("gaussian"), queries[::8], training[::8])
    np.testing.assert_allclose(ssim(queries, training)[::8, ::8], some, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", SETTINGS)
def test_data_range_in_hounsfield(window):
    queries, training = (block(4, (20, 24, 28), seed) * 4000 - 1000 for seed in (0, 1))
    expected = pairwise(reference_ssim(window, 4000), queries, training)
    found = ssim(queries, training, data_range=4000, window=window)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", [lambda a, rng: a + 1e-6 * rng.standard_normal(a.shape), lambda a, rng: a + 1e-4])
def test_near_copies(change, device):
    queries = block(4, (24, 40, 30))
    training = change(queries, np.random.default_rng(5)).astype(np.float32)
    tolerance = {"rtol": 1e-4, "atol": 1e-9}
    found = rmse(queries, training, device), mae(queries, training, device)
    np.testing.assert_allclose(found[0], pairwise(reference_rmse, queries, training), **tolerance)
    np.testing.assert_allclose(found[1], pairwise(reference_mae, queries, training), **tolerance)
    expected = pairwise(reference_ssim("gaussian"), queries, training)
    limit = 1e-5 if device == "cpu" else 1e-4
    np.testing.assert_allclose(ssim(queries, training, device=device), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("grid", [(33, 47), (12, 40, 33)], ids=str)
def test_exact_copies(grid, device):
    queries = block(8, grid)
    order = np.array([3, 1, 7, 0, 5])
    training = queries[order].copy()
    for found, exact in (
        (mae(queries, training, device), 0.0),
        (rmse(queries, training, device), 0.0),
        (ssim(queries, training, device=device), 1.0),
        (ssim(queries, training, window="uniform", device=device), 1.0),
    ):
        assert (found[order, range(5)] == exact).all()
        assert np.count_nonzero(found == exact) == 5


def test_real_volumes(real_data):
    import nibabel

    def load(name: str) -> np.ndarray:
        volume = nibabel.load(real_data / "follow_up" / name).get_fdata(dtype=np.float32)[::2, ::3, ::2]
        volume = np.pad(volume, [(0, max(0, 96 - n)) for n in volume.shape])[:96, :96, :96]
        return volume / np.percentile(volume, 99.5)

    cases = np.stack(
        [load(f"patient{number}_visit{visit}_FLAIR.nii.gz") for number in ("01", "03") for visit in (1, 2)]
    )
    cases = cases.clip(0, 1)
    for window in SETTINGS:
        expected = pairwise(reference_ssim(window), cases[:2], cases)
        np.testing.assert_allclose(ssim(cases[:2], cases, window=window), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(rmse(cases, cases), pairwise(reference_rmse, cases, cases), atol=1e-6)


@given(st.permutations(range(6)), st.permutations(range(3)), st.sampled_from([mae, rmse, ssim]))
@settings(max_examples=30, deadline=None)
def test_permuting_the_cases_permutes_the_result(columns, rows, measure):
    queries, training = block(3, (13, 21, 14)), block(6, (13, 21, 14), seed=1)
    expected = measure(queries, training)[np.ix_(rows, columns)]
    np.testing.assert_array_equal(measure(queries[rows], training[columns]), expected)


@given(st.integers(0, 1000), st.floats(-5, 5), st.sampled_from([mae, rmse]))
@settings(max_examples=30, deadline=None)
def test_distances_are_symmetric_and_blind_to_a_shift(seed, shift, measure):
    a, b = block(2, (9, 7, 5), seed), block(3, (9, 7, 5), seed + 1)
    np.testing.assert_allclose(measure(a, b), measure(b, a).T, atol=1e-7)
    np.testing.assert_allclose(measure(a + np.float32(shift), b + np.float32(shift)), measure(a, b), atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_result_does_not_depend_on_the_block(device):
    queries, training = block(4, (14, 30, 20)), block(9, (14, 30, 20), seed=1)
    for measure in (mae, rmse, ssim):
        whole = measure(queries, training, device=device)
        one = [measure(queries[:1], training[n : n + 1], device=device)[0, 0] for n in range(9)]
        np.testing.assert_allclose(whole[0], one, rtol=0, atol=1e-7)


def test_batches_of_the_torch_code_join(monkeypatch):
    queries, training = block(3, (12, 13, 14)), block(7, (12, 13, 14), seed=1)
    whole = [measure(queries, training, device="torch-cpu") for measure in (mae, rmse, ssim)]
    monkeypatch.setattr(voxel_torch, "BATCH_BYTES", 25 * training[0].nbytes)
    for measure, expected in zip((mae, rmse, ssim), whole, strict=True):
        np.testing.assert_allclose(measure(queries, training, device="torch-cpu"), expected, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("measure", [mae, rmse, ssim])
def test_empty_blocks(measure, device):
    some, none = block(2, (12, 12, 12)), np.empty((0, 12, 12, 12), np.float32)
    assert measure(some, none, device=device).shape == (2, 0)
    assert measure(none, some, device=device).shape == (0, 2)
    assert measure(none, none, device=device).dtype == np.float64


@pytest.mark.parametrize("device", DEVICES)
def test_nan_spoils_only_its_own_case(device):
    queries, training = block(3, (12, 20, 14)), block(3, (12, 20, 14), seed=1)
    queries[1, 6, 10, 7] = np.nan
    for measure in (mae, rmse, ssim):
        assert np.isnan(measure(queries, training, device=device)).tolist() == [[False] * 3, [True] * 3, [False] * 3]


def test_other_types_read_only_and_strided_blocks():
    queries, training = block(3, (12, 20, 14)), block(4, (12, 20, 14), seed=1)
    expected = [measure(queries, training) for measure in (mae, rmse, ssim)]
    training.flags.writeable = False
    wide = np.repeat(queries, 2, axis=3)[..., ::2].astype(np.float64)
    for measure, values in zip((mae, rmse, ssim), expected, strict=True):
        np.testing.assert_array_equal(measure(wide, training), values)
        np.testing.assert_allclose(measure(wide, training, device="torch-cpu"), values, atol=1e-4)
    assert queries.flags.writeable


def test_several_callers_at_once():
    queries, training = block(3, (14, 30, 20)), block(9, (14, 30, 20), seed=1)
    expected = ssim(queries, training)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: ssim(queries, training), range(8)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("measure", [mae, rmse, ssim])
def test_different_grids(measure):
    with pytest.raises(ValueError, match="same grid"):
        measure(block(2, (12, 12, 12)), block(2, (12, 12, 13)))
    with pytest.raises(ValueError, match="same grid"):
        measure(np.zeros((12, 12), np.float32), np.zeros((12, 12), np.float32))


def test_options_that_do_not_go_together():
    thin = block(2, (12, 12, 10))
    with pytest.raises(ConfigurationError, match="spans 11 voxels along every axis, but the grid is 12 x 12 x 10"):
        ssim(thin, thin)
    assert ssim(thin, thin, window="uniform").shape == (2, 2)
    with pytest.raises(ConfigurationError, match="gaussian, uniform"):
        ssim(thin, thin, window="hann")
    with pytest.raises(ConfigurationError, match="data range above 0"):
        ssim(thin, thin, data_range=0, window="uniform")
    for device in ("tpu", "cudax", "cuda:99", "cuda:x", "cuda:"):
        with pytest.raises(ConfigurationError, match="device"):
            mae(thin, thin, device=device)


def test_torch_leaves_the_precision_setting_alone():
    matmul = torch.backends.cuda.matmul
    name, loose = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    before = getattr(matmul, name)
    setattr(matmul, name, loose)
    try:
        ssim(block(1, (12, 12)), block(1, (12, 12)), device="torch-cpu")
        assert getattr(matmul, name) == loose
    finally:
        setattr(matmul, name, before)


def test_window_weights():
    for window, taps in (("gaussian", 11), ("uniform", 7)):
        weights = window_weights(window)
        assert weights.size == taps
        assert weights.sum() == pytest.approx(1, abs=1e-15)
    assert window_weights("gaussian")[4] / window_weights("gaussian")[5] == pytest.approx(np.exp(-0.5 / 1.5**2))


def test_the_process_that_compiles_and_those_that_read_its_cache_get_the_same_bits(tmp_path):
    script = """
import hashlib
import numpy as np
from replica_detection.kernels import voxel_cpu
from replica_detection.registration.optimization import Limits, register, template
from replica_detection.registration.pyramid import Level
blocks = np.random.default_rng(0).random((2, 3, 40, 32, 24), dtype=np.float32)
found = [voxel_cpu.mae(*blocks), voxel_cpu.rmse(*blocks), voxel_cpu.ssim(*blocks, 1.0, "gaussian")]
level = Level((40, 32, 24), (1.0, 1.0, 1.5))
matrices, shifts = np.eye(3)[None].repeat(3, 0), np.full((3, 3), 0.7)
where = np.arange(3), np.ones((3, 3))
query = template(blocks[0, 0], level)
found += [register(query, blocks[1], matrices, shifts, *where, iterations=5, limits=Limits()), matrices]
print([hashlib.sha256(f.tobytes()).hexdigest() for f in found])
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, encoding="utf-8", check=True
        )
        for _ in range(2)
    ]
    assert list(tmp_path.rglob("*.nbc")), "nothing was kept for the second run"
    assert runs[0].stdout == runs[1].stdout != ""
