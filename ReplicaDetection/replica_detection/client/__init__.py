"""Client of a Replica Detection server, for scripts and 3D Slicer. Imports with the standard library alone.

    from replica_detection.client import ReplicaClient

    server = ReplicaClient("http://127.0.0.1:8000")
    for item in server.worklist(verdict=("replica", "suspicious", "undecided")):
        print(item.synthetic_id, item.score, item.nearest_training_id)

Every method raises `errors.ServerError` (what went wrong in words for the user; `status` and `detail` for programs) or
one of its kinds. Methods that move files take `progress(stage, bytes, bytes in all or 0)` and `cancel`, a function such
as `threading.Event().is_set` that is asked between blocks and while waiting. One client may be used from many threads.
"""

from replica_detection.client.api import ReplicaClient

__all__ = ["ReplicaClient"]
