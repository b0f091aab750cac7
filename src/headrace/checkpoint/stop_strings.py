"""Finding stop strings in a text that arrives in parts (Aho and Corasick, 1975)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from headrace.link.errors import InvalidRequest


class StopMatch(NamedTuple):
    """A stop string was completed by the character before index ``end`` of the fed text."""

    stop: str
    end: int


class _Node:
    __slots__ = ("children", "depth", "fallback", "stop")

    def __init__(self, depth: int) -> None:
        self.children: dict[str, _Node] = {}
        self.fallback: _Node | None = None
        self.depth = depth
        self.stop: str | None = None


class StopMatcher:
    """An automaton over the stop strings; its state is the longest possible beginning of one.

    The first stop string to be complete wins, the longest where several end together: what is
    found does not depend on how the text was cut into parts.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._root = _Node(0)
        for stop in stops:
            if not stop:
                raise InvalidRequest("stop", stop, "a non-empty string")
            self._insert(stop)
        self._link()
        self._node = self._root

    @property
    def held(self) -> int:
        """Number of last characters that may be the beginning of a stop string."""
        return self._node.depth

    def feed(self, text: str) -> StopMatch | None:
        """Advance over ``text``, up to the first completed stop string."""
        node = self._node
        root = self._root
        if node is root and root.children.keys().isdisjoint(text):
            return None
        for index, character in enumerate(text):
            while True:
                following = node.children.get(character)
                if following is not None:
                    node = following
                    break
                if node.fallback is None:
                    break
                node = node.fallback
            if node.stop is not None:
                self._node = root
                return StopMatch(node.stop, index + 1)
        self._node = node
        return None

    def _insert(self, stop: str) -> None:
        node = self._root
        for character in stop:
            child = node.children.get(character)
            if child is None:
                child = node.children[character] = _Node(node.depth + 1)
            node = child
        node.stop = stop

    def _link(self) -> None:
        queue = deque([self._root])
        while queue:
            node = queue.popleft()
            for character, child in node.children.items():
                fallback = node.fallback
                while fallback is not None and character not in fallback.children:
                    fallback = fallback.fallback
                child.fallback = self._root if fallback is None else fallback.children[character]
                if child.stop is None:
                    child.stop = child.fallback.stop
                queue.append(child)
