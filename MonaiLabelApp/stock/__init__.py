"""The routes that MONAI Label's clients use, written anew over its app object.

MONAI Label's own are `async def` around blocking work, open any file that a request names, and answer 500 without a
reason. These are plain `def`: they run in worker threads, so one request does not stop the others.
"""

from fastapi import FastAPI

from replica_detection_server.stock import datastore, infer, jobs, overview, sessions


def register(app: FastAPI) -> None:
    for group in (overview, infer, jobs, datastore, sessions):
        app.include_router(group.router)
