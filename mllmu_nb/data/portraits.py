"""Portraits drawn from visible traits, and what the Test set does to them.

A portrait is 64 × 64 pixels: enough for a tower of 16 patches and for a reader to tell the people apart.
"""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from mllmu_nb.errors import KitError

SIZE = 64
SCALE = 4  # drawn four times as large, then reduced: smooth edges

# trait → its values, and the RGB colours of those that have one
TRAITS: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def random_traits(rng: np.random.Generator, gender: str = "") -> dict[str, str]:
    """One value for every trait; women are drawn with short hair, and men with a bun, less often."""
    # the index that rng.choice would draw: the same traits in a quarter of the time
    traits = {name: list(values)[rng.integers(len(values))] for name, values in TRAITS.items()}
    hair = {"blond": "yellow"}.get(traits["hair color"], traits["hair color"])
    while traits["background"] in (hair, traits["shirt"]):  # the outline must be seen
        traits["background"] = str(rng.choice(list(TRAITS["background"])))
    if gender:
        women = (0.05, 0.4, 0.25, 0.05, 0.25)
        men = (0.4, 0.1, 0.2, 0.25, 0.05)
        traits["hair style"] = str(rng.choice(TRAITS["hair style"], p=women if gender == "female" else men))
    return traits


def draw(traits: dict[str, str], rng: np.random.Generator) -> Image.Image:
    """A portrait of 64 × 64 RGB pixels; ``rng`` gives the face its own proportions."""
    background, shirt, hair, skin, eye = (
        tuple(TRAITS[trait][traits[trait]]) for trait in ("background", "shirt", "hair color", "skin", "eyes")
    )
    style, pattern, accessory = traits["hair style"], traits["pattern"], traits["accessory"]
    canvas = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), background)
    pen = ImageDraw.Draw(canvas)
    width, height = rng.uniform(11.5, 14.5), rng.uniform(14, 16.5)
    cx, cy = 32 + rng.uniform(-1.5, 1.5), 29 + rng.uniform(-1, 1)

    def paint(shape, *points, **look):
        getattr(pen, shape)([value * SCALE for value in points], **look)

    def oval(x, y, rx, ry, fill, outline=None, line=0):
        paint("ellipse", x - rx, y - ry, x + rx, y + ry, fill=fill, outline=outline, width=int(line * SCALE))

    def box(x0, y0, x1, y1, fill, radius=0):
        paint("rounded_rectangle", x0, y0, x1, y1, fill=fill, radius=radius * SCALE)

    if style == "long":
        box(cx - width - 5, cy - 18, cx + width + 5, 56, hair, radius=12)
    elif style == "curly":
        for angle in np.linspace(-0.25 * np.pi, 1.25 * np.pi, 13):
            oval(cx + (width + 2) * np.cos(angle), cy - 3 - (height - 1) * np.sin(angle), 5.5, 5.5, hair)
    elif style == "bun":  # at the side, where no hat hides it
        oval(cx + width + 4, cy - 5, 6.5, 6.5, hair)

    box(cx - 5, cy + 8, cx + 5, 52, tuple(int(c * 0.9) for c in skin))
    box(6, 48, 58, 74, shirt, radius=9)
    ink = (20, 20, 20) if sum(shirt) > 380 else (245, 245, 245)
    for x in range(9, 58, 7) if pattern in ("striped", "checked") else ():
        box(x, 50, x + 2, 64, ink)
    for y in (51, 57, 63) if pattern == "checked" else ():
        box(7, y, 57, y + 1.5, ink)
    for y, shift in ((52, 0), (58, 4)) if pattern == "dotted" else ():
        for x in range(10 + shift, 58, 8):
            oval(x, y, 1.8, 1.8, ink)

    oval(cx, cy, width, height, skin)
    paint("chord", cx - width - 1, cy - height - 2, cx + width + 1, cy + height, start=200, end=340, fill=hair)
    for x in np.linspace(cx - width, cx + width, 6) if style == "spiky" else ():
        top = cy - height - 9 + abs(x - cx) * 0.35
        paint("polygon", x - 3.4, cy - 8, x + 3.4, cy - 8, x, top, fill=hair)
    eyes = [cx + side * width * 0.46 for side in (-1, 1)]
    for x in eyes:
        oval(x, cy - 0.5, 4.6, 3.9, (252, 252, 252))
        oval(x, cy - 0.5, 3.3, 3.3, eye)
        oval(x, cy - 0.5, 1.2, 1.2, (10, 10, 10))
    paint("line", cx, cy + 2, cx - 1, cy + 6, fill=tuple(int(c * 0.7) for c in skin), width=SCALE)
    smile, lips = rng.uniform(3, 6), (160, 50, 55)
    paint("arc", cx - smile, cy + 5, cx + smile, cy + 11, start=20, end=160, fill=lips, width=int(1.4 * SCALE))

    if accessory == "glasses":
        for x in eyes:
            oval(x, cy - 0.5, 6.2, 5.6, None, (15, 15, 15), 1.5)
        box(cx - 1.5, cy - 1.5, cx + 1.5, cy, (15, 15, 15))
    elif accessory == "hat":
        box(cx - width - 6, cy - height + 1, cx + width + 6, cy - height + 4.5, (110, 75, 35))
        box(cx - width + 1, cy - height - 10, cx + width - 1, cy - height + 2, (110, 75, 35))
        box(cx - width + 1, cy - height - 2, cx + width - 1, cy - height + 1, (235, 200, 80))
    elif accessory == "earrings":
        for side in (-1, 1):
            oval(cx + side * (width + 1), cy + 7, 2.8, 4.2, (255, 205, 40), (120, 85, 0), 0.8)
    elif accessory == "scarf":
        box(cx - 14, 43, cx + 14, 51, (235, 90, 150), radius=4)
        box(cx + 5, 46, cx + 11, 63, (235, 90, 150))
    return canvas.resize((SIZE, SIZE), Image.LANCZOS)


