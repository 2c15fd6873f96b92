"""Good pictures of every odd kind: all of them are captioned."""

import functools
import struct

import numpy as np
from PIL import Image

from tests.hostile import by_hand
from tests.hostile.pictures import (
    HAS_AVIF,
    HAS_HEIF,
    HEIGHT,
    WIDTH,
    exif,
    greys,
    heic,
    jpeg,
    packed_rows,
    quarters,
    rows_of,
    samples,
    saved,
    see_through,
    turned,
    without_adobe,
    ycck_jpeg,
)

_Files = dict[str, bytes]


def groups() -> dict[str, _Files]:
    """The files by folder and name."""
    return {
        "orientation": _orientation(),
        "jpeg": _jpeg(),
        "png": _png(),
        "animated": _animated(),
        "tiff": _tiff(),
        "bmp": _bmp(),
        "others": _others(),
        "wrong suffix": _wrong_suffix(),
        "metadata": _metadata(),
    }


@functools.cache
def plain_png() -> bytes:
    """The quarters as most encoders would write them."""
    return saved(quarters(), "PNG")


def _orientation() -> _Files:
    files = {}
    for value in range(1, 9):
        files[f"{value}.jpg"] = jpeg(turned(value), exif=exif(value))
        files[f"{value}.png"] = saved(turned(value), "PNG", exif=exif(value))
        files[f"{value}.webp"] = saved(turned(value), "WEBP", quality=95, exif=exif(value))
    for value in (4, 6):
        files[f"{value}.tif"] = saved(turned(value), "TIFF", exif=exif(value))
        files[f"{value} packed.tif"] = saved(turned(value), "TIFF", exif=exif(value), compression="tiff_lzw")
        if HAS_AVIF:
            files[f"{value}.avif"] = saved(turned(value), "AVIF", quality=95, exif=exif(value))
        if HAS_HEIF:
            files[f"{value}.heic"] = heic(turned(value), exif=exif(value))
    for value in (0, 9, 65_535):
        files[f"none such {value}.jpg"] = jpeg(exif=exif(value))
    return files


def _jpeg() -> _Files:
    cmyk = jpeg(quarters().convert("CMYK"))
    view = Image.new("RGB", (WIDTH, HEIGHT))
    return {
        "plain.jpg": jpeg(),
        "progressive.jpg": jpeg(progressive=True),
        "restart markers.jpg": jpeg(restart_marker_blocks=2),
        "grey.jpg": jpeg(greys()),
        "grey progressive.jpg": jpeg(greys(), progressive=True),
        "rgb.jpg": jpeg(keep_rgb=True),
        "cmyk.jpg": cmyk,
        "cmyk without adobe.jpg": without_adobe(cmyk),
        "ycck.jpg": ycck_jpeg(),
        "lossless.jpg": by_hand.lossless_jpeg(np.asarray(quarters())),
        "of a phone.jpg": saved(quarters(), "MPO", save_all=True, append_images=[view], quality=95),
        "garbage behind.jpg": jpeg() + b"garbage" * 100,
        "padding between segments.jpg": by_hand.jpeg_with(jpeg(), b"\xff\xff\xff\xfe\x00\x04hi"),
        "no jfif.jpg": jpeg().replace(b"JFIF", b"NONE", 1),
    }


