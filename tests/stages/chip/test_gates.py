"""The gates' recipe, checked against a slow reading of it and against published Philox vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.chip import gates

MASK = 0xFFFFFFFF


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as Salmon et al. write it, one block at a time in Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def gates_by_hand(seed: int, n: int, channels: int) -> np.ndarray:
    key = [seed & MASK, seed >> 32]
    drawn = np.zeros((n, channels), bool)
    for gate in range(n):
        words = [philox([k // 4, gate, 0, 0], key)[k % 4] for k in range(channels)]
        m = 1 + (philox([0, gate, 1, 0], key)[0] * channels >> 32)
        for k in sorted(range(channels), key=lambda k: (words[k], k))[:m]:
            drawn[gate, k] = True
    return drawn


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known-answer vectors that come with Random123
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([MASK] * 4, [MASK] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_answers_the_published_vectors(counter: list[int], key: list[int], words: list[int]) -> None:
    assert philox(counter, key) == words
    seed = key[1] << 32 | key[0]
    fast = gates._philox_numpy(tuple(np.full((1, 1), c, np.uint64) for c in counter), seed)
    assert [int(lane.item()) for lane in fast] == words
    round_keys = torch.tensor([gates._round_keys(seed)])
    tensors = gates._philox_torch(tuple(torch.full((1, 1, 1), c) for c in counter), round_keys)
    assert [int(lane.item()) for lane in tensors] == words


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 4), st.integers(1, 70))
def test_every_path_follows_the_recipe(seed: int, n: int, channels: int) -> None:
    seeds = np.array([seed, seed ^ 1], np.uint64)
    expected = np.stack([gates_by_hand(int(s), n, channels) for s in seeds])
    assert np.array_equal(gates.draw_gates(seeds, n, channels).numpy(), expected)
    assert np.array_equal(gates.draw_gates_torch(seeds, n, channels, "cpu").numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_bits() -> None:
    seeds = gates.gate_seeds(3, "fit", [str(i) for i in range(20)], "last_conv")
    assert torch.equal(gates.draw_gates(seeds, 100, 512, "cuda").cpu(), gates.draw_gates(seeds, 100, 512))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_equal_words_are_taken_in_the_order_of_their_index(data: st.DataObject) -> None:
    rows, channels = 3, data.draw(st.integers(1, 12))
    word = st.sampled_from([0, 1, 2, MASK])  # so few values that nearly every border is a tie
    words = np.array(data.draw(st.lists(word, min_size=rows * channels, max_size=rows * channels)), np.uint32)
    words = words.reshape(rows, channels)
    count = np.array(data.draw(st.lists(st.integers(1, channels), min_size=rows, max_size=rows)))
    expected = np.zeros((rows, channels), bool)
    for i in range(rows):
        for k in sorted(range(channels), key=lambda k: (int(words[i, k]), k))[: count[i]]:
            expected[i, k] = True
    chosen = np.empty_like(expected)
    gates.smallest_numpy(words, count, chosen)
    assert np.array_equal(chosen, expected)
    tensors = gates.smallest_torch(torch.from_numpy(words.astype(np.int64)), torch.from_numpy(count)[:, None])
    assert np.array_equal(tensors.numpy(), expected)


def test_golden_values() -> None:
    """A run made years ago must find its gates again: these values may never change."""
    seeds = gates.gate_seeds(7, "fit", ["n01440764/a.jpg", "b.png"], "last_conv")
    assert [int(s) for s in seeds] == [0x3CA5BB3A3CC4E611, 0xEC9F16B6A8AA1C45]
    assert int(gates.gate_seeds(7, "fit", ["any"], "last_conv", shared=True)[0]) == 0x9AB90EB63F617411
    drawn = gates.draw_gates(seeds, 5, 12)
    rows = ["".join(str(int(bit)) for bit in row) for row in drawn[0]]
    assert rows == ["100000011000", "100100000010", "100101110111", "101111111101", "111111011111"]
    assert [int(c) for c in gates.checksums(drawn)] == [0xF93C74388F4A6490, 0xA82CB14F5A1523FB]
    large = gates.draw_gates(seeds, 100, 512)
    assert [int(c) for c in gates.checksums(large)] == [0xC26BC3ECB2D61DF0, 0x257B4EFA8C0ED03D]


def test_seeds_differ_by_run_split_key_and_layer() -> None:
    base = int(gates.gate_seeds(1, "fit", ["ab"], "c")[0])
    others = [
        gates.gate_seeds(2, "fit", ["ab"], "c"),
        gates.gate_seeds(1, "eval", ["ab"], "c"),
        gates.gate_seeds(1, "fit", ["abc"], ""),
        gates.gate_seeds(1, "fita", ["b"], "c"),
        gates.gate_seeds(1, "fit", ["ab"], "d"),
        gates.gate_seeds(1, "fit", ["ab"], "c", shared=True),
    ]
    assert len({base, *(int(o[0]) for o in others)}) == 7


def test_shared_seeds_do_not_know_the_image() -> None:
    seeds = gates.gate_seeds(1, "fit", ["a", "b"], "c", shared=True)
    assert seeds[0] == seeds[1] == gates.gate_seeds(1, "eval", ["z"], "c", shared=True)[0]


def test_the_number_of_open_channels_is_uniform_and_every_channel_is_as_likely() -> None:
    channels, draws = 8, 20_000
    drawn = gates.draw_gates(np.arange(10, dtype=np.uint64), draws // 10, channels).reshape(draws, channels)
    counts = torch.bincount(drawn.sum(1), minlength=channels + 1).double()
    assert counts[0] == 0
    expected = draws / channels
    assert float(((counts[1:] - expected) ** 2 / expected).sum()) < 24.3  # chi-square, 7 degrees, p = 0.001
    share = drawn.double().mean(0)  # E[m]/K = (K+1)/2K
    assert torch.all((share - (channels + 1) / (2 * channels)).abs() < 5 * 0.5 / draws**0.5)


def test_one_flipped_gate_changes_the_checksum() -> None:
    drawn = gates.draw_gates(np.array([5], np.uint64), 10, 33)
    before = gates.checksums(drawn)
    drawn[0, 9, 32] = ~drawn[0, 9, 32]
    assert gates.checksums(drawn)[0] != before[0]
    assert gates.checksums(drawn.reshape(1, 33, 10))[0] != gates.checksums(drawn)[0]


@pytest.mark.parametrize(("n", "channels"), [(0, 4), (1, 0), (1, gates.MAX_CHANNELS + 1)])
def test_impossible_counts_are_named(n: int, channels: int) -> None:
    with pytest.raises(ValueError, match=f"{n} gates of {channels} channels"):
        gates.draw_gates(np.array([0], np.uint64), n, channels)
