"""Kinds of image and mask files: each is read as a viewer shows it, or refused by name."""

import io
import os
import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.Image import Transpose

from genval.datasets import Item, reading
from genval.datasets.labels import CITYSCAPES, IDD, PALETTE, TRAIN_IDS, find_label_space
from genval.datasets.palettes import voc_colours
from genval.datasets.reading import _decode_plain_png, check_ids, read_image, read_mask, read_pair, readable
from genval.runtime.errors import GenValError
from genval.runtime.files import write_png

HEIGHT, WIDTH = 12, 16


def photograph():
    """RGB uint8 (12, 16, 3), smooth, so that a JPEG file is close to it, and not symmetric."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([10 * columns, 15 * rows, 5 * (rows + columns)], -1).astype(np.uint8)


def grey():
    return photograph()[..., 0]


def label_ids():
    """Cityscapes labelIds, uint8 (12, 16)."""
    ids = np.full((HEIGHT, WIDTH), 7, np.uint8)
    ids[:4], ids[4:6, :5], ids[9:, 10:] = 23, 26, 8
    return ids


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, bits, colour=0, before=b"", after=b""):
    """A PNG file of samples (H, W) or (H, W, C), with further chunks before and after the pixels."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if bits == 16:
        rows = rows.astype(">u2").view(np.uint8)
    elif bits < 8:
        each = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        rows = np.packbits(each.reshape(height, -1), 1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", data) + after + chunk(b"IEND", b"")


def saved(image, file_format, **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, file_format, **options)
    return stream.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[274] = orientation
    return data


# How to store pixels so that an orientation turns them upright: its inverse.
TURNS = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def turned(pixels, orientation):
    image, turn = Image.fromarray(pixels), TURNS[orientation]
    return image if turn is None else image.transpose(turn)


def with_alpha(alpha):
    return np.dstack([photograph(), np.full((HEIGHT, WIDTH), alpha, np.uint8)])


def sixteen():
    return photograph().astype(np.uint16) * 257


SHOWN = {
    "png": lambda: saved(photograph(), "PNG"),
    "interlaced png": lambda: saved(photograph(), "PNG", optimize=True),
    "webp": lambda: saved(photograph(), "WEBP", lossless=True),
    "tiff": lambda: saved(photograph(), "TIFF"),
    "compressed tiff": lambda: saved(photograph(), "TIFF", compression="tiff_lzw"),
    "16-bit rgb png": lambda: png(sixteen(), 16, 2),
    "16-bit rgb png, 8 bits shifted": lambda: png(photograph().astype(np.uint16) << 8, 16, 2),
    "opaque rgba": lambda: saved(with_alpha(255), "PNG"),
    "opaque 16-bit rgba": lambda: png(np.dstack([sixteen(), np.full((HEIGHT, WIDTH), 65535, np.uint16)]), 16, 6),
    "palette": lambda: saved(Image.fromarray(photograph()).quantize(256, dither=0), "PNG"),
    "opaque palette": lambda: saved(
        Image.fromarray(photograph()).quantize(256, dither=0), "PNG", transparency=bytes([255] * 256)
    ),
    "colour profile": lambda: saved(
        photograph(), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
    "damaged exif": lambda: saved(photograph(), "PNG", exif=b"Exif\0\0XX*\0\x08\0\0\0\xff\xff"),
    "orientation 9": lambda: saved(photograph(), "PNG", exif=exif(9)),
    "exif after the pixels": lambda: png(
        np.asarray(turned(photograph(), 3)), 8, 2, after=chunk(b"eXIf", exif(3).tobytes()[6:])
    ),
    "text after the pixels": lambda: png(photograph(), 8, 2, after=chunk(b"tEXt", b"Comment\0" + b"x" * 9000)),
    **{
        f"{name} of orientation {number}": lambda number=number, name=name, options=options: saved(
            turned(photograph(), number), name, exif=exif(number), **options
        )
        for number in TURNS
        for name, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}))
    },
    **{
        f"compressed tiff of orientation {number}": lambda number=number: saved(
            turned(photograph(), number), "TIFF", exif=exif(number), compression="tiff_deflate"
        )
        for number in TURNS
    },
}
JPEGS = {
    f"JPEG of orientation {number}": lambda number=number: saved(
        turned(photograph(), number), "JPEG", quality=100, subsampling=0, exif=exif(number)
    )
    for number in TURNS
}
GREY = {
    "8 bits": lambda: saved(grey(), "PNG"),
    "16 bits": lambda: png(grey().astype(np.uint16) * 257, 16),
    "16 bits, 8 of them shifted": lambda: png(grey().astype(np.uint16) << 8, 16),
    "16 bits of orientation 6": lambda: png(
        np.asarray(turned(grey(), 6)).astype(np.uint16) * 257, 16, before=chunk(b"eXIf", exif(6).tobytes()[6:])
    ),
    "16-bit tiff": lambda: saved(grey().astype(np.uint16) * 257, "TIFF"),
    "16-bit big-endian tiff": lambda: big_endian_tiff(),
    "opaque grey with alpha": lambda: saved(
        Image.merge("LA", [Image.fromarray(grey()), Image.new("L", (WIDTH, HEIGHT), 255)]), "PNG"
    ),
    "jpeg": lambda: saved(grey(), "JPEG", quality=100),
}


