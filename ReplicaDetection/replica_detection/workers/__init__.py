"""Places where work runs: this process, worker processes of this machine, a cluster of dask.distributed."""

from replica_detection.workers.runner import InProcess, Runner, runner_for

__all__ = ["InProcess", "Runner", "runner_for"]