def _png() -> _Files:
    header = functools.partial(by_hand.png_header, WIDTH, HEIGHT)
    chunk = by_hand.png_chunk
    palette = quarters().quantize(4)
    paletted = saved(palette, "PNG")
    transparent = palette.getpixel((WIDTH - 1, HEIGHT - 1))
    # What is transparent is black, so that nothing else makes it white.
    colours = bytearray(palette.getpalette()[:12])
    colours[transparent * 3 : transparent * 3 + 3] = bytes(3)
    alphas = bytes(0 if entry == transparent else 255 for entry in range(4))
    half = bytes(1 if entry == transparent else 254 for entry in range(4))
    rgb_on_black, grey_on_black = (see_through(mode).convert(mode[:-1]) for mode in ("RGBA", "LA"))
    # The quarter that is black anyway must not be transparent here.
    grey_on_black = grey_on_black.point(lambda value: value)
    grey_on_black.paste(85, (0, 0, WIDTH // 2, HEIGHT // 2))
    key = samples(0, 0, 0)

    def of_palette(*extra: bytes) -> bytes:
        rows = [np.asarray(palette)[y].tobytes() for y in range(HEIGHT)]
        return by_hand.png(header(colour=3), rows, b"".join(extra))

    def grey(bits: int, *extra: bytes) -> bytes:
        rows = packed_rows(grey_on_black if extra else greys(), bits)
        return by_hand.png(header(depth=bits, colour=0), rows, b"".join(extra))

    two = greys().point(lambda value: 255 if value > 128 else 0).convert("L")
    return {
        "plain.png": plain_png(),
        "interlaced.png": _interlaced(),
        "1 bit.png": by_hand.png(header(depth=1, colour=0), packed_rows(two, 1)),
        "1 bit, black transparent.png": by_hand.png(
            header(depth=1, colour=0), packed_rows(two, 1), chunk(b"tRNS", samples(0))
        ),
        "grey.png": saved(greys(), "PNG"),
        "grey 2 bit.png": grey(2),
        "grey 4 bit.png": grey(4),
        "grey 2 bit, one transparent.png": grey(2, chunk(b"tRNS", samples(0))),
        "grey 4 bit, one transparent.png": grey(4, chunk(b"tRNS", samples(0))),
        "grey 2 bit, dark transparent.png": grey(2, chunk(b"tRNS", samples(1))),
        "grey 4 bit, dark transparent.png": grey(4, chunk(b"tRNS", samples(5))),
        "grey, one transparent.png": saved(grey_on_black, "PNG", transparency=0),
        "grey 16 bit.png": by_hand.png(header(depth=16, colour=0), rows_of(greys(), ">u2", 257)),
        "grey 16 bit, one transparent.png": by_hand.png(
            header(depth=16, colour=0), rows_of(grey_on_black, ">u2", 257), chunk(b"tRNS", samples(85 * 257))
        ),
        "grey with alpha.png": saved(see_through("LA"), "PNG"),
        "grey with alpha 16 bit.png": by_hand.png(
            header(depth=16, colour=4), rows_of(see_through("LA"), ">u2", 257)
        ),
        "rgb, one transparent.png": saved(rgb_on_black, "PNG", transparency=(0, 0, 0)),
        "rgb 16 bit.png": by_hand.png(header(depth=16), rows_of(quarters(), ">u2", 257)),
        "rgb 16 bit, one transparent.png": by_hand.png(
            header(depth=16), rows_of(rgb_on_black, ">u2", 257), chunk(b"tRNS", key)
        ),
        "rgb 16 bit, red transparent.png": by_hand.png(
            header(depth=16),
            rows_of(quarters(), ">u2", 257),
            chunk(b"tRNS", samples(220 * 257, 30 * 257, 30 * 257)),
        ),
        "rgba.png": saved(see_through(), "PNG"),
        "rgba 16 bit.png": by_hand.png(header(depth=16, colour=6), rows_of(see_through(), ">u2", 257)),
        "palette.png": paletted,
        "palette, one transparent.png": of_palette(chunk(b"PLTE", bytes(colours)), chunk(b"tRNS", alphas)),
        "palette, half transparent.png": of_palette(chunk(b"PLTE", bytes(colours)), chunk(b"tRNS", half)),
        "one by one.png": saved(Image.new("RGB", (1, 1), (220, 30, 30)), "PNG"),
        "one by many.png": saved(Image.new("RGB", (1, 4000), (220, 30, 30)), "PNG"),
        "many by one.png": saved(Image.new("RGB", (4000, 1), (220, 30, 30)), "PNG"),
        "more pixels than declared.png": by_hand.png(header(), [*rows_of(quarters()), bytes(1_000_000)]),
        "no end.png": plain_png()[:-12],
    }


def _interlaced() -> bytes:
    """Adam7 (ISO/IEC 15948, 8.2), which Pillow doesn't write."""
    pixels = np.asarray(quarters())
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = [row.tobytes() for y, x, dy, dx in passes for row in pixels[y::dy, x::dx]]
    return by_hand.png(by_hand.png_header(WIDTH, HEIGHT, interlace=1), rows)


def _animated() -> _Files:
    frames = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))] * 2}
    clear = {"save_all": True, "append_images": [Image.new("RGBA", (WIDTH, HEIGHT))]}
    files = {
        "animated.gif": saved(quarters(), "GIF", **frames),
        "animated.webp": saved(quarters(), "WEBP", quality=95, **frames),
        "animated.png": saved(quarters(), "PNG", **frames),
        "animated.apng": saved(quarters(), "PNG", **frames),
        "clear.gif": saved(see_through(), "GIF", disposal=2, **clear),
        "clear.webp": saved(see_through(), "WEBP", lossless=True, **clear),
        "clear.png": saved(see_through(), "PNG", **clear),
        "pages.tif": saved(quarters(), "TIFF", **frames),
        # A default image that is no part of the animation: viewers of plain PNG show it, and so do we.
        "default image apart.png": saved(quarters(), "PNG", default_image=True, **frames),
    }
    if HAS_AVIF:
        files["animated.avif"] = saved(quarters(), "AVIF", quality=95, **frames)
    return files


