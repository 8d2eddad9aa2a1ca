"""Copies that moved are found, and moved back as they were moved; new images gain nothing by being aligned."""

from itertools import pairwise

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from scipy.spatial.transform import Rotation

from Core.made_up import write
from replica_detection.detection.detector import detect
from replica_detection.detection.options import DetectionOptions
from replica_detection.index.build import build_index
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import Volume
from replica_detection.measures import MEASURES
from replica_detection.measures.aligned import voxel_shape
from replica_detection.preparation.prepare import PreparedImage, plan
from replica_detection.preparation.profiles import PROFILES
from replica_detection.registration.local import Neighbourhoods, resample_level
from replica_detection.registration.pyramid import levels, pyramid, structure
from replica_detection.registration.retrieval import TrainingPyramids, correlations_in_place
from replica_detection.registration.search import mirrorings
from replica_detection.registration.transforms import alignment_of, resample, to_training

SHAPE, SPACING = (40, 44, 36), (1.0, 1.0, 1.5)
AFFINE = np.diag([*SPACING, 1.0])
TRAINING = 12


def scan(seed: int, shape=SHAPE) -> np.ndarray:
    """A body with inner structure, different for each seed, inside an empty border."""
    rng = np.random.default_rng(seed)
    fine = ndimage.gaussian_filter(rng.standard_normal(shape), 1.6)
    coarse = ndimage.gaussian_filter(rng.standard_normal(shape), 4)
    body = np.zeros(shape)
    body[tuple(slice(n // 6, n - n // 6) for n in shape)] = 1
    texture = 0.6 + 0.3 * fine / np.abs(fine).max() + 0.3 * coarse / np.abs(coarse).max()
    return (ndimage.gaussian_filter(body, 1.5) * texture).astype(np.float32)


def motion(mirrored=(), degrees=(0.0, 0.0, 0.0), scale=1.0, mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    """(3, 4) from a position of the copy to one of the original, mm from the centre."""
    mirror = np.diag([-1.0 if axis in mirrored else 1.0 for axis in range(3)])
    forward = scale * Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ mirror
    back = np.linalg.inv(forward)
    return np.column_stack([back, -back @ np.array(mm)])


def copy_of(image: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The image moved by SimpleITK, by another's code than the one under test."""
    itk = SimpleITK.GetImageFromArray(image.T)
    itk.SetSpacing(SPACING)
    centre = (np.array(image.shape) - 1) / 2 * np.array(SPACING)
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(there[:, :3].ravel().tolist())
    transform.SetCenter(centre.tolist())
    transform.SetTranslation(there[:, 3].tolist())
    return SimpleITK.GetArrayFromImage(SimpleITK.Resample(itk, itk, transform, SimpleITK.sitkLinear, 0.0)).T.astype(
        np.float32
    )


@pytest.fixture(scope="module")
def cohort() -> TrainingPyramids:
    chain = levels(SHAPE, SPACING)
    made = [pyramid(scan(s), chain) for s in range(TRAINING)]
    coarse, middle, fine = (np.stack([p[i] for p in made]) for i in range(3))
    return TrainingPyramids(chain, coarse, middle, lambda positions: fine[list(positions)])


MOTIONS = {
    "as it is": {},
    "mirrored left-right": {"mirrored": (0,)},
    "mirrored head-foot and front-back": {"mirrored": (1, 2)},
    "moved": {"mm": (4.0, -3.0, 4.5)},
    "moved by a part of a voxel": {"mm": (0.4, 1.6, -0.7)},
    "rotated": {"degrees": (10.0, -8.0, 12.0)},
    "scaled up": {"scale": 1.12},
    "scaled down": {"scale": 0.88},
    "everything": {"mirrored": (0,), "degrees": (-7.0, 9.0, 5.0), "scale": 1.08, "mm": (2.0, -2.0, 3.0)},
}


@pytest.mark.parametrize("name", MOTIONS)
def test_what_was_moved_is_found_and_moved_back(cohort, name):
    asked = MOTIONS[name]
    original = scan(5)
    there = motion(**asked)
    copy = copy_of(original, there)
    placed = cohort.candidates(pyramid(copy, cohort.chain), np.ones(TRAINING, bool))
    assert placed[0].training == 5
    preparation = plan(PROFILES["generic"], [Volume(original, AFFINE, True)])
    found = alignment_of(placed[0], preparation, AFFINE, AFFINE)
    assert found.flips == tuple(axis in asked.get("mirrored", ()) for axis in range(3))
    difference = (
        Rotation.from_euler("xyz", found.rotation_degrees, degrees=True)
        * Rotation.from_euler("xyz", asked.get("degrees", (0, 0, 0)), degrees=True).inv()
    )
    assert np.degrees(difference.magnitude()) < 1
    assert found.scale == pytest.approx(asked.get("scale", 1), abs=0.01)
    assert np.abs(np.array(found.translation_mm) - asked.get("mm", (0, 0, 0))).max() < 0.5
    # By the matrix in file coordinates the training image comes to lie on the copy.
    back = resample(original, to_training(found, preparation, AFFINE, AFFINE), preparation)
    inside = ndimage.binary_erosion(copy > 0.2, iterations=3)
    assert np.corrcoef(back[inside], copy[inside])[0, 1] > 0.97
    assert found.correlation_before <= found.correlation + 1e-6


def test_a_copy_turned_on_its_voxels_as_if_they_were_cubes_is_found():
    shape, spacing = (44, 40, 24), (1.0, 1.0, 2.5)
    chain = levels(shape, spacing)
    images = [scan(s, shape) for s in range(TRAINING)]
    made = [pyramid(image, chain) for image in images]
    coarse, middle, fine = (np.stack([p[i] for p in made]) for i in range(3))
    turn = Rotation.from_euler("xyz", (11, -9, 10), degrees=True).as_matrix()
    centre = (np.array(shape) - 1) / 2
    copy = ndimage.affine_transform(images[5], turn, centre - turn @ centre, order=1)
    found = {}
    for voxel in ((1.0, 1.0, 1.0), voxel_shape(spacing)):
        cohort = TrainingPyramids(chain, coarse, middle, lambda positions: fine[list(positions)], voxel=voxel)
        found[voxel] = cohort.candidates(pyramid(copy, chain), np.ones(TRAINING, bool))[0]
    plain, oblong = found.values()
    assert oblong.training == 5 and oblong.correlation > 0.98 > 0.93 > plain.correlation
    # In mm the turn is a shear as well.
    length = np.array(spacing)
    np.testing.assert_allclose(oblong.matrix, turn * length[:, None] / length[None, :], atol=0.02)
    affine = np.diag([*spacing, 1.0])
    preparation = plan(PROFILES["generic"], [Volume(images[5], affine, True)])
    assert alignment_of(oblong, preparation, affine, affine).words.endswith("sheared")
    # What was turned in mm is found as before.
    there = motion(degrees=(8.0, -6.0, 9.0))[:, :3]
    in_voxels = there * length[None, :] / length[:, None]
    copy = ndimage.affine_transform(images[7], in_voxels, centre - in_voxels @ centre, order=1)
    placed = cohort.candidates(pyramid(copy, chain), np.ones(TRAINING, bool))[0]
    assert placed.training == 7
    assert not alignment_of(placed, preparation, affine, affine).sheared
    np.testing.assert_allclose(placed.matrix, there, atol=0.02)


def test_matrix_leads_from_file_to_file(cohort):
    """Two files that lie elsewhere in the room and store their axes in another direction."""
    original, there = scan(3), motion(degrees=(0, 0, 9), mm=(3, 0, 0))
    preparation = plan(PROFILES["generic"], [Volume(original, AFFINE, True)])
    query_affine, training_affine = AFFINE.copy(), AFFINE.copy() @ np.diag([-1, 1, 1, 1])
    query_affine[:3, 3], training_affine[:3, 3] = (10, 20, -30), (70, -5, 8)
    placed = cohort.candidates(pyramid(copy_of(original, there), cohort.chain), np.ones(TRAINING, bool))[0]
    found = alignment_of(placed, preparation, query_affine, training_affine)
    voxel = np.array([20.0, 25.0, 15.0, 1.0])
    position = (voxel[:3] - (np.array(SHAPE) - 1) / 2) * np.array(SPACING)
    at = there[:, :3] @ position + there[:, 3]
    in_training = [*(at / np.array(SPACING) + (np.array(SHAPE) - 1) / 2), 1.0]
    lies = np.array(found.matrix) @ training_affine @ in_training
    assert np.abs(lies - query_affine @ voxel).max() < 0.5


def test_an_exact_copy_needs_no_motion_and_an_empty_image_matches_nothing(cohort):
    placed = cohort.candidates(pyramid(scan(2), cohort.chain), np.ones(TRAINING, bool))
    preparation = plan(PROFILES["generic"], [Volume(scan(2), AFFINE, True)])
    assert placed[0].training == 2
    assert placed[0].merit > 1 - 1e-6
    assert alignment_of(placed[0], preparation, AFFINE, AFFINE).words == "in place"
    assert cohort.candidates(pyramid(np.zeros(SHAPE, np.float32), cohort.chain), np.ones(TRAINING, bool)) == []
    assert cohort.candidates(pyramid(scan(2), cohort.chain), np.zeros(TRAINING, bool)) == []


def test_nobody_is_named_who_may_not_be(cohort):
    allowed = np.ones(TRAINING, bool)
    allowed[2] = False
    placed = cohort.candidates(pyramid(scan(2), cohort.chain), allowed)
    assert 2 not in [p.training for p in placed]
    assert len({p.training for p in placed}) == len(placed) == 10
    allowed[:] = False
    allowed[4] = True
    assert [p.training for p in cohort.candidates(pyramid(scan(2), cohort.chain), allowed)] == [4]


def test_the_search_among_some_cases_finds_what_the_search_among_all_finds_there(cohort):
    query, some = pyramid(scan(3), cohort.chain), np.array([7, 2, 3, 11])
    ways = mirrorings(cohort.chain[0])
    for found, everything in zip(
        (*cohort.shift_search.shifts(query[0], some), correlations_in_place(query[1], cohort.middle, ways, some)),
        (*cohort.shift_search.shifts(query[0]), correlations_in_place(query[1], cohort.middle, ways)),
        strict=True,
    ):
        np.testing.assert_allclose(found, everything[some], atol=1e-5)


def test_the_search_in_small_blocks_is_the_same(cohort, monkeypatch):
    query = pyramid(scan(3), cohort.chain)
    before = cohort.candidates(query, np.ones(TRAINING, bool))
    monkeypatch.setattr("replica_detection.registration.search.BLOCK", 5)
    monkeypatch.setattr("replica_detection.registration.retrieval.ROWS", 3)
    after = cohort.candidates(query, np.ones(TRAINING, bool))
    assert [p.training for p in before] == [p.training for p in after]
    np.testing.assert_allclose([p.merit for p in before], [p.merit for p in after], atol=1e-6)


def test_correlations_in_place_are_those_of_numpy(cohort):
    query = pyramid(scan(7), cohort.chain)[1]
    ways = mirrorings(cohort.chain[1])
    found = correlations_in_place(query, cohort.middle, ways)
    inside = structure(query)
    for n in (0, 7, 11):
        for f, way in enumerate(ways):
            mirrored = cohort.middle[n][tuple(slice(None, None, int(s)) for s in way)]
            assert found[n, f] == pytest.approx(np.corrcoef(query[inside], mirrored[inside])[0, 1], abs=1e-5)
    assert found[7, 0] == pytest.approx(1, abs=1e-6)
    assert not correlations_in_place(np.zeros_like(query), cohort.middle, ways).any()


def test_local_correlation_is_that_of_each_neighbourhood():
    rng = np.random.default_rng(0)
    a = ndimage.gaussian_filter(rng.standard_normal((14, 15, 16)), 1).astype(np.float32)
    b = (0.5 * a + ndimage.gaussian_filter(rng.standard_normal(a.shape), 1)).astype(np.float32)
    a, b = a / a.std(), b / b.std()
    found = Neighbourhoods(a).correlation(b)
    places = np.argwhere(structure(a))
    assert len(found) == len(places)
    offsets = np.arange(-3, 4)
    one = np.exp(-0.5 * (offsets / 1.5) ** 2)
    weights = (one[:, None, None] * one[:, None] * one).ravel() / one.sum() ** 3
    checked = 0
    for place, value in zip(places, found, strict=True):
        if (place < 3).any() or (place >= np.array(a.shape) - 3).any():
            continue
        part = tuple(slice(p - 3, p + 4) for p in place)
        x, y = a[part].ravel().astype(float), b[part].ravel().astype(float)
        x, y = x - weights @ x, y - weights @ y
        expected = (weights @ (x * y) + 1e-3) / (np.sqrt((weights @ (x * x)) * (weights @ (y * y))) + 1e-3)
        assert value == pytest.approx(expected, abs=1e-4)
        checked += 1
    assert checked > 100
    np.testing.assert_allclose(Neighbourhoods(a).correlation(a), 1, atol=1e-6)
    half = b.copy()
    half[:7] = np.nan
    assert len(Neighbourhoods(a).correlation(half)) == structure(a)[7:].sum()


def test_what_is_laid_on_a_query_is_there_where_its_field_of_view_covers_it(cohort):
    level, image = cohort.chain[2], cohort.fine([3])[0]
    assert np.array_equal(resample_level(image, np.eye(3), np.zeros(3), level), image)
    shifted = resample_level(image, np.eye(3), np.array([2 * level.spacing[0], 0, 0]), level)
    assert np.array_equal(shifted[:-2], image[2:]) and np.isnan(shifted[-2:]).all()
    mirror = np.diag([1.0, -1.0, 1.0])
    np.testing.assert_allclose(resample_level(image, mirror, np.zeros(3), level), image[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("mirrored", [(), (2,)])
def test_a_copy_half_painted_over_is_named_and_stands_out_by_what_is_left(mirrored):
    rng = np.random.default_rng(1)
    folder_of = [scan(100 + n) for n in range(30)]
    copy = folder_of[17].copy()
    copy[: SHAPE[0] // 2] = scan(999)[: SHAPE[0] // 2]
    copy = np.flip(copy + rng.normal(0, 0.005, SHAPE), mirrored).astype(np.float32)
    preparation = plan(PROFILES["generic"], [Volume(folder_of[0], AFFINE, True)])
    whole, part = (MEASURES[name](preparation) for name in ("ncc_aligned", "lncc_aligned"))
    query = {k: v[None] for k, v in whole.features(PreparedImage(copy, None)).items()}
    index = Stored([whole.features(PreparedImage(image, None)) for image in folder_of])
    placed = whole.candidates(query, index, np.ones(30, bool))
    assert 17 in [p.training for p in placed]
    found = {m.name: m.compare(query, placed, index) for m in (whole, part)}
    ratio = {name: pairs[0][0] / np.mean([distance for distance, _ in pairs]) for name, pairs in found.items()}
    assert ratio["lncc_aligned"] < 0.3 < ratio["ncc_aligned"]
    nearest = found["lncc_aligned"][0][1]
    assert nearest.training == 17
    assert [axis for axis in range(3) if nearest.mirroring[axis] < 0] == list(mirrored)


def test_a_warp_brings_a_bent_copy_back_and_new_scans_less_so():
    folder_of = [scan(100 + n) for n in range(20)]
    rng = np.random.default_rng(0)
    field = np.stack([ndimage.gaussian_filter(rng.standard_normal(SHAPE), 7) for _ in range(3)])
    bent = np.indices(SHAPE) + field / np.abs(field).max() * 6
    copy = ndimage.map_coordinates(folder_of[7], bent, order=1, mode="nearest").astype(np.float32)
    preparation = plan(PROFILES["generic"], [Volume(folder_of[0], AFFINE, True)])
    plain, elastic = (MEASURES[name](preparation) for name in ("ncc_aligned", "ncc_elastic"))
    index = Stored([plain.features(PreparedImage(image, None)) for image in folder_of])
    ratio = {}
    for shown in (copy, folder_of[3]):
        query = {k: v[None] for k, v in plain.features(PreparedImage(shown, None)).items()}
        placed = plain.candidates(query, index, np.ones(20, bool))
        for m in (plain, elastic):
            found = m.compare(query, placed, index)
            ratio[m.name] = found[0][0] / np.mean([distance for distance, _ in found])
            assert found[0][1].training == (7 if shown is copy else 3)
        if shown is copy:
            assert ratio["ncc_elastic"] < 0.6 < 0.8 < ratio["ncc_aligned"]
    assert ratio["ncc_elastic"] == 0, "an exact copy needs no warp"


def tube(seed: int) -> np.ndarray:
    """A thin vessel on an empty background."""
    rng = np.random.default_rng(seed)
    walk = rng.standard_normal((60, 3)).cumsum(0)
    walk = (walk - walk.mean(0)) / np.abs(walk - walk.mean(0)).max(0)
    at = np.rint((walk * 0.42 + 0.5) * (np.array(SHAPE) - 1)).astype(int)
    image = np.zeros(SHAPE)
    for first, second in pairwise(at):
        for t in np.linspace(0, 1, 12):
            image[tuple(np.rint(first + t * (second - first)).astype(int))] = 1
    return (ndimage.gaussian_filter(image, 1.2) > 0.08).astype(np.float32)


def test_vessels_that_lost_a_part_are_among_the_candidates_and_compared_where_they_lie():
    images = [tube(n) for n in range(250)]
    preparation = plan(PROFILES["generic"], [Volume(images[0], AFFINE, True)])
    measure = MEASURES["lncc_aligned"](preparation)
    index = Stored([measure.features(PreparedImage(image, None)) for image in images])
    named, in_place, distances = [], [], []
    for n in range(16):
        copy = images[n].copy()
        copy[: round(0.65 * SHAPE[0])] = 0
        query = {k: v[None] for k, v in measure.features(PreparedImage(np.flip(copy, n % 3), None)).items()}
        placed = measure.candidates(query, index, np.ones(250, bool))
        named.append(n in [p.training for p in placed])
        distance, nearest = measure.compare(query, placed, index)[0]
        in_place.append(nearest.training == n and np.array_equal(nearest.matrix, np.diag(nearest.mirroring)))
        distances.append(distance)
    assert np.mean(named) >= 0.85  # 0.75 where they are looked for among a thousand voxels alone
    assert np.mean(in_place) >= 0.8, in_place
    assert np.median(distances) < 0.01, distances


class Stored:
    """Features of a cohort in memory, as an index gives them."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def features(self, positions, names):
        return {name: np.stack([self.rows[i][name] for i in positions]) for name in names}

    def packed(self, name):
        return np.stack([row[name] for row in self.rows])


def test_flat_images_are_placed_within_their_plane():
    shape, spacing = (60, 70), (1.0, 1.0)
    images = [scan(s, (60, 70)) for s in range(8)]
    chain = levels(shape, spacing)
    made = [pyramid(i, chain) for i in images]
    coarse, middle, fine = (np.stack([p[i] for p in made]) for i in range(3))
    cohort = TrainingPyramids(chain, coarse, middle, lambda positions: fine[list(positions)])
    copy = ndimage.shift(ndimage.rotate(images[4][::-1], 8, reshape=False, order=1), (3, -2), order=1)
    preparation = plan(PROFILES["chest-xray"], [Volume(images[4], np.eye(4), True)])
    found = cohort.candidates(pyramid(copy.astype(np.float32), chain), np.ones(8, bool))[0]
    assert found.training == 4
    alignment = alignment_of(found, preparation, np.eye(4), np.eye(4))
    assert alignment.flips[0] != alignment.flips[1] or alignment.flips == (True, False, False)
    assert alignment.degrees == pytest.approx(8, abs=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Training, unseen and new scans; a mirrored, a shifted and a turned copy among the synthetic ones."""
    folder = tmp_path_factory.mktemp("moved")
    for part, seeds in (("training", range(30)), ("unseen", range(100, 130)), ("synthetic", range(200, 215))):
        for seed in seeds:
            write(folder / part / f"{part}_{seed:03d}.nii.gz", scan(seed), AFFINE)
    for name, seed, asked in (
        ("mirrored", 3, {"mirrored": (0,)}),
        ("shifted", 8, {"mm": (4, 4, -4.5)}),
        ("turned", 11, {"degrees": (0, 12, 8)}),
        ("exact", 15, {}),
    ):
        write(folder / "synthetic" / f"copy_{name}.nii.gz", copy_of(scan(seed), motion(**asked)), AFFINE)
    return folder


@pytest.fixture(scope="module")
def results(data):
    measures = ("mae", "rmse", "ssim", "ncc_aligned")
    index = build_index(Cohort.read(data / "training"), data / "t.rdindex", measures=measures)
    unseen, synthetic = Cohort.read(data / "unseen"), Cohort.read(data / "synthetic")
    return {
        align: detect(synthetic, index, validation=unseen, options=DetectionOptions(align=align))
        for align in (True, False)
    }


def test_moved_copies_are_called_by_the_pipeline_and_only_with_alignment(results):
    truth = {"mirrored": "training_003", "shifted": "training_008", "turned": "training_011", "exact": "training_015"}
    by_id = {align: {c.synthetic_id: c for c in r.summary} for align, r in results.items()}
    for name, training in truth.items():
        found = by_id[True][f"copy_{name}"]
        assert (found.verdict, found.nearest_training_id) == ("replica", training)
        assert "voxel" in found.levels_flagged
    assert by_id[False]["copy_turned"].verdict != "replica"
    # The voxels of a mirrored copy are known again without alignment, those of a turned one are not.
    assert by_id[False]["copy_mirrored"].reason == "identical"
    flagged = [c for c in results[True].summary if c.synthetic_id.startswith("synthetic") and c.verdict != "novel"]
    assert len(flagged) <= 3  # 15 new images; more than 3 has a probability of 0.5 % at the nominal rate


def test_the_result_says_how_the_copy_was_moved_and_survives_the_disk(results, tmp_path):
    result = results[True]
    found = result.alignment("copy_mirrored", "training_003")
    assert found is not None and found.words.startswith("mirrored left-right")
    assert result.alignment("copy_exact", "training_015").words == "in place"
    assert result.alignment("copy_exact", "no such case") is None
    result.write(tmp_path / "r")
    assert type(result).read(tmp_path / "r").alignments == result.alignments


def test_without_alignment_the_published_pipeline_is_left(results):
    assert {m.measure for m in results[False].matches} == {"mae", "rmse", "ssim"}
    assert results[False].alignments == ()
    for plain in results[False].matches:
        same = next(
            m for m in results[True].matches if (m.synthetic_id, m.measure) == (plain.synthetic_id, plain.measure)
        )
        assert same == plain
