import numpy as np
import pytest
from tests import independent_decoder as reference

from egret.crc import crc32c


# RFC 3720, appendix B.4.
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_vectors(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def test_every_length_and_alignment_matches_the_reference() -> None:
    data = np.random.default_rng(1).integers(0, 256, 80, dtype=np.uint8).tobytes()
    for start in range(9):
        for end in range(start, 80):
            part = data[start:end]
            assert crc32c(memoryview(data)[start:end]) == reference.crc32c(part), (start, end)


def test_continues_an_earlier_crc() -> None:
    data = np.random.default_rng(2).integers(0, 256, 1000, dtype=np.uint8)
    for cut in (0, 1, 7, 8, 500, 1000):
        assert crc32c(data[cut:], crc32c(data[:cut])) == reference.crc32c(data.tobytes())
