"""Phantoms: the truth they claim, the kinds of replicas, and the demo cohort on disk."""

import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.phantom import (
    REPLICA_KINDS,
    Phantom,
    make_demo_cohort,
    make_head_ct,
    make_replica,
    make_tof_mra,
)
from replica_detection.phantom.base import (
    Grid,
    capsules,
    ellipsoid,
    generator,
    rigid_resample,
    rotation,
    smooth_field,
)
from replica_detection.phantom.vessels import Vessel, draw

MAKERS = [make_head_ct, make_tof_mra]
SEEDS = range(8)
CONNECTED = np.ones((3, 3, 3))


@pytest.fixture(scope="module")
def head_cts() -> list[Phantom]:
    return [make_head_ct(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def angiograms() -> list[Phantom]:
    return [make_tof_mra(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo")
    seen: list[tuple[int, int]] = []
    make_demo_cohort(
        "head_ct",
        output,
        training=9,
        validation=2,
        novel=2,
        per_kind=1,
        seed=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 20) for i in range(1, 21)]
    return output


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def pixels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float(np.sum((a > 0) & (b > 0))) / float(np.sum(a > 0) + np.sum(b > 0))


@pytest.mark.parametrize("make", MAKERS)
def test_same_seed_same_phantom(make):
    one, two = make(5), make(5)
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.mask, two.mask)
    assert np.array_equal(one.affine, two.affine)
    assert one.image.dtype == np.float32
    assert one.mask.dtype == np.uint8


@pytest.mark.parametrize("cohort_of", ["head_cts", "angiograms"])
def test_patients_differ(cohort_of, request):
    phantoms = request.getfixturevalue(cohort_of)
    overlaps = [dice(a.mask, b.mask) for i, a in enumerate(phantoms) for b in phantoms[:i]]
    assert np.mean(overlaps) < 0.25
    assert max(overlaps) < 0.8


@pytest.mark.parametrize("make", MAKERS)
def test_negative_seed_is_refused(make):
    with pytest.raises(ConfigurationError, match="0 or larger"):
        make(-1)


def test_head_ct_tissues_have_plausible_hu(head_cts):
    for phantom in head_cts:
        image, mask = phantom.image, phantom.mask > 0
        assert np.median(image[:3, :3]) == pytest.approx(-1000, abs=15)
        bone = image > 300
        assert 0.04 < bone.mean() < 0.25
        assert 700 < np.percentile(image[bone], 75) < 1500
        brain = inside_skull(phantom) & (np.abs(image) < 100)
        inner = ndimage.binary_erosion(brain, iterations=2) & ~ndimage.binary_dilation(mask, iterations=4)
        assert 26 < np.median(image[inner]) < 40
        # Ventricles and cisterns: darker than any brain tissue, smoothed against noise.
        smooth = ndimage.gaussian_filter(image, (1, 1, 0))
        assert 0 < np.percentile(smooth[inner], 0.5) < 22


def test_hematoma_is_blood_inside_the_skull(head_cts):
    volumes = []
    for phantom in head_cts:
        mask = phantom.mask > 0
        volumes.append(mask.sum() * np.prod(phantom.spacing_mm) / 1000)
        assert 2 <= volumes[-1] <= 80
        assert not np.any(mask & ~inside_skull(phantom))
        around = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
        assert 48 < phantom.image[mask].mean() < 80
        assert phantom.image[mask].mean() > np.median(phantom.image[around]) + 15
        parts = np.bincount(ndimage.label(mask, CONNECTED)[0].ravel())[1:]
        assert parts.max() > 0.5 * parts.sum()
    assert np.std(volumes) > 3


def inside_skull(phantom: Phantom) -> np.ndarray:
    """Voxels with bone to both sides, in front, behind and above."""
    bone = ndimage.binary_closing(phantom.image > 200, np.ones((5, 5, 1)))
    seen = [np.maximum.accumulate(bone, axis=axis) for axis in (0, 1)]
    seen += [np.flip(np.maximum.accumulate(np.flip(bone, axis), axis=axis), axis) for axis in (0, 1, 2)]
    return np.logical_and.reduce(seen) & ~bone


def test_vessel_tree_is_one_piece_and_bright(angiograms):
    for phantom in angiograms:
        mask = phantom.mask > 0
        parts = np.bincount(ndimage.label(mask, CONNECTED)[0].ravel())[1:]
        assert parts.max() >= 0.95 * parts.sum()
        around = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
        assert phantom.image[mask].mean() > 1.6 * phantom.image[around].mean()
        assert 1500 < mask.sum() < 9000
        assert phantom.image.min() >= 0
        # No vessel lies in air: its surroundings have signal.
        near = ndimage.uniform_filter(phantom.image, 9)
        assert np.mean(near[mask] < 25) < 0.01


def test_circle_of_willis_has_variants():
    from replica_detection.phantom.vessels import random_tree

    names = [{v.name for v in random_tree(generator(seed))} for seed in range(60)]
    for missing in ("PCom", "A1", "AICA", "PICA"):
        assert any(f"{missing} 1" not in n or f"{missing} -1" not in n for n in names)
    assert all(any(f"PCom {s}" in n for s in (1, -1)) and {"basilar", "ACom", "M1 1", "M1 -1"} <= n for n in names)


def test_tube_has_its_volume():
    grid = Grid((40, 40, 40), (1.0, 0.9, 1.1), (-20.0, -18.0, -22.0))
    z = np.arange(-12, 12, 0.3)
    tube = Vessel("straight", np.stack([0 * z + 0.3, 0 * z - 0.2, z], 1), np.full(len(z), 3.0), z)
    drawn = draw((tube,), grid)
    expected = np.pi * 9 * (z[-1] - z[0]) + 4 / 3 * np.pi * 27
    voxel = np.prod(grid.spacing_mm)
    assert drawn.mask.sum() * voxel == pytest.approx(expected, rel=0.03)
    assert drawn.opacity.sum() * voxel == pytest.approx(expected, rel=0.05)


def test_shapes_have_exact_distances_where_known():
    x, y, z = (a.astype(np.float32) for a in np.indices((21, 21, 21)) - 10.0)
    r = np.sqrt(x * x + y * y + z * z)
    assert ellipsoid(x, y, z, (0, 0, 0), (6, 6, 6)) == pytest.approx(r - 6, abs=1e-3)
    nodes = np.array([[0, 0, -4.0], [0, 0, 4.0]])
    along = np.clip(z, -4, 4)
    expected = np.sqrt(x * x + y * y + (z - along) ** 2) - 2
    assert capsules(x, y, z, nodes, np.array([2.0, 2.0]), reach=40.0) == pytest.approx(expected, abs=1e-4)


def test_smooth_field_is_smooth_and_of_unit_variance():
    axis = np.arange(0, 200, 2.0)
    field = smooth_field(generator(1), (axis, axis, axis), 10.0)
    assert field.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(field, axis=0)).std() < 0.2 * field.std()


def test_rigid_resample_moves_content():
    grid = Grid((21, 21, 21), (2.0, 2.0, 2.0), (-20.0, -20.0, -20.0))
    array = np.zeros(grid.shape, np.float32)
    array[15, 10, 10] = 1  # 10 mm along x
    turned = rigid_resample(array, grid, rotation(np.array([0, 0, 90.0])), np.array([0, 0, 4.0]), 0.0)
    assert np.unravel_index(turned.argmax(), turned.shape) == (10, 15, 12)


@pytest.mark.parametrize("make", MAKERS)
def test_anatomy_replica_keeps_the_mask_in_another_background(make):
    source = make(2)
    twin = make_replica("anatomy", source, generator(1), source)
    assert np.array_equal(twin.mask, source.mask)
    assert np.array_equal(twin.affine, source.affine)
    # Brain's detail far from the finding, after the slow changes that all heads share are taken away.
    finding = ndimage.binary_dilation(source.mask, iterations=5)
    stranger = make(900)
    background = ndimage.binary_erosion(tissue(source) & tissue(twin) & ~finding, iterations=2)
    one, two, three = (detail(p, ~finding)[background] for p in (source, twin, stranger))
    assert np.count_nonzero(background) > 10_000
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.3
    assert abs(np.corrcoef(one, three)[0, 1]) < 0.3
    noisy = make_replica("noise", source, generator(1), stranger)
    assert np.corrcoef(one, detail(noisy, ~finding)[background])[0, 1] > 0.5


def tissue(phantom: Phantom) -> np.ndarray:
    if phantom.use_case == "head_ct":
        return inside_skull(phantom) & (np.abs(phantom.image) < 100)
    return (phantom.image > 60) & (phantom.image < 180)


def detail(phantom: Phantom, valid: np.ndarray) -> np.ndarray:
    """Image minus its mean over neighbours that count: in the brain's range and `valid`."""
    weight = (valid & tissue(phantom)).astype(np.float32)
    mean = ndimage.gaussian_filter(phantom.image * weight, 4) / (ndimage.gaussian_filter(weight, 4) + 1e-6)
    return phantom.image - mean


@pytest.mark.parametrize("make", MAKERS)
def test_follow_up_is_the_same_patient_changed(make):
    first, later, stranger = make(4), make(4, visit=1), make(6)
    assert not np.array_equal(first.image, later.image)
    shift = [np.array(ndimage.center_of_mass(p.mask)) * p.spacing_mm for p in (first, later)]
    assert np.linalg.norm(shift[0] - shift[1]) < 15
    assert float(later.mask.sum()) == pytest.approx(float(first.mask.sum()), rel=0.3)
    flat = [p.image.ravel() for p in (first, later, stranger)]
    assert np.corrcoef(flat[0], flat[1])[0, 1] > np.corrcoef(flat[0], flat[2])[0, 1]


@pytest.mark.parametrize("use_case", ["head_cts", "angiograms"])
def test_replica_kinds_have_their_property(use_case, request):
    source, other = request.getfixturevalue(use_case)[:2]
    made = {kind: make_replica(kind, source, generator(7), other) for kind in REPLICA_KINDS}
    for kind, replica in made.items():
        assert replica.image.shape == source.image.shape, kind
        assert replica.image.dtype == np.float32, kind
        assert np.array_equal(replica.image, np.rint(replica.image)), kind
        assert (kind == "exact") == np.array_equal(replica.image, source.image), kind
        if kind != "elastic":
            assert np.array_equal(replica.mask, source.mask), kind
    rest = made["noise"].image - source.image
    assert 2 < rest[source.mask > 0].std() < 15
    # A change of intensity alone: one grey value goes to one grey value.
    assert np.corrcoef(rank(made["intensity"].image), rank(source.image))[0, 1] > 0.99
    gradient = [np.abs(np.diff(p.image, axis=0)).mean() for p in (made["blur"], source)]
    assert gradient[0] < 0.8 * gradient[1]
    assert 0.45 < dice(made["elastic"].mask, source.mask) < 0.97
    assert float(made["elastic"].mask.sum()) == pytest.approx(float(source.mask.sum()), rel=0.1)
    # Least squares finds the shares that the blend was made of.
    pair = np.stack([source.image.ravel(), other.image.ravel()], axis=1).astype(float)
    shares = np.linalg.lstsq(pair, made["blend"].image.ravel().astype(float), rcond=None)[0]
    assert 0.69 < shares[0] < 0.81
    assert shares.sum() == pytest.approx(1, abs=0.01)


def rank(image: np.ndarray) -> np.ndarray:
    step = max(1, image.size // 20000)
    return image.ravel()[::step].argsort(kind="stable").argsort()


def test_replica_of_nothing_known_is_refused(head_cts, angiograms):
    with pytest.raises(ConfigurationError, match="unknown replica kind"):
        make_replica("twin", head_cts[0], generator(0), head_cts[1])
    with pytest.raises(ConfigurationError, match="equal shapes"):
        make_replica("blend", head_cts[0], generator(0), angiograms[0])
    with pytest.raises(ConfigurationError, match="phantoms of"):
        make_replica("noise", replace(head_cts[0], use_case=""), generator(0), head_cts[1])


def test_cohort_tables_agree_with_the_files(cohort):
    truth, patients = table(cohort / "truth.csv"), table(cohort / "patients.csv")
    files = {
        part: sorted(p.name[:-7] for p in (cohort / part).iterdir()) for part in ("training", "validation", "synthetic")
    }
    for part, names in files.items():
        assert sorted(p.name[:-7] for p in (cohort / f"{part}_masks").iterdir()) == names
    assert [row["synthetic_id"] for row in truth] == files["synthetic"]
    assert sorted(row["id"] for row in patients) == sorted(files["training"] + files["validation"])
    assert files["training"][0] == "ct_001"
    assert sorted(row["transform"] for row in truth) == sorted([*REPLICA_KINDS, "novel", "novel"])
    owner = {row["id"]: row["patient"] for row in patients}
    trained = [owner[i] for i in files["training"]]
    assert len(trained) - len(set(trained)) == 2
    assert not set(trained) & {owner[i] for i in files["validation"]}
    for row in truth:
        assert row["kind"] == ("novel" if row["transform"] == "novel" else "replica")
        if row["kind"] == "novel":
            assert row["training_id"] == ""
        else:
            assert trained.count(owner[row["training_id"]]) == 1


def test_cohort_replicas_are_nearest_to_their_source(cohort):
    truth = table(cohort / "truth.csv")
    training = {p.name[:-7]: pixels(p) for p in (cohort / "training_masks").iterdir()}
    for row in truth:
        mask = pixels(cohort / "synthetic_masks" / f"{row['synthetic_id']}.nii.gz")
        best = max(training, key=lambda case: dice(training[case], mask))
        if row["kind"] == "replica":
            assert best == row["training_id"], row
        else:
            assert dice(training[best], mask) < 0.8
        if row["transform"] == "exact":
            image = pixels(cohort / "synthetic" / f"{row['synthetic_id']}.nii.gz")
            assert np.array_equal(image, pixels(cohort / "training" / f"{row['training_id']}.nii.gz"))


def test_files_are_trustworthy_nifti(cohort):
    image = nib.load(cohort / "training" / "ct_001.nii.gz")
    mask = nib.load(cohort / "training_masks" / "ct_001.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert mask.get_data_dtype() == np.uint8
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.allclose(image.affine, mask.affine)
    x, y, z = image.header.get_zooms()
    assert 1.6 < x < 2.0
    assert x == y
    assert 4 < z < 5
    assert image.header["scl_slope"] in (1.0,) or np.isnan(image.header["scl_slope"])
    assert set(np.unique(pixels(cohort / "training_masks" / "ct_001.nii.gz"))) == {0, 1}
    assert not [p for p in cohort.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]


def test_same_arguments_same_bytes(tmp_path):
    sizes = {"training": 2, "validation": 0, "novel": 1, "per_kind": 0}
    one, two = (make_demo_cohort("tof_mra", tmp_path / n, seed=1, **sizes) for n in "ab")
    names = sorted(p.relative_to(one) for p in one.rglob("*.*"))
    assert len(names) == 8
    assert all((one / n).read_bytes() == (two / n).read_bytes() for n in names)
    assert np.array_equal(pixels(one / "training" / "mra_001.nii.gz"), make_tof_mra(1_000_000).image)
    assert make_demo_cohort("tof_mra", one, seed=1, **sizes) == one
    with pytest.raises(InputError, match="another run"):
        make_demo_cohort("head_ct", one, **sizes)


@pytest.mark.parametrize("wrong", [{"training": 1}, {"novel": -1}, {"seed": -1}])
def test_wrong_sizes_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigurationError):
        make_demo_cohort("head_ct", tmp_path, **wrong)


def test_unknown_use_case_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="head_ct, tof_mra"):
        make_demo_cohort("knee", tmp_path)
