import os
import struct
import zlib
from hashlib import blake2b

import numpy as np
import pytest
import torch

from genval.artifacts.fingerprint import Hashed, current_mark, file_mark, files_hash, weights_hash
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png


def test_the_hash_follows_names_types_and_values_and_nothing_else():
    module = torch.nn.Linear(3, 2)
    twin = torch.nn.Linear(3, 2)
    assert weights_hash(module) != weights_hash(twin)
    twin.load_state_dict(module.state_dict())
    twin.weight.data = twin.weight.data.t().contiguous().t()  # the same values, laid out otherwise
    assert weights_hash(module) == weights_hash(twin) and len(weights_hash(module)) == 16
    assert weights_hash(module.to(torch.bfloat16)) != weights_hash(twin)
    assert weights_hash(torch.nn.Sequential(twin)) != weights_hash(twin)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(data, kind, content, place):
    """A PNG file with one more chunk, behind its header or before its end."""
    cut = 33 if place == "before" else len(data) - 12
    return data[:cut] + chunk(kind, content) + data[cut:]


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_a_hash_in_a_thread_is_that_of_the_loaded_weights():
    network = torch.nn.Linear(3, 2)
    expected = weights_hash(network)
    model = Hashed(network)
    network.to(torch.bfloat16)
    assert model.hash == expected != weights_hash(network)


def test_the_mark_of_an_ordinary_png_is_that_of_its_end(tmp_path):
    write_png(tmp_path / "a.png", pixels(0))
    data = (tmp_path / "a.png").read_bytes()
    assert len(data) > 4096
    assert file_mark(tmp_path / "a.png") == f"{len(data)}-{blake2b(data[-4096:], digest_size=4).hexdigest()}"


@pytest.mark.parametrize(
    ("kind", "place", "contents"),
    [
        ("PLTE", "before", (b"\1\2\3", b"\1\2\4")),
        ("tRNS", "before", (b"\0\1\0\2\0\3", b"\0\1\0\2\0\4")),
        ("eXIf", "before", (b"1" * 20, b"2" * 20)),
        ("acTL", "before", (b"\0\0\0\1\0\0\0\0", b"\0\0\0\2\0\0\0\0")),
    ],
)
def test_what_decides_about_pixels_in_front_of_them_is_part_of_a_mark(tmp_path, kind, place, contents):
    write_png(tmp_path / "a.png", pixels(0))
    data = (tmp_path / "a.png").read_bytes()
    marks = set()
    for content in contents:
        (tmp_path / "b.png").write_bytes(with_chunk(data, kind.encode(), content, place))
        marks.add(file_mark(tmp_path / "b.png"))
    assert len(marks) == 2


def stored(pixels, text):
    """A PNG file without compression, so that files of other pixels have the same size, with a text behind them."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.reshape(len(pixels), -1))
    head = struct.pack(">IIBBBBB", pixels.shape[1], len(pixels), 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows, 0)), (b"tEXt", b"Comment\0" + text), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("length", [10, 4000, 9000])
def test_pixels_that_are_followed_by_much_text_are_part_of_a_mark(tmp_path, length):
    for seed in range(2):
        (tmp_path / f"{seed}.png").write_bytes(stored(pixels(seed), b"x" * length))
    assert (tmp_path / "0.png").stat().st_size == (tmp_path / "1.png").stat().st_size
    assert file_mark(tmp_path / "0.png") != file_mark(tmp_path / "1.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.json", "a.png"])
def test_the_mark_of_another_file_covers_all_of_it(tmp_path, name):
    data = bytes(20_000)
    (tmp_path / name).write_bytes(data)
    before = file_mark(tmp_path / name)
    (tmp_path / name).write_bytes(b"\1" + data[1:])
    assert file_mark(tmp_path / name) != before


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(GenValError, match=r"Cannot read .*gone\.jpg"):
        file_mark(tmp_path / "gone.jpg")


def test_a_png_is_marked_by_its_end_only_if_the_end_holds_the_last_bytes_of_the_pixels(tmp_path):
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13))
    end = chunk(b"IEND", b"")

    def is_marked_by_its_end(data):
        (tmp_path / "a.png").write_bytes(data)
        size, digest = file_mark(tmp_path / "a.png").split("-")
        assert int(size) == len(data)
        return digest == blake2b(data[-4096:], digest_size=4).hexdigest()

    text = chunk(b"tEXt", bytes(4096 - 4 - 4 - 12 - 12))
    # The checksum of the pixels is the whole last chunk of them, which may have four bytes.
    pixels_first = start + chunk(b"IDAT", bytes(9))
    assert is_marked_by_its_end(pixels_first + chunk(b"IDAT", bytes(4)) + text + end)
    assert not is_marked_by_its_end(pixels_first + chunk(b"IDAT", bytes(3)) + text + end)
    # No pixels, and a length that is negative as a signed number.
    assert not is_marked_by_its_end(start + chunk(b"tEXt", bytes(4097 - len(start + end) - 12)) + end)
    assert not is_marked_by_its_end(pixels_first + struct.pack(">i", -4) + b"tEXt" + end)


def test_the_mark_of_a_state_follows_size_and_time(tmp_path):
    path = tmp_path / "a.bin"
    assert current_mark(path) is None
    for data, time in ((b"1", 5), (b"22", 5), (b"33", 6)):
        path.write_bytes(data)
        os.utime(path, ns=(time, time))
        assert current_mark(path) == file_mark(path)


def test_the_hash_of_files_follows_names_contents_and_order(tmp_path):
    one, two, gone = tmp_path / "1.jpg", tmp_path / "2.jpg", tmp_path / "3.jpg"
    one.write_bytes(b"abc")
    two.write_bytes(b"abd")
    gone.symlink_to(tmp_path / "nothing")
    hashes = [files_hash(files) for files in ([one, two], [two, one], [one], [one, gone], [tmp_path / "1.jpg", one])]
    assert len(set(hashes)) == 5 and files_hash([one, two]) == hashes[0]
    two.write_bytes(b"abe")
    assert files_hash([one, two]) != hashes[0]
