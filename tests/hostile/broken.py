"""What is no picture, is damaged, or promises more than it holds: none of it is captioned."""

import io
import struct
import zipfile
import zlib

from tests.hostile import by_hand
from tests.hostile.pictures import (
    HAS_AVIF,
    HAS_HEIF,
    HEIGHT,
    WIDTH,
    heic,
    jpeg,
    quarters,
    rows_of,
    samples,
    saved,
)

_Files = dict[str, bytes]

# The start of a scan of one component, in place of one of all three.
_ONE_OF_THREE = b"\xff\xda\x00\x08\x01"


def groups() -> dict[str, _Files]:
    """The files by folder and name."""
    return {
        "huge": _huge(),
        "no size": _no_size(),
        "truncated": _truncated(),
        "damaged": _damaged(),
        "bombs": _bombs(),
        "unsupported": _unsupported(),
    }


def _huge() -> _Files:
    """A few bytes that promise gigapixels, and some that promise just more than is allowed."""
    black = bytes(1000)
    dib = by_hand.bmp(30_000, 60_000, black)[14:]
    just_over = by_hand.png_header(13_378, 13_378, depth=1, colour=0)
    files = {
        "png.png": by_hand.png(by_hand.png_header(60_000, 60_000), [black]),
        "largest.png": by_hand.png(by_hand.png_header(2**31 - 1, 2**31 - 1), [black]),
        "beyond.png": by_hand.png(by_hand.png_header(2**32 - 1, 2**32 - 1), [black]),
        "just over.png": by_hand.png(just_over, [black]),
        "thin.png": by_hand.png(by_hand.png_header(1, 2**31 - 1), [black]),
        "jpeg.jpg": by_hand.jpeg_header(65_500, 65_500),
        "progressive.jpg": by_hand.jpeg_header(65_500, 65_500, marker=0xC2),
        "gif.gif": by_hand.gif(65_535, 65_535),
        "frame.gif": by_hand.gif(10, 10, frame=(60_000, 60_000, 5000, 5000)),
        "bmp.bmp": by_hand.bmp(60_000, 60_000, black),
        "largest.bmp": by_hand.bmp(2**31 - 1, 2**31 - 1, black),
        "runs.bmp": by_hand.bmp(2**31 - 1, 1, bytes(1024) + b"\x00\x02\xff\xff" * 100, bits=8, compression=1),
        "tiff.tif": by_hand.grey_tiff(60_000, 60_000, pixels=black),
        "largest.tif": by_hand.grey_tiff(2**32 - 1, 2**32 - 1, pixels=black),
        "webp.webp": by_hand.webp_header(16_383, 16_383),
        "largest.webp": by_hand.webp_header(2**24, 2**24),
        "tga.tga": by_hand.tga(65_535, 65_535),
        "pcx.pcx": by_hand.pcx(65_535, 65_535),
        "psd.psd": by_hand.psd(300_000, 300_000, black),
        "qoi.qoi": by_hand.qoi(100_000, 100_000, black),
        "ppm.ppm": b"P6 100000 100000 255\n" + black,
        "in letters.pbm": b"P1 1000000 1000000\n" + b"1 " * 500,
        "j2k.j2k": by_hand.j2k(2**31 - 1, 2**31 - 1),
        "png.ico": by_hand.ico(by_hand.png(by_hand.png_header(60_000, 60_000), [black])),
        "bitmap.ico": by_hand.ico(dib),
        "allowed runs.bmp": by_hand.bmp(13_000, 13_000, bytes(1024) + bytes(1000), bits=8, compression=1),
        "allowed.ico": by_hand.ico(by_hand.png(by_hand.png_header(13_000, 13_000), [black])),
        # As many pixels as are allowed; but these decoders hold them more than once.
        "progressive allowed.jpg": by_hand.jpeg_header(13_000, 13_000, marker=0xC2),
        "scans apart.jpg": by_hand.jpeg_header(13_000, 13_000).replace(
            b"\xff\xda\x00\x0c\x03", _ONE_OF_THREE
        ),
        "allowed.qoi": by_hand.qoi(13_000, 13_000, b"\xfd" * 1000),
        "one tile.tif": by_hand.grey_tiff(
            WIDTH, HEIGHT, (259, 3, [5]), (322, 4, [40_000]), (323, 4, [40_000]), (324, 4, [8]), pixels=black
        ),
        "one strip.tif": by_hand.grey_tiff(
            13_000, 13_000, (258, 3, [16] * 3), (259, 3, [5]), (262, 3, [2]), (277, 3, [3]), pixels=black
        ),
        "allowed.pgm": b"P5 13000 13000 65000\n" + black,
    }
    if HAS_AVIF:
        files["allowed.avif"] = by_hand.with_size(
            saved(quarters(), "AVIF"), (WIDTH, HEIGHT), (13_000, 13_000)
        )
        files["avif.avif"] = by_hand.with_size(saved(quarters(), "AVIF"), (WIDTH, HEIGHT), (16_000, 16_000))
    if HAS_HEIF:
        files["allowed.heic"] = by_hand.with_size(heic(), (WIDTH, HEIGHT), (13_000, 13_000))
        files["heic.heic"] = by_hand.with_size(heic(), (WIDTH, HEIGHT), (16_000, 16_000))
    return files


