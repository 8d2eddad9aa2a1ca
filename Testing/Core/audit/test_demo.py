"""The demonstration: what it plants it finds, and what stops one of its use cases stops both."""

import pytest

import replica_detection as rd
from replica_detection.audit import demo
from replica_detection.phantom import REPLICA_KINDS

SMALL = {"training": 4, "validation": 1, "novel": 0, "per_kind": 0}


@pytest.mark.slow
@pytest.mark.confirms
def test_every_planted_kind_is_flagged_and_its_source_named(tmp_path):
    for outcome in rd.run_demo(tmp_path):
        planted = {row.kind: row for row in outcome.rows() if row.kind != demo.NOVEL}
        assert set(planted) == set(REPLICA_KINDS)
        for row in planted.values():
            assert row.replicas + row.suspicious == row.images == row.right == 1, f"{outcome.title}: {row}"
        assert outcome.page.is_file()


@pytest.mark.parametrize("failing, other", [("head_ct", "tof_mra"), ("tof_mra", "head_ct")])
def test_an_error_in_one_use_case_stops_the_other(tmp_path, failing, other):
    foreign = tmp_path / failing / "data" / "training" / "mine.nii.gz"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"")
    told = []
    with pytest.raises(rd.InputError, match="holds 1 images of another run"):
        rd.run_demo(tmp_path, **SMALL, progress=lambda *step: told.append(step))
    assert len(told) < SMALL["training"] + SMALL["validation"]
    assert foreign.exists() and not (tmp_path / other / "result").exists()
