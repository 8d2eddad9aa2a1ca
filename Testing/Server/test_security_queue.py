"""The queue: so many at once, so many behind them, the rest refused; a place is free again however its work ended."""

import asyncio

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install '.[server]'")


from replica_detection_server.computing.queue import Queue
from replica_detection_server.errors import RefusedError
from replica_detection_server.incoming.error_responses import answer_of


def test_so_many_run_so_many_wait_the_rest_is_refused():
    async def scenario():
        queue, release = Queue(running=2, waiting=3), asyncio.Event()
        running = most = done = 0

        async def work():
            nonlocal running, most, done
            async with queue.slot():
                running += 1
                most = max(most, running)
                await release.wait()
                running -= 1
                done += 1

        tasks = [asyncio.create_task(work()) for _ in range(5)]
        await asyncio.sleep(0.01)
        with pytest.raises(RefusedError) as refused:
            async with asyncio.timeout(5), queue.slot():
                pass
        release.set()
        await asyncio.gather(*tasks)
        async with queue.slot():
            pass
        return most, done, queue.taken, refused.value

    most, done, taken, refused = asyncio.run(scenario())
    assert (most, done, taken) == (2, 5, 0)
    answer = answer_of(refused)
    assert answer.status_code == 503 and int((answer.headers or {})["Retry-After"]) > 0


def test_a_place_is_free_again_after_an_error_or_a_cancelled_wait():
    async def scenario():
        queue = Queue(running=1, waiting=1)
        with pytest.raises(ValueError):
            async with queue.slot():
                raise ValueError
        async with queue.slot():
            waiting = asyncio.create_task(queue.slot().__aenter__())
            await asyncio.sleep(0.01)
            assert queue.taken == 2
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert queue.taken == 0
        async with queue.slot():
            return queue.taken

    assert asyncio.run(scenario()) == 1
