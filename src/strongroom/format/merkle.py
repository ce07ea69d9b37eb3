"""Merkle trees of RFC 6962: hashes, frontiers, roots, proofs of inclusion and of consistency.

    leaf        SHA-256(00 ‖ entry)
    node        SHA-256(01 ‖ left ‖ right)
    frontier    roots of the complete subtrees that a tree of n leaves falls into, the largest first:
                one for each bit of n. A tree grows by its frontier alone

Proofs are lists of hashes, as in RFC 6962 2.1.1 and 2.1.2; verifying is by RFC 9162 2.1.3.2 and
2.1.4.2. Every hash has 32 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

HASH = 32
EMPTY = sha256(b"").digest()
"""The root of a tree without leaves."""


def leaf_hash(entry: bytes) -> bytes:
    """Hash of an entry."""
    return sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of two subtrees."""
    return sha256(b"\1" + left + right).digest()


def grown(frontier: Sequence[bytes], size: int, leaf: bytes) -> tuple[bytes, ...]:
    """The frontier of a tree of `size` leaves with one more, given by its leaf hash."""
    if len(frontier) != size.bit_count():
        raise ValueError(f"a tree of {size} leaves has {size.bit_count()} complete subtrees")
    parts = [*frontier, leaf]
    while size & 1:  # as many subtrees of one size as there are ones at the end
        right = parts.pop()
        parts[-1] = node_hash(parts[-1], right)
        size >>= 1
    return tuple(parts)


def root_of(frontier: Sequence[bytes]) -> bytes:
    """The root of the tree that has this frontier."""
    if not frontier:
        return EMPTY
    *rest, root = frontier
    for left in reversed(rest):
        root = node_hash(left, root)
    return root


def root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes."""
    frontier: tuple[bytes, ...] = ()
    for size, leaf in enumerate(leaves):
        frontier = grown(frontier, size, leaf)
    return root_of(frontier)


class Tree:
    """Leaf hashes, with every complete subtree kept, so that a proof costs its own length."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.add(leaf)

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0])

    def add(self, leaf: bytes) -> None:
        """Append a leaf hash."""
        self._levels[0].append(leaf)
        level = 0
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(node_hash(*self._levels[level][-2:]))
            level += 1

    def root(self, size: int | None = None) -> bytes:
        """The root over the first `size` leaves."""
        size = self.size if size is None else self._checked(size)
        return EMPTY if size == 0 else self._over(0, size)

    def inclusion(self, number: int, size: int) -> list[bytes]:
        """Proof that leaf `number` is in the tree of the first `size` leaves."""
        if not 0 <= number < self._checked(size):
            raise ValueError(f"there is no leaf {number} among {size}")
        return self._path(number, 0, size)

    def consistency(self, first: int, second: int) -> list[bytes]:
        """Proof that the tree of `second` leaves begins with that of `first`, 0 < first."""
        if not 0 < first <= self._checked(second):
            raise ValueError(f"a tree of {second} leaves does not begin with one of {first}")
        return self._subproof(first, 0, second, whole=True)

    def _checked(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise ValueError(f"there are {self.size} leaves, not {size}")
        return size

    def _over(self, begin: int, end: int) -> bytes:
        """The root over leaves [begin, end); `begin` is a multiple of the power of two above."""
        count = end - begin
        if count.bit_count() == 1:
            level = count.bit_length() - 1
            return self._levels[level][begin >> level]
        split = begin + _split(count)
        return node_hash(self._over(begin, split), self._over(split, end))

    def _path(self, number: int, begin: int, end: int) -> list[bytes]:
        if end - begin == 1:
            return []
        split = begin + _split(end - begin)
        if number < split:
            return [*self._path(number, begin, split), self._over(split, end)]
        return [*self._path(number, split, end), self._over(begin, split)]

    def _subproof(self, first: int, begin: int, end: int, *, whole: bool) -> list[bytes]:
        if first == end:
            return [] if whole else [self._over(begin, end)]
        split = begin + _split(end - begin)
        if first <= split:
            proof = self._subproof(first, begin, split, whole=whole)
            return [*proof, self._over(split, end)]
        proof = self._subproof(first, split, end, whole=False)
        return [*proof, self._over(begin, split)]


def included(leaf: bytes, number: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Does the proof show that the leaf is number `number` of the `size` under `root`?"""
    if not 0 <= number < size:
        return False
    node, last, found = number, size - 1, leaf
    for part in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = node_hash(part, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, part)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def consistent(
    first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes
) -> bool:
    """Does the proof show that the tree of `second` leaves begins with that of `first`?"""
    if not 0 < first <= second:
        return False
    if first == second:
        return not proof and first_root == second_root
    path = [first_root, *proof] if first.bit_count() == 1 else list(proof)
    if not path:
        return False
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for part in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(part, old), node_hash(part, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, part)
        node, last = node >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1
