"""Rotation of images by their EXIF orientation."""

from __future__ import annotations

from PIL import Image

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHERE_IT_STANDS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def turn_upright(image: Image.Image) -> Image.Image:
    """Return an image as viewers show it, without its orientation tag, so a second call changes nothing.

    Args:
        image: Image opened with Pillow, or in memory.
    """
    image.load()  # Pillow rotates TIFF files itself when it reads their pixels
    turn = TURNS.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in WHERE_IT_STANDS:
        turned.info.pop(name, None)
    return turned


def upright_shape(image: Image.Image) -> tuple[int, int]:
    """Return the size (H, W) of an image after `turn_upright`, without reading pixels."""
    is_quarter_turn = _orientation(image) >= 5 and image.format != "TIFF"  # TIFF: the size already includes it
    return (image.width, image.height) if is_quarter_turn else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8; a damaged EXIF block counts as none, because the pixels may be intact."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, OSError, LookupError):
        return 1
    return value if value in TURNS else 1