def _tiff() -> _Files:
    values = np.asarray(greys(), dtype=np.float32)
    not_numbers = values / 255
    not_numbers[0, :3] = [np.nan, np.inf, -np.inf]
    planes = b"".join(plane.tobytes() for plane in quarters().split())
    size = WIDTH * HEIGHT
    packed = {
        name: saved(quarters(), "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    }
    files = {f"{name.removeprefix('tiff_')}.tif": data for name, data in packed.items()}
    return files | {
        "jpeg.tif": saved(quarters(), "TIFF", compression="jpeg", quality=95),
        "fax.tif": saved(greys().convert("1", dither=Image.Dither.NONE), "TIFF", compression="group4"),
        "rgba.tif": saved(see_through(), "TIFF"),
        "palette.tif": saved(quarters().quantize(4), "TIFF"),
        "cmyk.tif": saved(quarters().convert("CMYK"), "TIFF"),
        "big.tif": saved(quarters(), "TIFF", big_tiff=True),
        "float to 1.tif": saved(Image.fromarray(values / 255), "TIFF"),
        "float to 255.tif": saved(Image.fromarray(values), "TIFF"),
        "float, not all numbers.tif": saved(Image.fromarray(not_numbers), "TIFF"),
        "16 bit.tif": saved(Image.fromarray(values.astype(np.uint16) * 257), "TIFF"),
        "32 bit.tif": saved(Image.fromarray(values.astype(np.int32) * 257), "TIFF"),
        "white is zero.tif": by_hand.grey_tiff(
            WIDTH, HEIGHT, (262, 3, [0]), pixels=Image.eval(greys(), lambda value: 255 - value).tobytes()
        ),
        "planes apart.tif": by_hand.grey_tiff(
            WIDTH,
            HEIGHT,
            (258, 3, [8, 8, 8]),
            (262, 3, [2]),
            (273, 4, [0, size, 2 * size]),
            (277, 3, [3]),
            (279, 4, [size] * 3),
            (284, 3, [2]),
            pixels=planes,
        ),
        # The directory says that itself is the next page.
        "endless pages.tif": by_hand.grey_tiff(WIDTH, HEIGHT, pixels=greys().tobytes()).replace(
            b"\x00\x00\x00\x00" + greys().tobytes()[:8], b"\x08\x00\x00\x00" + greys().tobytes()[:8], 1
        ),
    }


def _bmp() -> _Files:
    upside = quarters().transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    blue_first = np.asarray(upside)[:, :, ::-1]
    alpha = np.asarray(see_through().transpose(Image.Transpose.FLIP_TOP_BOTTOM))
    five = (np.asarray(upside).astype(int) >> 3) * [2048, 64, 1]
    palette = quarters().quantize(4)
    indices = np.asarray(palette.transpose(Image.Transpose.FLIP_TOP_BOTTOM))
    colours = np.zeros((256, 4), np.uint8)
    colours[:4, :3] = np.reshape(palette.getpalette()[:12], (4, 3))[:, ::-1]
    half = WIDTH // 2
    runs = b"".join(bytes([half, row[0], half, row[-1], 0, 0]) for row in indices) + b"\x00\x01"
    core = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    return {
        "plain.bmp": saved(quarters(), "BMP"),
        "plain.dib": saved(quarters(), "DIB"),
        "1 bit.bmp": saved(greys().convert("1", dither=Image.Dither.NONE), "BMP"),
        "grey.bmp": saved(greys(), "BMP"),
        "palette.bmp": saved(palette, "BMP"),
        "from the top.bmp": by_hand.bmp(WIDTH, -HEIGHT, np.asarray(quarters())[:, :, ::-1].tobytes()),
        "runs.bmp": by_hand.bmp(WIDTH, HEIGHT, colours.tobytes() + runs, bits=8, compression=1),
        "16 bit.bmp": by_hand.bmp(
            WIDTH,
            HEIGHT,
            struct.pack("<III", 0xF800, 0x7E0, 0x1F) + five.sum(2).astype("<u2").tobytes(),
            bits=16,
            compression=3,
        ),
        # Without a mask for it the fourth byte is no alpha: nearly all programs write 0 there.
        "32 bit.bmp": by_hand.bmp(
            WIDTH, HEIGHT, np.dstack([blue_first, np.zeros_like(alpha[:, :, 3])]).tobytes(), bits=32
        ),
        "of os2.bmp": b"BM" + struct.pack("<IHHI", 0, 0, 0, 26) + core + blue_first.tobytes(),
    }


def _others() -> _Files:
    pixels = np.asarray(quarters())
    planes = b"".join(plane.tobytes() for plane in quarters().split())
    # Each row of each plane is one run of packbits for either half.
    half = 257 - WIDTH // 2
    packed = b"".join(
        bytes([half, row[0], half, row[-1]]) for plane in quarters().split() for row in np.asarray(plane)
    )
    counts = struct.pack(">H", 4) * (3 * HEIGHT)
    text = " ".join(map(str, pixels.ravel().tolist()))
    wide = (np.asarray(greys()).astype(int) * 257).astype(">u2").tobytes()
    mask = see_through()
    files = {
        "lossy.webp": saved(quarters(), "WEBP", quality=95),
        "lossless.webp": saved(quarters(), "WEBP", lossless=True),
        "alpha.webp": saved(see_through(), "WEBP", lossless=True),
        "still.gif": saved(quarters(), "GIF"),
        "grey.gif": saved(greys(), "GIF"),
        "icon.ico": saved(see_through().resize((64, 64)), "ICO", sizes=[(64, 64)]),
        "icon of a bitmap.ico": saved(mask.resize((32, 32)), "ICO", sizes=[(32, 32)], bitmap_format="bmp"),
        "larger than it says.ico": by_hand.ico(plain_png(), width=16, height=16),
        "second picture missing.ico": by_hand.ico(plain_png(), missing=1),
        "plain.tga": saved(quarters(), "TGA"),
        "runs.tga": saved(quarters(), "TGA", compression="tga_rle"),
        "alpha.tga": saved(see_through(), "TGA"),
        "plain.pcx": saved(quarters(), "PCX"),
        "palette.pcx": saved(quarters().quantize(4), "PCX"),
        "plain.psd": by_hand.psd(WIDTH, HEIGHT, planes),
        "packed.psd": by_hand.psd(WIDTH, HEIGHT, counts + packed, compression=1),
        "plain.qoi": saved(quarters(), "QOI"),
        "alpha.qoi": saved(see_through(), "QOI"),
        "plain.ppm": saved(quarters(), "PPM"),
        "plain.pgm": saved(greys(), "PPM"),
        "plain.pbm": saved(greys().convert("1", dither=Image.Dither.NONE), "PPM"),
        "16 bit.pgm": b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + wide,
        "in letters.ppm": f"P3 # a comment\n{WIDTH} {HEIGHT} 255\n{text}\n".encode(),
        "plain.jp2": saved(quarters(), "JPEG2000"),
        "plain.j2k": saved(quarters(), "JPEG2000", no_jp2=True),
        "alpha.jp2": saved(see_through(), "JPEG2000"),
        "16 bit.jp2": saved(
            Image.fromarray(np.asarray(greys()).astype(np.uint16) * 257), "JPEG2000", irreversible=False
        ),
    }
    if HAS_AVIF:
        files["plain.avif"] = saved(quarters(), "AVIF", quality=95)
        files["alpha.avif"] = saved(see_through(), "AVIF", quality=95)
    if HAS_HEIF:
        files["plain.heic"] = heic()
        files["alpha.heic"] = heic(see_through())
        files["grey.heic"] = heic(greys())
        files["with a thumbnail.heic"] = heic(thumbnails=[48])
        files["full colour.heic"] = heic(chroma=444)
    return files


def _wrong_suffix() -> _Files:
    return {
        "png.jpg": plain_png(),
        "jpeg.png": jpeg(),
        "gif.webp": saved(quarters(), "GIF"),
        "webp.jpeg": saved(quarters(), "WEBP", quality=95),
        "tiff.bmp": saved(quarters(), "TIFF"),
        "bmp.tga": saved(quarters(), "BMP"),
        "tga.png": saved(quarters(), "TGA"),
    }


def _metadata() -> _Files:
    """EXIF, profiles and texts that are damaged or made to harm: none of them costs the picture."""
    segment, chunk = by_hand.jpeg_segment, by_hand.png_chunk

    def with_exif(body: bytes) -> bytes:
        return by_hand.jpeg_with(jpeg(), segment(0xE1, b"Exif\x00\x00" + body))

    whole = exif(1).removeprefix(b"Exif\x00\x00")
    ascii_tag = (270, 2, list(b"x" * 100))
    endless = by_hand.tiff([(274, 3, [1]), (0x8769, 4, [8])], next_offset=8)
    crowded = b"II*\x00\x08\x00\x00\x00\xff\xff" + struct.pack("<HHLL", 270, 2, 4_000_000_000, 8) * 4000
    many = b"".join(segment(0xE1, b"Exif\x00\x00" + whole) for _ in range(200))
    profile = b"ICC_PROFILE\x00\x02\xff" + b"nothing of a profile"
    return {
        "exif empty.jpg": with_exif(b""),
        "exif garbage.jpg": with_exif(b"garbage" * 100),
        "exif cut.jpg": with_exif(whole[: len(whole) // 2]),
        "exif far away.jpg": with_exif(b"MM\x00*\xff\xff\xff\xff"),
        "exif in a circle.jpg": with_exif(endless),
        "exif of 65,535 tags.jpg": with_exif(crowded),
        "exif 200 times.jpg": by_hand.jpeg_with(jpeg(), many),
        "exif orientation as text.jpg": with_exif(by_hand.tiff([(274, 2, list(b"6\x00"))])),
        "exif orientation many times.jpg": with_exif(by_hand.tiff([(274, 3, [6] * 5000)])),
        "exif text.jpg": with_exif(by_hand.tiff([ascii_tag, (274, 3, [1])])),
        "exif in a circle.png": by_hand.png_with(plain_png(), chunk(b"eXIf", endless)),
        "exif garbage.png": by_hand.png_with(plain_png(), chunk(b"eXIf", b"garbage" * 100)),
        "profile in wrong parts.jpg": by_hand.jpeg_with(jpeg(), segment(0xE2, profile)),
        "profile garbage.png": by_hand.png_with(plain_png(), chunk(b"iCCP", b"x\x00\x00garbage")),
        "photoshop cut.jpg": by_hand.jpeg_with(
            jpeg(), segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\x00\x00\xff\xff\xff\xff")
        ),
        "text garbage.png": by_hand.png_with(plain_png(), chunk(b"zTXt", b"Comment\x00\x00garbage")),
        "pages of a phone garbage.jpg": by_hand.jpeg_with(jpeg(), segment(0xE2, b"MPF\x00" + b"\xff" * 40)),
        "comment of 64 kB.jpg": by_hand.jpeg_with(jpeg(), segment(0xFE, b"x" * 65_000)),
        "50,000 comments.gif": by_hand.gif_with(
            saved(quarters(), "GIF"), b"!\xfe" + b"\x01x" * 50_000 + b"\x00"
        ),
    }
