"""A MONAI Label app with tasks that misbehave, for the tests of the launch: over MONAI Label's own base or over ours.

The hardened launch makes it from ours (ODD_BASE=ours), so that the same misbehaviour meets both servers.
"""

import os
import signal
import tempfile
import time
from pathlib import Path

import monailabel.interfaces.app
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

if os.environ.get("ODD_BASE") == "ours":
    import replica_detection_server.app

    _base = replica_detection_server.app.ReplicaDetectionApp
else:
    _base = monailabel.interfaces.app.MONAILabelApp


class Odd(InferTask):
    def __init__(self, work, config=None):
        self.work = work
        super().__init__(InferType.OTHERS, [], 3, "misbehaves", config or {})

    def is_valid(self):
        return True

    def __call__(self, request):
        return self.work(request)


def opens(request):
    """Tells the size of whatever it is given to open."""
    return None, {"bytes": Path(request["image"]).stat().st_size}


def itself(request):
    """Gives the image itself back as its result."""
    return request["image"], {}


def slow(request):
    time.sleep(float(request.get("seconds", 3)))
    return None, {"slept": True}


def dies(request):
    """As a reader does that runs into a fault of its own."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def hoards(request):
    """Takes ever more memory, up to what any machine has."""
    held = []
    for _ in range(200):
        held.append(bytearray(os.urandom(1 << 20) * 32))
        time.sleep(0.02)
    return None, {"held": len(held)}


def fails(request):
    raise RuntimeError(f"cannot read {request['image']} of Smith^John")


def fresh():
    handle, path = tempfile.mkstemp(suffix=".nii.gz", prefix="result-")
    os.write(handle, b"result")
    os.close(handle)
    return path


def not_a_number(request):
    return None, {"score": float("nan"), "deep": [{"inf": float("inf")}]}


def no_json(request):
    """A result file beside a reply that JSON cannot hold."""
    return fresh(), {"object": object()}


def refuses(request):
    raise HTTPException(409, "not now")


class First(Strategy):
    def __init__(self):
        super().__init__("the first")

    def __call__(self, request, datastore):
        time.sleep(float(request.get("after") or 0))
        return {"id": sorted(datastore.list_images())[0]}


class Sleeping(ScoringMethod):
    def __init__(self):
        super().__init__("sleeps")

    def __call__(self, request, datastore):
        time.sleep(3)
        return {}


class Nothing(TrainTask):
    def __init__(self):
        super().__init__("trains nothing")

    def config(self):
        return {"epochs": 1}

    def stats(self):
        return {}

    def __call__(self, request, datastore):
        time.sleep(3)
        return {}


class MONAILabelApp(_base):
    """MONAI Label wants this name as the direct base."""


class OddApp(MONAILabelApp):
    def __init__(self, app_dir, studies, conf):
        super().__init__(app_dir, studies, conf)

    def init_infers(self):
        works = (opens, itself, dies, hoards, fails, not_a_number, no_json, refuses)
        odd = {work.__name__: Odd(work) for work in works}
        return {**super().init_infers(), **odd, "slow": Odd(slow, {"seconds": 3})}

    def init_strategies(self):
        return {**super().init_strategies(), "first": First()}

    def init_scoring_methods(self):
        return {**super().init_scoring_methods(), "sleeping": Sleeping()}

    def init_trainers(self):
        return {**super().init_trainers(), "nothing": Nothing()}
