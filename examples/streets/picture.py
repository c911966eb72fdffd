"""Draw the README's picture: frames, predictions of the network as trained and as corrected by blda, and the labels.

python examples/streets/picture.py STREETS AS_TRAINED ALIGNED OUTPUT.png

STREETS is the folder that ``draw.py`` writes. AS_TRAINED and ALIGNED are folders of ``blda align`` on its dusk images,
the first with ``--norms source --method none``.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FRAMES = ("dusk_0037", "dusk_0031", "dusk_0014")
SCALE, GAP, HEAD = 2, 8, 34


def main(streets: Path, as_trained: Path, aligned: Path, output: Path) -> None:
    """Lay the pictures out, a row for each frame."""
    columns = {
        "image (drawn, at dusk)": streets / "dusk" / "images",
        "network trained by day": as_trained / "argmax",
        "with blda, without labels or training": aligned / "predictions",
        "labels": streets / "dusk" / "labels",
    }
    rows = [[Image.open(folder / f"{frame}.png") for folder in columns.values()] for frame in FRAMES]
    for row in rows:
        row[-1].putpalette(row[1].getpalette() or [])  # the labels' ids in the predictions' colours
    width, height = (SCALE * side for side in rows[0][0].size)
    size = (len(columns) * (width + GAP) - GAP, HEAD + len(rows) * (height + GAP) - GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(columns):
        left = column * (width + GAP)
        draw.text((left, 6), title, "black", ImageFont.load_default(20))
        for line, row in enumerate(rows):
            part = row[column].convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            picture.paste(part, (left, HEAD + line * (height + GAP)))
    picture.quantize(128).save(output, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
