"""Reading image files: every mode a photo comes in ends as RGB, and what cannot be read is refused by name."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

WHITE_16_BIT = 65535


class UnreadableImageError(ValueError):
    """A file that is no image this project reads; the message names the file and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """The image in ``path`` as upright 8-bit RGB.

    Grey, palette, CMYK and 16-bit grey images are converted (16-bit scaled, not clipped), transparency is laid over
    white, an EXIF orientation is applied, and of an animation the first frame is taken.

    Raises:
        UnreadableImageError: no such file, no image, truncated, too many pixels, or pixels without a known white.
    """
    _check_regular_file(Path(path))
    return _decode(path, path)


def decode_image(data: bytes, name: str) -> Image.Image:
    """The image that ``data``, the contents of a file, encodes, as :func:`read_image` reads it.

    Raises:
        UnreadableImageError: names it ``name``; no image, truncated, too many pixels, or pixels without a known white.
    """
    return _decode(io.BytesIO(data), name)


def _decode(file: str | os.PathLike[str] | io.BytesIO, name: str | os.PathLike[str]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its pixel limit; both are refused here.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
                return to_rgb(upright)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(name, "not an image in a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(name, f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever their parser trips over: OSError, SyntaxError, struct.error, EOFError …
        raise UnreadableImageError(name, f"damaged or unsupported: {error}") from error


def _check_regular_file(path: Path) -> None:
    if not path.exists():
        raise UnreadableImageError(path, "no such file")
    if not path.is_file():
        raise UnreadableImageError(path, "not a regular file")
    if path.stat().st_size == 0:
        raise UnreadableImageError(path, "an empty file")


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` in mode RGB.

    Raises:
        ValueError: the mode has no defined conversion to 8 bits.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _sixteen_bit_grey(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("expected integer pixels, got 32-bit floats, whose white is unknown")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_grey(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > WHITE_16_BIT:
        raise ValueError(f"expected 16-bit grey from 0 to {WHITE_16_BIT}, got {pixels.min()} to {pixels.max()}")
    return Image.fromarray(((pixels * 255 + WHITE_16_BIT // 2) // WHITE_16_BIT).astype(np.uint8))
