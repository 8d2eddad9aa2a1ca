"""Functions that the tests hand to workers."""

import os
import signal
import time

import numpy as np

from replica_detection.errors import InputError


def square(number: int) -> int:
    return number * number


def pid_after_a_while(number: int) -> tuple[int, int]:
    time.sleep(0.05)
    return number * number, os.getpid()


def bits(seed: int) -> bytes:
    """Bits of a product and of an eigenbasis, which depend on how they are split over threads."""
    a = np.random.default_rng(seed).standard_normal((200, 200)).astype(np.float32)
    return (a @ a).tobytes() + np.linalg.eigh(a @ a.T)[1].tobytes()


def threads(_: int) -> set[int]:
    """Threads of everything that has any, here."""
    import numba
    import SimpleITK
    import torch
    from threadpoolctl import threadpool_info

    from replica_detection.util.cores import kernel_threads

    found = {library["num_threads"] for library in threadpool_info()}
    itk = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    return found | {torch.get_num_threads(), itk, kernel_threads(), numba.get_num_threads()}


def fails_at_five(number: int) -> int:
    if number == 5:
        raise InputError("scan.nii.gz", "is empty", "Leave it out")
    return number


class NotPortableError(Exception):
    """Does not come out of a pickle as it went in."""

    def __init__(self, first: int, second: int):
        super().__init__(f"{first} and {second}")


def fails_without_pickle(number: int) -> int:
    raise NotPortableError(1, 2)


def kills_its_worker(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


class Counter:
    """Counts its calls, in each worker for itself."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, number: int) -> tuple[int, int]:
        self.calls += 1
        return os.getpid(), self.calls
