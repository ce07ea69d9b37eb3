"""Trees of RFC 6962, against its own test vectors and against pymerkle, which is somebody else's."""

from __future__ import annotations

import random

import pymerkle
import pytest

from strongroom.format import merkle

# Certificate Transparency's reference entries and roots (merkle_tree_test.cc).
ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = 70


def entry(number: int) -> bytes:
    return b"entry %d" % number * (number % 5)


@pytest.fixture(scope="module")
def oracle() -> pymerkle.InmemoryTree:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for number in range(SIZES):
        tree.append_entry(entry(number))
    return tree


@pytest.fixture(scope="module")
def tree() -> merkle.Tree:
    return merkle.Tree(merkle.leaf_hash(entry(number)) for number in range(SIZES))


def test_roots_of_the_reference() -> None:
    leaves = [merkle.leaf_hash(each) for each in ENTRIES]
    assert [merkle.root(leaves[:size]).hex() for size in range(1, 9)] == ROOTS
    assert merkle.root([]) == merkle.EMPTY == merkle.Tree().root()


def test_roots_and_frontiers(oracle: pymerkle.InmemoryTree, tree: merkle.Tree) -> None:
    frontier: tuple[bytes, ...] = ()
    for size in range(SIZES):
        if size:
            assert tree.root(size) == merkle.root_of(frontier) == oracle.get_root(size)
        frontier = merkle.grown(frontier, size, merkle.leaf_hash(entry(size)))
        assert len(frontier) == (size + 1).bit_count()
    with pytest.raises(ValueError, match="complete subtrees"):
        merkle.grown(frontier, SIZES + 1, bytes(32))


def test_every_inclusion(oracle: pymerkle.InmemoryTree, tree: merkle.Tree) -> None:
    for size in range(1, SIZES + 1):
        root = tree.root(size)
        for number in range(size):
            leaf = merkle.leaf_hash(entry(number))
            proof = tree.inclusion(number, size)
            assert merkle.included(leaf, number, size, proof, root)
            theirs = oracle.prove_inclusion(number + 1, size)
            assert [leaf, *proof] == [bytes.fromhex(h) for h in theirs.serialize()["path"]]


def test_every_consistency(oracle: pymerkle.InmemoryTree, tree: merkle.Tree) -> None:
    for second in range(1, SIZES + 1):
        for first in range(1, second + 1):
            proof = tree.consistency(first, second)
            assert merkle.consistent(first, second, proof, tree.root(first), tree.root(second))
            theirs = oracle.prove_consistency(first, second)
            pymerkle.verify_consistency(tree.root(first), tree.root(second), theirs)


def test_what_is_wrong_proves_nothing(tree: merkle.Tree) -> None:
    drawn = random.Random(6962)
    for _ in range(3000):
        size = drawn.randint(2, SIZES)
        number, first = drawn.randrange(size), drawn.randint(1, size - 1)
        leaf, root = merkle.leaf_hash(entry(number)), tree.root(size)
        proof = tree.inclusion(number, size)
        steps = tree.consistency(first, size)
        assert not merkle.included(leaf, number, size, spoiled(proof, drawn), root)
        assert not merkle.included(leaf, (number + 1) % size, size, proof, root)
        assert not merkle.included(leaf, number, size, proof, tree.root(size - 1))
        spoilt = spoiled(steps, drawn)
        assert not merkle.consistent(first, size, spoilt, tree.root(first), root)
        assert not merkle.consistent(first, size, steps, tree.root(first - 1), root)
    assert not merkle.included(leaf, 0, 0, [], merkle.EMPTY)
    assert not merkle.consistent(0, 3, [], merkle.EMPTY, tree.root(3))
    assert not merkle.consistent(4, 3, [], tree.root(4), tree.root(3))


def spoiled(proof: list[bytes], drawn: random.Random) -> list[bytes]:
    """One hash too few, one too many, one other, or two in each other's place."""
    at = drawn.randrange(len(proof))
    other = bytes([proof[at][0] ^ 1]) + proof[at][1:]
    ways = [
        proof[:at] + proof[at + 1 :],
        [*proof, proof[at]],
        [*proof[:at], other, *proof[at + 1 :]],
        [*proof[1:], proof[0]] if len(set(proof)) > 1 else proof[1:],
    ]
    return drawn.choice(ways)


def test_proofs_that_cannot_be(tree: merkle.Tree) -> None:
    for call in (
        lambda: tree.inclusion(5, 5),
        lambda: tree.inclusion(0, SIZES + 1),
        lambda: tree.consistency(0, 5),
        lambda: tree.consistency(6, 5),
        lambda: tree.root(SIZES + 1),
    ):
        with pytest.raises(ValueError, match=r"leaf|leaves"):
            call()