def _no_size() -> _Files:
    header = by_hand.png_header
    return {
        "empty.jpg": b"",
        "empty.png": b"",
        "0 by 10.png": by_hand.png(header(0, 10), []),
        "10 by 0.png": by_hand.png(header(10, 0), []),
        "0 by 10.jpg": by_hand.jpeg_header(0, 10),
        # How many lines there are would follow the picture (T.81, B.2.5); libjpeg does not support it.
        "10 by 0.jpg": by_hand.jpeg_header(10, 0),
        "0 by 0.gif": by_hand.gif(0, 0),
        "0 by 10.bmp": by_hand.bmp(0, 10, b""),
        "0 by 10.tif": by_hand.grey_tiff(0, 10),
        "0 by 10.tga": by_hand.tga(0, 10),
        "0 by 0.psd": by_hand.psd(0, 0),
        "0 by 10.qoi": by_hand.qoi(0, 10),
        "0 by 10.ppm": b"P6 0 10 255\n",
        "-10 by 10.ppm": b"P6 -10 10 255\n" + bytes(300),
        "0 by 0.j2k": by_hand.j2k(0, 0),
        "nothing.ico": struct.pack("<HHH", 0, 1, 0),
        "no size.tif": by_hand.tiff([(258, 3, [8])]),
        "no pixels.png": by_hand.PNG_SIGNATURE + header(10, 10) + by_hand.png_chunk(b"IEND", b""),
        "no picture.gif": b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + b";",
        "no frame.jpg": b"\xff\xd8" + by_hand.jpeg_segment(0xFE, b"hi") + b"\xff\xd9",
    }


