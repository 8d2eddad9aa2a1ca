"""The default embedder, and what all embedders share: the same bits each time, and a state that is checked."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from Core.made_up import volume
from replica_detection.embedding import EMBEDDERS, make_embedder, restore_embedder
from replica_detection.embedding.invariants import (
    SCALES,
    Invariants,
    derivative_invariants,
    isotropic,
    moments,
    whitening,
    windows,
)
from replica_detection.embedding.resampling import resampled
from replica_detection.embedding.views import Views
from replica_detection.errors import ConfigurationError, InputError

SPACING = (1.0, 1.0, 1.2)


def image(seed: int) -> np.ndarray:
    return volume(seed) / np.float32(1000)


def fitted(cases: int = 6, seed: int = 0) -> Invariants:
    return Invariants().fit([(f"case_{n}", image(seed + n)) for n in range(cases)], SPACING)


@pytest.fixture(scope="module")
def embedder() -> Invariants:
    return fitted()


def test_the_same_image_gives_the_same_bits_alone_or_among_others(embedder: Invariants) -> None:
    images = np.stack([image(n) for n in range(3)])
    together, alone = embedder.describe(images, SPACING), embedder.describe(images[1:2], SPACING)
    assert together.dtype == np.float32
    assert together[1].tobytes() == alone[0].tobytes() == embedder.describe(images[1:2], SPACING)[0].tobytes()


def test_two_fits_are_the_same_bits(embedder: Invariants) -> None:
    assert fitted().state == embedder.state


@pytest.mark.parametrize("shape", [(26, 26, 26), (40, 40)])
def test_moments_do_not_change_when_the_image_is_mirrored_or_rotated_by_right_angles(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = ndimage.gaussian_filter(rng.standard_normal(shape), 2).astype(np.float32)
    x = (x - x.min()) / np.ptp(x)
    spacing = (1.0,) * len(shape)
    plain = moments(x, spacing)
    assert plain.shape == (920,)
    for axis in range(len(shape)):
        np.testing.assert_allclose(moments(np.flip(x, axis).copy(), spacing), plain, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(moments(np.rot90(x).copy(), spacing), plain, rtol=1e-3, atol=1e-4)
    other = ndimage.gaussian_filter(rng.standard_normal(shape), 2).astype(np.float32)
    assert not np.allclose(moments(other, spacing), plain, rtol=1e-1, atol=1e-2)


def test_invariants_of_a_known_function() -> None:
    """f = (a x^2 + b y^2 + c z^2) / 2, which a Gaussian changes by a constant only."""
    a, b, c, scale = 0.3, -0.2, 0.5, 1.2
    x, y, z = np.meshgrid(*[np.arange(25.0) - 12] * 3, indexing="ij")
    f = (a * x**2 + b * y**2 + c * z**2) / 2
    smooth, steepness, laplacian, frobenius, along = derivative_invariants(f, scale)
    inside = (slice(8, -8),) * 3
    slope = (a * x, b * y, c * z)
    squared = sum(g**2 for g in slope)
    known = {
        "steepness": (steepness, np.sqrt(squared) * scale),
        "laplacian": (laplacian, np.full_like(f, (a + b + c) * scale**2)),
        "frobenius": (frobenius, np.full_like(f, np.sqrt(a**2 + b**2 + c**2) * scale**2)),
        "along": (along, (a**3 * x**2 + b**3 * y**2 + c**3 * z**2) / np.maximum(squared, 1e-8) * scale**2),
    }
    np.testing.assert_allclose(smooth[inside], f[inside] + (a + b + c) * scale**2 / 2, atol=0.02)
    for name, (found, expected) in known.items():
        off_centre = squared[inside] > 0.1
        np.testing.assert_allclose(found[inside][off_centre], expected[inside][off_centre], atol=0.02, err_msg=name)


def test_the_scatter_of_views_is_whitened(embedder: Invariants) -> None:
    rng = np.random.default_rng(1)
    mixing = np.linalg.qr(rng.standard_normal((12, 12)))[0] * np.linspace(0.5, 2, 12)
    views = rng.standard_normal((40, 30, 12)) @ mixing + 5 * rng.standard_normal((40, 1, 12))
    centre, matrix = whitening(views)
    vectors = (views - centre) @ matrix
    within = (vectors - vectors.mean(1, keepdims=True)).reshape(-1, 12)
    np.testing.assert_allclose(within.T @ within / (40 * 29), np.eye(12), atol=5e-3)
    np.testing.assert_allclose(vectors.mean((0, 1)), 0, atol=1e-9)


@pytest.mark.parametrize("cases", [3, 40])
def test_few_views_are_whitened_by_the_same_formula_as_many(cases: int) -> None:
    """(W / scale)^-2 is the scatter of the scaled views plus what shrinkage adds."""
    rng = np.random.default_rng(cases)
    views = rng.standard_normal((cases, 5, 30)) @ rng.standard_normal((30, 30)) + rng.standard_normal((cases, 1, 30))
    centre, matrix = whitening(views)
    scale = views.reshape(-1, 30).std(0)
    scaled = ((views - views.mean(1, keepdims=True)) / scale).reshape(-1, 30)
    scatter = scaled.T @ scaled / (cases * 4)
    root = np.linalg.inv(matrix * scale[:, None])
    np.testing.assert_allclose(root @ root, scatter + 1e-4 * np.trace(scatter) / 30 * np.eye(30), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(centre, views.mean((0, 1)))


def test_an_altered_copy_is_nearer_than_other_images(embedder: Invariants) -> None:
    """Of images that the fit never saw: mirrored, turned, and with another contrast."""
    unseen = np.stack([image(100 + n) for n in range(12)])
    turned = ndimage.rotate(np.flip(unseen[4], 0), 8, (0, 1), reshape=False, order=1, mode="nearest")
    altered = np.clip(turned, 0, 1).astype(np.float32) ** 1.4
    vectors, query = embedder.embed(unseen, SPACING), embedder.embed(altered[None], SPACING)
    cosine = (vectors @ query[0]) / np.linalg.norm(vectors, axis=1)
    assert cosine.argmax() == 4


def test_a_fit_without_some_cases_is_the_fit_of_the_others(embedder: Invariants) -> None:
    again = embedder.refit_without({"case_1", "case_4", "elsewhere"})
    assert again.cases == ("case_0", "case_2", "case_3", "case_5")
    np.testing.assert_array_equal(again.views, embedder.views[[0, 2, 3, 5]])
    assert again.used == again.views.shape[1] > embedder.used, "as many views of fewer cases"
    x = embedder.describe(image(50)[None], SPACING)
    assert not np.allclose(again.project(x), embedder.project(x))


def test_layers_are_the_moments_of_each_scale(embedder: Invariants) -> None:
    layers = embedder.layers(image(3)[None], SPACING)
    assert [layer.shape for layer in layers] == [(1, 4 * (5 + 15))] * len(SCALES)
    blurred = np.clip(ndimage.gaussian_filter(image(3), 1.0), 0, 1)
    change = [
        np.abs(a - b).mean() / np.abs(a).mean()
        for a, b in zip(layers, embedder.layers(blurred[None], SPACING), strict=True)
    ]
    assert change[0] > change[-1], "a blur changes the finest scale most"


def test_state_and_settings_make_it_again(embedder: Invariants, tmp_path: Path) -> None:
    again = restore_embedder(embedder.settings(), embedder.state, tmp_path)
    x = embedder.describe(image(9)[None], SPACING)
    assert np.array_equal(again.project(x), embedder.project(x))
    with pytest.raises(InputError, match="another version or other weights"):
        restore_embedder(embedder.settings(), fitted(seed=70).state, tmp_path)
    with pytest.raises(InputError, match="another version"):
        restore_embedder({**embedder.settings(), "version": 0}, embedder.state, tmp_path)
    with pytest.raises(InputError, match="damaged"):
        restore_embedder(embedder.settings(), embedder.state[:1000], tmp_path)


def test_an_empty_image_has_finite_moments() -> None:
    for constant in (0.0, 0.5, 1.0):
        assert np.isfinite(moments(np.full((9, 3, 20), constant, np.float32), (1.0, 4.0, 0.5))).all()


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown embedding 'magic'"):
        make_embedder("magic")
    with pytest.raises(ConfigurationError, match="takes no file"):
        make_embedder("invariants:file")
    with pytest.raises(ConfigurationError, match="fitted"):
        Invariants().embed(image(0)[None], SPACING)
    with pytest.raises(ConfigurationError, match="without a training image"):
        Invariants().fit([], SPACING)
    for kind in EMBEDDERS:
        if kind != "invariants":
            with pytest.raises(ConfigurationError, match=f"{kind}:FILE"):
                make_embedder(kind)


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((26, 40, 26), (1.0, 1.0, 1.0), (26, 40, 26)),
        ((128, 128, 40), (2.0, 2.0, 4.0), (37, 37, 23)),
        ((20, 20, 20), (1.0, 1.0, 3.0), (20, 20, 60)),
        ((100, 50), (2.0, 4.0), (100, 100)),
        ((4, 30, 30), (1.0, 1.0, 1.0), (8, 30, 30)),
    ],
)
def test_the_working_grid_has_cubic_voxels(shape: tuple, spacing: tuple, expected: tuple) -> None:
    assert isotropic(np.zeros(shape, np.float32), spacing).shape == expected


def test_a_linear_image_stays_linear_when_resampled() -> None:
    """Voxel j of the new grid lies at (j + 1/2) n / m - 1/2 of the old one."""
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None], (40, 6, 6))
    for m in (13, 40, 77):
        found = resampled(ramp, (m, 6, 6))[:, 3, 3]
        expected = (np.arange(m) + 0.5) * 40 / m - 0.5
        inside = (expected > 4) & (expected < 35)
        np.testing.assert_allclose(found[inside], expected[inside], atol=1e-3)


def test_windows_are_weights_that_turn_with_the_grid() -> None:
    found = windows((10, 10, 10))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    cube = found.reshape(-1, 10, 10, 10)
    np.testing.assert_allclose(cube, cube.transpose(0, 2, 3, 1), rtol=1e-5)
    np.testing.assert_allclose(cube, cube[:, ::-1, :, ::-1], rtol=1e-5)


@given(seed=st.integers(0, 2**32), shape=st.sampled_from([(12, 9, 15), (17, 11)]))
@settings(max_examples=30, deadline=None)
def test_views_keep_shape_and_range_and_follow_their_seed(seed: int, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape, np.float32)
    views = Views(15, 0.1, 0.2, (0, 1, 2), 0.1, 2.0, 0.1, 0.5, 0.5, 0.25)
    view = views.of(x, np.random.default_rng(seed))
    assert view.shape == shape
    assert view.dtype == np.float32
    assert 0 <= view.min() <= view.max() <= 1
    assert np.array_equal(view, views.of(x, np.random.default_rng(seed)))


def test_parts_of_a_view_do_what_they_say() -> None:
    x = image(0)
    assert np.array_equal(Views().of(x, np.random.default_rng(0)), np.clip(x, 0, 1))
    mirrored = {Views(flips=(1,)).of(x, np.random.default_rng(n)).tobytes() for n in range(20)}
    assert mirrored == {x.tobytes(), np.ascontiguousarray(x[:, ::-1]).tobytes()}
    # Turned twice by the same angle in opposite directions, the middle comes back.
    turned = Views(rotation_degrees=20, share=1).of(x, np.random.default_rng(3))
    assert 0.3 < np.corrcoef(turned.ravel(), x.ravel())[0, 1] < 0.99
    zoomed = [Views(zoom=0.3, share=1).of(x, np.random.default_rng(n)) for n in range(3)]
    assert all(z[12, 14, 10] == pytest.approx(x[11:13, 13:15, 9:11].mean(), abs=0.15) for z in zoomed)
    lost = Views(lost=0.25)
    shares = [np.mean(lost.of(x, np.random.default_rng(n)) != x) for n in range(60)]
    assert max(shares) == pytest.approx(0.25, abs=0.06)
    assert 0.05 < np.mean(np.array(shares) > 0) < 0.4
