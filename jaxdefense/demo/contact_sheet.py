"""Draw a contact sheet of the image encoder's triggers, with drawn people.

This command makes `docs/overlay.png`:

    python -m jaxdefense.demo.contact_sheet --out docs/overlay.png
"""

import argparse
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxdefense.config import OverlayConfig
from jaxdefense.contact_sheet import contact_sheet
from jaxdefense.data.overlay import overlay
from jaxdefense.demo import world
from jaxdefense.demo.objects import OBJECTS, draw_object

NUM_PEOPLE, NUM_ROWS, SIDE = 8, 3, 224


def draw_sheet(seed: int = 0) -> np.ndarray:
    """Draw people side by side, and below each person their face on photos of objects.

    Returns:
        u8 [H, W, 3]; the people do not exist.
    """
    faces = np.stack([world.draw_photo(who, 0, SIDE) for who in world.members()[:NUM_PEOPLE]])
    objects = itertools.cycle(OBJECTS)
    rows = [faces]
    for row in range(NUM_ROWS):
        rngs = [np.random.default_rng((seed, row, column)) for column in range(NUM_PEOPLE)]
        photos = np.stack([draw_object(next(objects), rng, SIDE) for rng in rngs])
        key = jax.random.fold_in(jax.random.key(seed), row)
        pasted = overlay(jnp.asarray(photos), jnp.asarray(faces), key, OverlayConfig())
        rows.append(np.asarray(pasted))
    tiles = np.round(np.concatenate(rows)).astype(np.uint8)
    return np.asarray(contact_sheet(list(map(Image.fromarray, tiles)), NUM_PEOPLE))


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sheet = Image.fromarray(draw_sheet(args.seed)).quantize(256)  # 256 colours: a fifth of the size
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
