"""Hostile pictures made worse at random: what damage, and people who mean it, do to files."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence

from tests.hostile.by_hand import PNG_SIGNATURE

# Where sizes, counts and offsets stand is where they do harm.
_HEADER_BYTES = 64
_TELLING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)


def mutate(rng: random.Random, files: Sequence[bytes]) -> bytes:
    """One of the files with one to three changes; of PNG every other one with all its checksums right."""
    data = rng.choice(files)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        data = rng.choice(_CHANGES)(rng, data, files)
    return with_checksums(data) if data.startswith(PNG_SIGNATURE) and rng.random() < 0.5 else data


def with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks, as far as they can be told apart, have the checksums that they should have."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        parts += [data[position:end], struct.pack(">I", zlib.crc32(data[position + 4 : end]))]
        position = end + 4
    return b"".join([*parts, data[position:]])


def pieces(data: bytes) -> list[bytes]:
    """The chunks of PNG and RIFF, the segments of JPEG; of other formats the header and eight equal parts."""
    starts = [0]
    if data.startswith(PNG_SIGNATURE):
        starts += _chunks(data, 8, ">I", extra=12, odd=1)
    elif data.startswith(b"RIFF"):
        starts += _chunks(data, 12, "<I", extra=8, odd=2, length_at=4)
    elif data.startswith(b"\xff\xd8"):
        starts += _segments(data)
    else:
        starts += [16, *range(16 + len(data) // 8, len(data), max(1, len(data) // 8))]
    ends = [*starts[1:], len(data)]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)]


def _chunks(data: bytes, position: int, kind: str, *, extra: int, odd: int, length_at: int = 0) -> list[int]:
    starts = []
    while position + 8 <= len(data):
        starts.append(position)
        (length,) = struct.unpack_from(kind, data, position + length_at)
        position += extra + length + length % odd
    return starts


def _segments(data: bytes) -> list[int]:
    starts, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        starts.append(position)
        if data[position + 1] == 0xDA:
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return starts


def _position(rng: random.Random, data: bytes) -> int:
    end = min(_HEADER_BYTES, len(data)) if rng.random() < 0.3 else len(data)
    return rng.randrange(end) if end else 0


def _flip(rng: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        changed[_position(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """A number in one to eight bytes, of either order."""
    size = rng.choice((1, 2, 2, 4, 4, 4, 8))
    value = rng.choice(_TELLING) if rng.random() < 0.7 else rng.getrandbits(8 * size)
    number = (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("big", "little")))  # type: ignore[arg-type]
    at = _position(rng, data)
    return data[:at] + number + data[at + size :]


def _scale(rng: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """A number that stands there, a little larger or smaller or many times what it was."""
    size = rng.choice((2, 4))
    at = _position(rng, data)
    order = rng.choice(("big", "little"))
    value = int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]
    value = rng.choice((value + 1, value - 1, value * 2, value * 100, value // 2)) % 2 ** (8 * size)
    return data[:at] + value.to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]


def _cut(rng: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    return data[: _position(rng, data)]


def _drop(rng: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    at = _position(rng, data)
    return data[:at] + data[at + rng.choice((1, 2, 4, 16, 100)) :]


def _insert(rng: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    at = _position(rng, data)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 16, 100))) + data[at:]


def _rearrange(rng: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """Repeats, drops or swaps chunks; of one in ten files a chunk stands there a hundred times."""
    parts = pieces(data)
    one, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    match rng.randrange(10):
        case 0:
            parts[one] *= 100
        case 1 | 2 | 3:
            parts.insert(other, parts[one])
        case 4 | 5 | 6:
            del parts[one]
        case _:
            parts[one], parts[other] = parts[other], parts[one]
    return b"".join(parts)


def _splice(rng: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """Begins as one file and goes on as another."""
    other = rng.choice(files)
    at = _position(rng, data)
    return data[:at] + other[at if rng.random() < 0.5 else _position(rng, other) :]


def _transplant(rng: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """A chunk of another file."""
    parts = pieces(data)
    parts.insert(rng.randrange(len(parts) + 1), rng.choice(pieces(rng.choice(files))))
    return b"".join(parts)


_CHANGES: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _scale,
    _cut,
    _drop,
    _insert,
    _rearrange,
    _rearrange,
    _splice,
    _transplant,
)
