"""Options of trainings: which of them a resumed training must keep, and that they read the same from JSON."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from replica_detection.embedding.training_options import EncoderOptions
from replica_detection.segmentation.training_options import SegmentationOptions

# They change how long a training runs, and where; not what it computes.
FREE = {"epochs", "patience", "device", "resume", "cache_mb"}
# For each option, a value other than its default.
OTHER: dict[type, dict[str, Any]] = {
    EncoderOptions: {
        "kind": "deepssim",
        "profile": "brain-mr",
        "network": "resnet18",
        "epochs": 3,
        "batch": 4,
        "learning_rate": 0.01,
        "validate_every": 2,
        "patience": 3,
        "seed": 1,
        "rotation_degrees": 7.0,
        "flips": (0,),
        "contrast": 0.1,
        "max_size": 16,
        "as_published": True,
        "device": "cpu",
        "resume": False,
    },
    SegmentationOptions: {
        "profile": "brain-mr",
        "labels": {3: "vessels", 1: "tumour"},
        "network": "segresnet",
        "epochs": 3,
        "spacing_mm": (1.0, 1.0, 2.0),
        "patch": (32, 32, 32),
        "batch": 1,
        "crops": 1,
        "learning_rate": 0.01,
        "validate_every": 2,
        "patience": 3,
        "seed": 1,
        "flips": (),
        "device": "cpu",
        "resume": False,
        "cache_mb": 1,
    },
}


@pytest.mark.parametrize("kind", list(OTHER))
def test_every_option_is_fixed_or_free(kind: type) -> None:
    assert {f.name for f in fields(kind)} == set(OTHER[kind])
    before = json.dumps(kind().fixed_options())
    for name, value in OTHER[kind].items():
        changed = json.dumps(replace(kind(), **{name: value}).fixed_options()) != before
        assert changed == (name not in FREE), name


def test_the_order_of_labels_does_not_matter() -> None:
    one, other = (SegmentationOptions(labels=labels).fixed_options() for labels in ({1: "a", 2: "b"}, {2: "b", 1: "a"}))
    assert json.dumps(one) == json.dumps(other)


def test_lists_are_as_good_as_tuples() -> None:
    assert EncoderOptions(flips=[0, 1]) == EncoderOptions(flips=(0, 1))
    assert SegmentationOptions(patch=[32, 32, 32]) == SegmentationOptions(patch=(32, 32, 32))