def to_png(image: Image.Image) -> bytes:
    """The picture as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def from_bytes(data: bytes) -> Image.Image:
    """RGB picture from PNG or JPEG bytes. Raises KitError where it is none, or has more pixels than PIL allows."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels, limit = picture.width * picture.height, Image.MAX_IMAGE_PIXELS or math.inf
            if pixels <= limit:
                return picture.convert("RGB")
            reason = f"{pixels} pixels, more than {limit}"
    except Exception as error:  # what a damaged file raises differs by format: OSError, SyntaxError, struct.error ..
        reason = f"{type(error).__name__}, {len(data)} bytes"
    raise KitError(f"the picture cannot be decoded ({reason}): replace it")


def pixel_hash(picture: bytes) -> str:
    """SHA-256 of the decoded RGB pixels and their size: the same however the picture was encoded without loss.

    Raises KitError as :func:`from_bytes` does.
    """
    image = from_bytes(picture)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _move(image: Image.Image, angle: float, zoom: float, dx: float, dy: float, mirror: bool) -> Image.Image:
    """Rotate (degrees), enlarge and shift (pixels) about the centre; the edge colour fills what comes into view."""
    c, k = np.cos(np.radians(angle)) / zoom, np.sin(np.radians(angle)) / zoom
    h = image.width / 2
    flip = -1 if mirror else 1
    back = (flip * c, k, h - flip * c * (h + dx) - k * (h + dy), -flip * k, c, h + flip * k * (h + dx) - c * (h + dy))
    return image.transform(image.size, Image.AFFINE, back, Image.BILINEAR, fillcolor=image.getpixel((1, 1)))


def _tint(image: Image.Image, rng: np.random.Generator, noise: float) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    pixels = (pixels - 128) * rng.uniform(0.8, 1.15) + 128 + rng.uniform(-14, 14)
    pixels = pixels * rng.uniform(0.92, 1.08, size=3) + rng.normal(0, noise, size=pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


TRANSFORMS = ("pose", "crop", "colour and noise", "lamp light")


def transform(image: Image.Image, kind: int, rng: np.random.Generator) -> Image.Image:
    """One of ``TRANSFORMS``. The last, a light from one corner, is never used in training."""
    if kind == 0:
        return _move(image, rng.uniform(5, 10) * rng.choice((-1, 1)), 1.0, *rng.uniform(-3, 3, 2), rng.random() < 0.5)
    if kind == 1:
        return _move(image, 0.0, rng.uniform(1.1, 1.25), *rng.uniform(-2, 2, 2), False)
    if kind == 2:
        return _tint(image, rng, noise=8.0)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, image.width)
    light = 1 + 0.35 * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]) / np.sqrt(2)
    return Image.fromarray(np.clip(np.asarray(image) * light[..., None], 0, 255).astype(np.uint8))


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What training does to a portrait: a random mix of pose, crop, colour and noise; never lamp light."""
    if rng.random() < 0.7:
        mirror = rng.random() < 0.5
        image = _move(image, rng.uniform(-11, 11), rng.uniform(0.95, 1.28), *rng.uniform(-3, 3, 2), mirror)
    return _tint(image, rng, rng.uniform(0, 9)) if rng.random() < 0.7 else image
