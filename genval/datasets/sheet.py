"""A contact sheet: images in rows and columns, with titles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_GAP = 4
_TITLE = 26
_MARGIN = 96
_INK = (20, 20, 20)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray | None]]],
    groups: Sequence[tuple[str, int]],
    tile_width: int = 256,
) -> np.ndarray:
    """Lay images out on a white canvas.

    Args:
        rows: a title, and one RGB uint8 (H, W, 3) image per column; None leaves the cell empty.
        groups: titles above the columns, and how many columns each spans.
        tile_width: pixels; the height follows from the first image's proportions.

    Returns:
        RGB uint8 (H, W, 3).
    """
    import cv2
    from PIL import Image, ImageDraw, ImageFont

    first = next(image for _, images in rows for image in images if image is not None)
    height = max(1, round(tile_width * first.shape[0] / first.shape[1]))
    columns = sum(span for _, span in groups)
    sheet = np.full(
        (_TITLE + len(rows) * (height + _GAP), _MARGIN + columns * (tile_width + _GAP), 3), 255, dtype=np.uint8
    )
    for row, (_, images) in enumerate(rows):
        for column, image in enumerate(images):
            if image is None:
                continue
            top, left = _TITLE + row * (height + _GAP), _MARGIN + column * (tile_width + _GAP)
            shrink = image.shape[1] > tile_width
            resized = cv2.resize(
                image, (tile_width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_NEAREST
            )
            sheet[top : top + height, left : left + tile_width] = resized

    canvas = Image.fromarray(sheet)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=16)
    for row, (title, _) in enumerate(rows):
        middle = _TITLE + row * (height + _GAP) + height // 2
        draw.text((_MARGIN - 8, middle), title, _INK, font, anchor="rm")
    left = _MARGIN
    for title, span in groups:
        draw.text((left, _TITLE // 2), title, _INK, font, anchor="lm")
        left += span * (tile_width + _GAP)
    return np.asarray(canvas).copy()
