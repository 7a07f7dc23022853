"""An actor that does what it is given, in a file that imports neither torch nor RLlib: it starts at once."""

from __future__ import annotations

import ray


class Echo:
    """Calls what it is given with itself."""

    def apply(self, func: object) -> object:
        return func(self)  # type: ignore[operator]

    def ping(self) -> str:
        return "pong"

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())
