"""Python imports this at the start of every process that a test starts.

There, too, the default embedding is then fitted in a second: see `few_views` in conftest.py.
"""

import sys
from importlib.machinery import PathFinder

NAME = "replica_detection.embedding.invariants"


class FewViews:
    """Finds that one module as Python would, and lowers its constant once it is loaded."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(cls)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                assert module.TOTAL_VIEWS > 100
                module.TOTAL_VIEWS = 100

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, FewViews)
