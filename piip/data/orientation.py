"""Pictures the right way up: turned as their EXIF orientation says."""

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


def turn_upright(picture: Image.Image) -> Image.Image:
    """Return a picture as viewers show it; it then has no orientation left, so turning it again changes nothing.

    Args:
        picture: As Pillow opened it, or in memory.
    """
    picture.load()  # Pillow turns TIFF files itself when it reads their pixels
    turn = TURNS.get(_orientation(picture))
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    for name in WHERE_IT_STANDS:
        turned.info.pop(name, None)
    return turned


def upright_shape(picture: Image.Image) -> tuple[int, int]:
    """Return the size (H, W) of a picture after `turn_upright`, without reading pixels."""
    is_quarter_turn = _orientation(picture) >= 5 and picture.format != "TIFF"  # TIFF: already in the size
    return (picture.width, picture.height) if is_quarter_turn else (picture.height, picture.width)


def _orientation(picture: Image.Image) -> int:
    """Return 1 to 8; a damaged EXIF block says nothing of the pixels, so it counts as none."""
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, OSError, LookupError):
        return 1
    return value if value in TURNS else 1
