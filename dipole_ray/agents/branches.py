"""Parts of a step that do not need each other, side by side on a GPU, which one of them alone leaves mostly idle."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import torch

Found = TypeVar("Found")
Arguments = TypeVarTuple("Arguments")


class Branches:
    """Runs functions on streams of their own, beside what the current stream does next; in turn, unless told so.

    What autograd later does for a function runs on the function's stream.
    """

    def __init__(self, side_by_side: bool = False) -> None:
        self._side_by_side = side_by_side
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._running: set[torch.cuda.Stream] = set()
        # The allocator gives memory away by the order of the stream that it was taken on, and knows of no other reader.
        self._kept: list[object] = []

    def beside(self, name: str, function: Callable[[*Arguments], Found], *arguments: *Arguments) -> Found:
        """Return what the function does, started on the branch `name` after all that the current stream has begun.

        Tensors from elsewhere must be among the arguments; the result may be used on this branch, or after `join`.
        """
        if not self._side_by_side:
            return function(*arguments)
        if name not in self._streams:
            self._streams[name] = torch.cuda.Stream()
        stream = self._streams[name]
        self._running.add(stream)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = function(*arguments)
        self._kept.append((function, arguments, found))
        return found

    def apart(self, function: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Run a function on a branch of the current stream's own, which goes on without it until `join`."""
        name = f"of stream {torch.cuda.current_stream().cuda_stream}" if self._side_by_side else ""
        self.beside(name, function, *arguments)

    def join(self) -> None:
        """Let the current stream wait for all branches."""
        for stream in self._running:
            torch.cuda.current_stream().wait_stream(stream)

    def end(self) -> None:
        """Join, and let go of what the branches read and wrote."""
        self.join()
        self._running.clear()
        self._kept.clear()
