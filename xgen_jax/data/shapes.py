"""Clip shapes in words: "9x32x32" is 9 frames of 32 rows and 32 columns of pixels."""

from collections.abc import Sequence

from xgen_jax.errors import UserError

Shape = tuple[int, int, int]


def shape_name(shape: Shape) -> str:
    """(9, 32, 32) -> "9x32x32"."""
    return "x".join(str(size) for size in shape)


def parse_shapes(shapes: Sequence[str]) -> list[Shape]:
    """["9x32x32", "1x64x64"] -> [(9, 32, 32), (1, 64, 64)], each once.

    Raises:
      UserError: an entry that is not a shape; the message says what one is.
    """
    parsed: dict[Shape, None] = {}
    for shape in shapes:
        parts = shape.strip().lower().split("x")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
            raise UserError(f"{shape!r} is not a clip shape; give FRAMESxHEIGHTxWIDTH in pixels, e.g. 17x512x512")
        parsed[int(parts[0]), int(parts[1]), int(parts[2])] = None
    return list(parsed)
