"""Grain's permutation of an epoch, whole and in NumPy: the one that its shuffle walks through a number at a time.

It is a block cipher of four rounds (Simon: Beaulieu et al. 2013, eprint.iacr.org/2013/404) on the even number of
bits, 16 at least, that the largest fits into; what comes out too large is enciphered again until it is not. The
rounds' keys are those of C++'s `std::seed_seq`. The tests hold it to Grain's own, bit for bit.
"""

import functools

import numpy as np

_ROUNDS = 4


@functools.lru_cache(maxsize=4)  # a batch may lie in two epochs
def of(seed: int, count: int) -> np.ndarray:
    """Return the numbers from 0 to ``count`` - 1, fewer than 2^32, in the order of ``seed``, u32[count]."""
    bits = max((count - 2).bit_length(), 16)
    half = (bits + 1) // 2
    numbers = np.arange(max(count, 1 << 2 * half), dtype=np.uint32)
    ciphers = _encipher(numbers, seed_sequence(seed), half)
    found, onward = ciphers[:count], np.where(numbers < count, numbers, ciphers)
    while found.max(initial=0) >= count:
        found, onward = onward[found], onward[onward]  # one step, then two more, then four, ...
    found.flags.writeable = False  # all who ask share it
    return found


def _encipher(values: np.ndarray, keys: list[int], half: int) -> np.ndarray:
    """Return the cipher of u32[N], two words of ``half`` bits each."""
    mask = (1 << half) - 1

    def mixed(word: np.ndarray) -> np.ndarray:
        one, two, eight = ((word << n) | (word >> (half - n)) for n in (1, 2, 8))
        return (one & eight) ^ two

    left, right = values >> half, values
    for i in range(0, len(keys), 2):
        left = (left ^ mixed(right & mask) ^ np.uint32(keys[i])) & mask
        right = (right ^ mixed(left) ^ np.uint32(keys[i + 1])) & mask
    return (left << half) | right


def seed_sequence(seed: int, count: int = _ROUNDS) -> list[int]:
    """Return what C++'s `std::seed_seq` of one number generates, ``count`` (2 to 6) words of 32 bits."""
    words = [0x8B8B8B8B] * count
    tempered = lambda word: (word ^ (word >> 27)) & 0xFFFFFFFF
    middle = (count - 1) // 2
    near, far = (count - middle) // 2, (count - middle) // 2 + middle
    for k in range(2 * count):
        at, before, close, distant = k % count, (k - 1) % count, (k + near) % count, (k + far) % count
        if k < count:
            mixed = 1664525 * tempered(words[at] ^ words[close] ^ words[before])
            added = mixed + (1 if k == 0 else k + seed if k == 1 else k)
            words[close] = (words[close] + mixed) % 2**32
            words[distant] = (words[distant] + added) % 2**32
        else:
            mixed = 1566083941 * tempered((words[at] + words[close] + words[before]) % 2**32)
            added = mixed - at
            words[close] ^= mixed % 2**32
            words[distant] ^= added % 2**32
        words[at] = added % 2**32
    return words