def _truncated() -> _Files:
    """Half a picture would get half a caption."""
    whole = jpeg(quality=100)
    files = {f"{n:02} of 20.jpg": whole[: len(whole) * n // 21] for n in range(1, 21)}
    files["last byte.jpg"] = whole[:-1]
    progressive = jpeg(progressive=True)
    files["progressive.jpg"] = progressive[: len(progressive) * 3 // 4]
    others = {
        "png": saved(quarters(), "PNG"),
        "gif": saved(quarters(), "GIF"),
        "webp": saved(quarters(), "WEBP", lossless=True),
        "tif": saved(quarters(), "TIFF"),
        "lzw.tif": saved(quarters(), "TIFF", compression="tiff_lzw"),
        "bmp": saved(quarters(), "BMP"),
        "tga": saved(quarters(), "TGA"),
        "ppm": saved(quarters(), "PPM"),
        "qoi": saved(quarters(), "QOI"),
        "jp2": saved(quarters(), "JPEG2000"),
        "psd": by_hand.psd(WIDTH, HEIGHT, quarters().tobytes()),
        "ico": saved(quarters().resize((64, 64)), "ICO", sizes=[(64, 64)]),
    }
    if HAS_AVIF:
        others["avif"] = saved(quarters(), "AVIF", quality=95)
    if HAS_HEIF:
        others["heic"] = heic()
    return files | {f"half.{suffix}": data[: len(data) // 2] for suffix, data in others.items()}


def _damaged() -> _Files:
    header, chunk = by_hand.png_header(WIDTH, HEIGHT), by_hand.png_chunk
    good = by_hand.png(header, rows_of(quarters()))
    pixels = good.index(b"IDAT")
    return {
        "checksum of the header.png": good[:29] + b"\x00\x00\x00\x00" + good[33:],
        "stream.png": good[: pixels + 4] + b"\x00" * 20 + good[pixels + 24 :],
        "too few rows.png": by_hand.png(header, rows_of(quarters())[: HEIGHT // 2]),
        "endless chunk.png": by_hand.PNG_SIGNATURE + header + b"\x7f\xff\xff\xff" + b"tEXt" + b"x" * 100,
        "chunk without a name.png": by_hand.PNG_SIGNATURE + header + bytes(100),
        "short header.png": by_hand.PNG_SIGNATURE + chunk(b"IHDR", bytes(5)) + good[33:],
        "colours that don't exist.png": by_hand.png(
            by_hand.png_header(WIDTH, HEIGHT, colour=5), rows_of(quarters())
        ),
        "transparency cut.png": by_hand.png(header, rows_of(quarters()), chunk(b"tRNS", samples(0))),
        "frames out of order.png": by_hand.png(
            header,
            rows_of(quarters()),
            chunk(b"acTL", struct.pack(">II", 2, 0))
            + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 7, WIDTH, HEIGHT, 0, 0, 1, 1, 0, 0)),
        ),
        "header alone.png": by_hand.PNG_SIGNATURE,
        "header alone.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
        "zeros.jpg": b"\xff\xd8\xff" + bytes(700),
        "garbage.jpg": b"\xff\xd8\xff\xe0" + b"garbage" * 100,
        "garbage.png": by_hand.PNG_SIGNATURE + b"garbage" * 100,
        "garbage.tif": b"II*\x00" + b"\xff" * 100,
        "garbage.webp": b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(50),
        "garbage.heic": b"\x00\x00\x00\x18ftypheic" + b"garbage" * 100,
        "garbage.avif": b"\x00\x00\x00\x1cftypavif" + b"garbage" * 100,
        "garbage.jp2": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"garbage" * 100,
        "garbage.ico": struct.pack("<HHH", 0, 1, 0xFFFF) + b"\xff" * 700,
        "offset beyond the end.tif": by_hand.grey_tiff(WIDTH, HEIGHT, (279, 4, [1000])),
        "directory beyond the end.tif": b"II*\x00\xff\xff\xff\x7f" + bytes(100),
        "two billion samples.tif": by_hand.grey_tiff(WIDTH, HEIGHT, (277, 4, [2_000_000_000])),
        "compression that doesn't exist.tif": by_hand.grey_tiff(
            WIDTH, HEIGHT, (259, 3, [999]), pixels=bytes(WIDTH * HEIGHT)
        ),
        "12 bit.jpg": by_hand.jpeg_header(WIDTH, HEIGHT, marker=0xC1, precision=12),
        "headers alone.j2k": by_hand.j2k(WIDTH, HEIGHT),
        "no colours.bmp": by_hand.bmp(WIDTH, HEIGHT, b"", bits=8),
        "depth that doesn't exist.bmp": by_hand.bmp(WIDTH, HEIGHT, bytes(50_000), bits=7),
    }


def _bombs() -> _Files:
    """What unpacks to much more than it is, or costs a reader that believes it much time."""
    plain, chunk = saved(quarters(), "PNG"), by_hand.png_chunk
    much = zlib.compress(bytes(20_000_000), 9)
    text = chunk(b"zTXt", b"Comment\x00\x00" + much)
    some = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(1_000_000), 9))
    return {
        "text.png": by_hand.png_with(plain, text),
        "many texts.png": by_hand.png_with(plain, *[some] * 80),
        "text of all nations.png": by_hand.png_with(
            plain, chunk(b"iTXt", b"Comment\x00\x01\x00\x00\x00" + much)
        ),
        "profile.png": by_hand.png_with(plain, chunk(b"iCCP", b"x\x00\x00" + much)),
    }


def _unsupported() -> _Files:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.jpg", jpeg())
    # Radiance: the shared exponent of high dynamic range.
    radiance = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n" + bytes([128, 64, 32, 129])
    cube = b"DDS " + struct.pack("<II", 124, 0x1007) + struct.pack("<II", HEIGHT, WIDTH) + bytes(200)
    return {
        "archive.jpg": archive.getvalue(),
        "page.jpg": b"<!doctype html><html><body>404 Not Found</body></html>",
        "document.jpg": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "text.jpg": b"just some text, no picture",
        "zeros.jpg": bytes(1000),
        "one byte.jpg": b"\xff",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "radiance.jpg": radiance,
        "exr.jpg": b"\x76\x2f\x31\x01\x02\x00\x00\x00" + bytes(100),
        "film.jpg": b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(100),
        "film of old.jpg": b"\x00\x00\x01\xba" + bytes(100),
        "sound.jpg": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40),
        "program.jpg": b"\x7fELF\x02\x01\x01" + bytes(100),
        "git lfs.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        # Pillow reads these, but nobody keeps photographs in them: batchcap doesn't try.
        "texture.jpg": cube,
        "weather.jpg": b"GRIB" + bytes(100),
        "tables.jpg": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "stars.jpg": b"SIMPLE  =                    T" + b" " * 50,
        "drawing of windows.jpg": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(100),
    }
