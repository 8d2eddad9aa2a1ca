"""Phantoms: synthetic scans whose truth is known, and demo cohorts with planted replicas."""

from replica_detection.phantom.base import Phantom
from replica_detection.phantom.cohort import make_demo_cohort
from replica_detection.phantom.head_ct import make_head_ct
from replica_detection.phantom.replicas import REPLICA_KINDS, make_replica
from replica_detection.phantom.tof_mra import make_tof_mra

__all__ = ["REPLICA_KINDS", "Phantom", "make_demo_cohort", "make_head_ct", "make_replica", "make_tof_mra"]
