"""Contact sheets: many photos small, side by side, on one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

TILE, GAP = 112, 2  # pixels
_LABEL = 12  # pixels of height


def contact_sheet(
    photos: Sequence[Image.Image], columns: int, labels: Sequence[str] = ()
) -> Image.Image:
    """Put photos in rows, each whole on a square of white.

    Args:
        photos: of any size, in RGB.
        columns: photos a row.
        labels: of each photo, written below it; () for none.
    """
    height = TILE + _LABEL * bool(labels)
    rows = -(-len(photos) // columns)
    size = min(columns, len(photos)) * (TILE + GAP) - GAP, rows * (height + GAP) - GAP
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, photo in enumerate(photos):
        left, top = i % columns * (TILE + GAP), i // columns * (height + GAP)
        tile = ImageOps.pad(photo, (TILE, TILE), Image.Resampling.BICUBIC, "white")
        sheet.paste(tile, (left, top))
        if labels:
            draw.text((left, top + TILE), labels[i], "black")
    return sheet