def big_endian_tiff():
    return saved(Image.fromarray((grey().astype(np.uint16) * 257).astype(">u2")), "TIFF")


def tiff_with(tag, value):
    image = Image.fromarray(grey().astype(np.uint16) * 257)
    return saved(image, "TIFF", tiffinfo={tag: value})


def frames(file_format, **options):
    first = Image.fromarray(photograph())
    return saved(first, file_format, save_all=True, append_images=[first.rotate(180)], **options)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 12\n%%EndComments\nshowpage\n"
REFUSED = {
    "gif": (lambda: saved(photograph(), "GIF"), "found a GIF file"),
    "animated gif": (lambda: frames("GIF"), "found a GIF file"),
    "eps": (lambda: EPS, "found an EPS file"),
    "eps with a dos header": (lambda: b"\xc5\xd0\xd3\xc6" + bytes(28) + EPS, "found an EPS file"),
    "bmp": (lambda: saved(photograph(), "BMP"), "found a BMP file"),
    "pdf": (lambda: saved(photograph(), "PDF"), "found a PDF file"),
    "ppm": (lambda: saved(photograph(), "PPM"), "cannot be decoded"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "html": (lambda: b"<!DOCTYPE html><title>404</title>", "HTML"),
    "git lfs pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "apple double": (lambda: b"\0\5\x16\7\0\2\0\0Mac OS X        ", "macOS"),
    "nothing": (lambda: b"", "cannot be decoded"),
    "zeros": (lambda: bytes(5000), "cannot be decoded"),
    "truncated png": (lambda: saved(photograph(), "PNG")[:-40], "cannot be decoded"),
    "truncated jpeg": (lambda: saved(photograph(), "JPEG")[:-40], "cannot be decoded"),
    "animated png": (lambda: frames("PNG"), "has 2 frames"),
    "animated webp": (lambda: frames("WEBP"), "has 2 frames"),
    "tiff of two pages": (lambda: frames("TIFF"), "has 2 frames"),
    "transparent rgba": (lambda: saved(with_alpha(254), "PNG"), "transparent"),
    "transparent webp": (lambda: saved(with_alpha(9), "WEBP"), "transparent"),
    "transparent grey": (
        lambda: saved(Image.merge("LA", [Image.fromarray(grey()), Image.fromarray(grey())]), "PNG"),
        "transparent",
    ),
    "transparent palette": (
        lambda: saved(Image.fromarray(photograph()).quantize(16), "PNG", transparency=3),
        "transparent",
    ),
    "transparent colour": (
        lambda: png(photograph(), 8, 2, before=chunk(b"tRNS", struct.pack(">HHH", *photograph()[3, 3].tolist()))),
        "transparent",
    ),
    "cmyk jpeg": (lambda: saved(Image.fromarray(photograph()).convert("CMYK"), "JPEG"), "mode CMYK"),
    "cmyk tiff": (lambda: saved(Image.fromarray(photograph()).convert("CMYK"), "TIFF"), "mode CMYK"),
    "lab tiff": (lambda: saved(Image.fromarray(photograph()).convert("LAB"), "TIFF"), "mode LAB"),
    "int32 tiff": (lambda: saved(grey().astype(np.int32), "TIFF"), "mode I"),
    "float tiff": (lambda: saved(grey().astype(np.float32) / 255, "TIFF"), "mode F"),
    "16-bit tiff with white as zero": (lambda: tiff_with(262, 0), "black as zero"),
}


@pytest.fixture
def file(tmp_path):
    def write(data, name="x.png"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.mark.parametrize("kind", SHOWN)
def test_an_image_is_read_as_it_is_shown(file, kind):
    np.testing.assert_array_equal(read_image(file(SHOWN[kind]())), photograph())


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_is_turned_upright(file, kind):
    assert np.abs(read_image(file(JPEGS[kind](), "x.jpg")).astype(int) - photograph()).max() <= 4


@pytest.mark.parametrize("kind", GREY)
def test_a_grey_image_is_scaled(file, kind):
    difference = np.abs(read_image(file(GREY[kind]())).astype(int) - grey()[..., None])
    assert difference.max() <= (2 if kind == "jpeg" else 0)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_image_of_another_kind_is_refused_by_name(file, kind):
    make, reason = REFUSED[kind]
    with pytest.raises(GenValError, match=rf"x\.png .*{reason}"):
        read_image(file(make()))


def test_no_other_program_is_started(file, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    with pytest.raises(GenValError):
        read_image(file(EPS))


def low_bits(bits):
    return label_ids() % 2**bits


def palette_mask(indices, palette):
    image = Image.fromarray(indices)
    image.putpalette(np.asarray(palette, np.uint8).tobytes())
    return saved(image, "PNG")


def colour_mask():
    return Image.fromarray(PALETTE[CITYSCAPES.table[label_ids()]])


MASKS = {
    "8 bits": (lambda: saved(label_ids(), "PNG"), label_ids),
    "4 bits": (lambda: png(low_bits(4), 4), lambda: low_bits(4)),
    "2 bits": (lambda: png(low_bits(2), 2), lambda: low_bits(2)),
    "1 bit": (lambda: png(low_bits(1), 1), lambda: low_bits(1)),
    "grey ramp": (lambda: palette_mask(label_ids(), [[i, i, i] for i in range(256)]), label_ids),
    "short grey ramp": (lambda: palette_mask(label_ids(), [[i, i, i] for i in range(40)]), label_ids),
    "4-bit grey ramp": (
        lambda: png(low_bits(4), 4, 3, chunk(b"PLTE", bytes(i for i in range(16) for _ in range(3)))),
        lambda: low_bits(4),
    ),
    "voc colours": (lambda: palette_mask(label_ids(), voc_colours()), label_ids),
    "colours of the ids": (lambda: palette_mask(label_ids(), PALETTE[CITYSCAPES.table]), label_ids),
    "transparent id": (lambda: saved(label_ids(), "PNG", transparency=7), label_ids),
    **{
        f"orientation {number}": (
            lambda number=number: saved(turned(label_ids(), number), "PNG", exif=exif(number)),
            label_ids,
        )
        for number in TURNS
    },
    "4 bits of orientation 6": (
        lambda: png(np.asarray(turned(low_bits(4), 6)), 4, before=chunk(b"eXIf", exif(6).tobytes()[6:])),
        lambda: low_bits(4),
    ),
}
REFUSED_MASKS = {
    "colours": (lambda: saved(colour_mask(), "PNG"), "not a label mask.*mode RGB"),
    "colours with alpha": (lambda: saved(colour_mask().convert("RGBA"), "PNG"), "mode RGBA"),
    "grey with alpha": (lambda: saved(Image.fromarray(label_ids()).convert("LA"), "PNG"), "mode LA"),
    "16 bits": (lambda: png(label_ids().astype(np.uint16) * 1000, 16), "at most 8 bits"),
    "jpeg": (lambda: saved(label_ids(), "JPEG"), "found a JPEG file"),
    "webp": (lambda: saved(colour_mask(), "WEBP"), "found a WebP"),
    "tiff": (lambda: saved(label_ids(), "TIFF"), "found a TIFF file"),
    "gif": (lambda: saved(label_ids(), "GIF"), "found a GIF file"),
    "animated": (
        lambda: saved(label_ids(), "PNG", save_all=True, append_images=[Image.fromarray(label_ids()[::-1].copy())]),
        "has 2 frames",
    ),
    "reduced colours": (lambda: saved(colour_mask().quantize(16), "PNG"), "palette"),
    "reduced greys": (lambda: saved(Image.fromarray(label_ids()).quantize(8), "PNG"), "palette"),
    "colours of trainIds": (lambda: palette_mask(CITYSCAPES.table[label_ids()], PALETTE), "palette"),
    "arbitrary colours": (
        lambda: palette_mask(label_ids(), np.random.default_rng(0).integers(1, 256, (256, 3))),
        "palette",
    ),
    "black": (lambda: palette_mask(label_ids(), np.zeros((256, 3))), "palette"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_read_as_its_samples(file, kind):
    make, expected = MASKS[kind]
    read = read_mask(file(make()), CITYSCAPES.table)
    assert read.dtype == np.uint8 and read.flags.writeable
    np.testing.assert_array_equal(read, expected())


@pytest.mark.parametrize("kind", REFUSED_MASKS)
def test_a_mask_of_another_kind_is_refused_by_name(file, kind):
    make, reason = REFUSED_MASKS[kind]
    with pytest.raises(GenValError, match=rf"x\.png .*{reason}"):
        read_mask(file(make()), CITYSCAPES.table)


def test_palettes_of_other_label_spaces(file):
    ids = label_ids()
    train_ids = CITYSCAPES.table[ids]
    np.testing.assert_array_equal(read_mask(file(palette_mask(train_ids, PALETTE)), TRAIN_IDS.table), train_ids)
    # Two ids of one colour: pole and polegroup. CamVid's road has Cityscapes' colour, its other classes do not.
    colours = np.zeros((12, 3), np.uint8)
    colours[3], colours[1] = PALETTE[0], (128, 0, 0)
    camvid = ids % 12
    np.testing.assert_array_equal(
        read_mask(file(palette_mask(camvid, colours)), find_label_space("camvid").table), camvid
    )
    with pytest.raises(GenValError, match="palette"):
        read_mask(file(palette_mask(camvid, colours)), IDD.table)
    with pytest.raises(GenValError, match="palette"):
        read_mask(file(palette_mask(train_ids, PALETTE)))  # unknown what its ids mean


def test_the_voc_colours_are_those_of_the_definition():
    assert voc_colours()[[0, 1, 2, 3, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_png_is_named(tmp_path, share):
    path = tmp_path / "street.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(GenValError, match=r"street\.png cannot be decoded"):
        read_image(path)


@pytest.mark.parametrize("noisy", [False, True])
def test_a_damaged_png_is_refused_or_read_as_pillow_does(tmp_path, noisy):
    path, generator = tmp_path / "street.png", np.random.default_rng(0)
    coarse = generator.integers(0, 256, (12, 16, 3)).repeat(4, 0).repeat(4, 1)
    write_png(path, (coarse + generator.integers(0, 8, coarse.shape)).clip(0, 255).astype(np.uint8), noisy=noisy)
    whole, refused = path.read_bytes(), 0
    for number in range(200):
        data = bytearray(whole)
        place = int(generator.integers(8, len(data)))
        if number % 4:
            data[place] ^= 1 << int(generator.integers(8))
        else:
            del data[place : place + 50]
        path.write_bytes(data)
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                expected = np.asarray(image.convert("RGB"))
        except Exception:
            refused += 1
            with pytest.raises(GenValError, match=r"street\.png cannot be decoded"):
                read_image(path)
        else:
            np.testing.assert_array_equal(read_image(path), expected)
    assert refused > 150


@pytest.mark.parametrize("kind", ["photograph", "ids"])
def test_the_usual_png_files_are_decoded_by_opencv_and_others_are_not(tmp_path, kind):
    samples, colour = (photograph(), 2) if kind == "photograph" else (label_ids(), 0)
    path = tmp_path / "file.png"
    for before in (b"", chunk(b"gAMA", struct.pack(">I", 100000)), chunk(b"sBIT", b"\x08" * (1 if colour == 0 else 3))):
        path.write_bytes(png(samples, 8, colour, before=before))
        np.testing.assert_array_equal(_decode_plain_png(path, colour), samples)
        assert _decode_plain_png(path, 2 - colour) is None
    for other in (
        png(samples, 8, colour, before=chunk(b"tRNS", bytes(2 if colour == 0 else 6))),
        png(samples, 8, colour, after=chunk(b"eXIf", b"II*\0")),
        png(samples, 8, colour, before=chunk(b"tEXt", b"a\0b")[:-1] + b"\0"),
        png(samples, 16, colour),
        png(samples, 8, colour)[:-1],
        png(samples, 8, colour) + b"more",
    ):
        path.write_bytes(other)
        assert _decode_plain_png(path, colour) is None
    assert _decode_plain_png(tmp_path, colour) is None and _decode_plain_png(tmp_path / "none.png", colour) is None


@pytest.mark.parametrize("kind", ["gAMA", "sBIT", "iCCP", "tEXt", "tIME"])
def test_opencv_prints_no_warning_about_a_chunk_without_pixels(tmp_path, kind, capfd):
    cut = chunk(kind.encode(), b"\xff")
    file = png(photograph(), 8, 2, before=cut, after=cut)
    cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    assert "warning" in capfd.readouterr().err
    (tmp_path / "file.png").write_bytes(file)
    np.testing.assert_array_equal(_decode_plain_png(tmp_path / "file.png", 2), photograph())
    assert not capfd.readouterr().err


def test_pairs_are_kept_up_to_a_limit_and_changed_files_are_read_again(tmp_path, monkeypatch):
    read: list[str] = []

    def decode(item):
        read.append(item.id)
        return read_pair(item)

    items = []
    for name in ("a", "b"):
        paths = tmp_path / f"{name}.png", tmp_path / f"{name}_ids.png"
        write_png(paths[0], photograph())
        write_png(paths[1], label_ids())
        items.append(Item(name, *paths, "clean", ""))
    cache = reading.DecodedCache(5 * HEIGHT * WIDTH)  # one pair has 4 bytes per pixel
    for item in (*items, *items):
        image, train_ids = cache.read(item, decode)
        np.testing.assert_array_equal(image, photograph())
        np.testing.assert_array_equal(train_ids, CITYSCAPES.to_train_ids(label_ids()))
    assert read == ["a", "b", "b"]
    write_png(items[0].image, photograph()[::-1])
    np.testing.assert_array_equal(cache.read(items[0], decode)[0], photograph()[::-1])
    # Other processes use the memory.
    cache = reading.DecodedCache(5 * HEIGHT * WIDTH)
    monkeypatch.setattr(reading, "available_memory", lambda: 0)
    read.clear()
    for item in (items[1], items[1]):
        cache.read(item, decode)
    assert read == ["b", "b"]


def test_written_images_round_trip_in_rgb(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    write_png(tmp_path / "image.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), image)
    write_png(tmp_path / "mask.png", image[..., 0])
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), image[..., 0])


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_what_is_no_file_is_named(tmp_path, read):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, reason in {
        "folder.png": "is not a file",
        "dangling.png": "is a link to a file that does not exist",
        "loop.png": "cannot be decoded",
        "none.png": "does not exist",
    }.items():
        with pytest.raises(GenValError, match=rf"{name} {reason}"):
            read(tmp_path / name)


@pytest.fixture
def items(tmp_path):
    def make(space, *masks):
        made = []
        for number, ids in enumerate(masks):
            write_png(tmp_path / f"{number}_image.png", np.zeros((*ids.shape, 3), np.uint8))
            write_png(tmp_path / f"{number}_mask.png", ids)
            files = (tmp_path / f"{number}_{part}.png" for part in ("image", "mask"))
            made.append(Item(str(number), *files, "clean", "a", space))
        return made

    return make


def train_ids(void=255):
    """Mostly road and sidewalk, as trainIds, with pixels that do not count."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[:3], ids[0], ids[-1, :4] = 10, 1, void
    return ids


def with_signs(void):
    """TrainIds that are mostly those of vegetation, which is the labelId of the sidewalk."""
    ids = np.full((HEIGHT, WIDTH), 8, np.uint8)
    ids[:3], ids[-1] = 0, void
    return ids


def low():
    """LabelIds of road, building and sky-less ground: none above 18."""
    ids = np.full((HEIGHT, WIDTH), 7, np.uint8)
    ids[:3], ids[-1] = 11, 3
    return ids


SETS = {
    "labelIds": ("cityscapes", [label_ids()], None),
    "labelIds behind an empty mask": ("cityscapes", [np.zeros((4, 4), np.uint8), label_ids()], None),
    "few labelIds, all low": ("cityscapes", [low(), low()], None),
    "trainIds": ("cityscapes", [train_ids(), train_ids()], None),  # each mask is refused: see below
    "trainIds, few of them void": ("cityscapes", [with_signs(255)], "trainIds, not Cityscapes labelIds"),
    "trainIds without 255": ("cityscapes", [train_ids(2), np.full((4, 4), 8, np.uint8)], "trainIds, not Cityscapes"),
    "trainIds, none with a class": ("cityscapes", [train_ids(2)], "check that the masks hold Cityscapes labelIds"),
    "trainIds for IDD": ("idd", [train_ids(), train_ids()], "trainIds, not IDD level3Ids"),
    "dummy labels": ("cityscapes", [np.full((4, 4), 3, np.uint8), np.zeros((4, 4), np.uint8)], "no pixel of any mask"),
    "void trainIds": ("trainids", [np.full((4, 4), 255, np.uint8)], "no pixel of any mask"),
    "right trainIds": ("trainids", [train_ids()], None),
    "right trainIds without 255": ("trainids", [train_ids(2)], None),
    "labelIds for trainIds": ("trainids", [low(), label_ids()], "holds Cityscapes labelIds"),
    "one stray mask of labelIds": ("trainids", [label_ids(), train_ids()], None),
    "CamVid": ("camvid", [train_ids(2)], None),
}


@pytest.mark.parametrize("kind", SETS)
def test_the_ids_of_a_set_are_checked_together(items, kind):
    space, masks, reason = SETS[kind]
    found = items(space, *masks)
    if reason is None:
        check_ids(found)
    else:
        with pytest.raises(GenValError, match=reason):
            check_ids(found)


def test_a_mask_of_train_ids_among_label_ids_is_refused_or_skipped(items):
    found = items("cityscapes", label_ids(), train_ids(), low())
    with pytest.raises(GenValError, match=r"1_mask\.png holds trainIds, not Cityscapes labelIds"):
        read_pair(found[1])
    skipped = []
    assert readable(found, skipped) == [found[0], found[2]] and "trainIds" in skipped[0].reason


def test_masks_are_read_until_one_shows_the_kind(items, monkeypatch):
    from genval.datasets import reading

    read = SimpleNamespace(count=0)
    original = reading.read_mask

    def counted(*arguments):
        read.count += 1
        return original(*arguments)

    monkeypatch.setattr(reading, "read_mask", counted)
    check_ids(items("cityscapes", low(), label_ids(), *[low()] * 5))
    assert read.count == 2


def test_a_file_that_is_read_in_parts_is_still_whole(tmp_path, monkeypatch):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_png(tmp_path / "a.png", pixels)
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 40)))
    assert _decode_plain_png(tmp_path / "a.png", reading._PNG_RGB) is None
    assert (read_image(tmp_path / "a.png") == pixels).all()
