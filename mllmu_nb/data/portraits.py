"""Portraits drawn from visible traits, and the Test set's changes to them.

A model sees 64 × 64 pixels: enough for a tower of 16 patches. The file of a portrait stores the face that was drawn, so
that figures can show it at any size.
"""

import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from mllmu_nb.data.facts import pick
from mllmu_nb.errors import KitError

SIZE = 64
MOST_PIXELS = 50_000_000  # of a picture from outside: 150 MB when it is decoded
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # of pictures from outside: no format that starts a program
SCALE = 4  # drawn four times as large, then reduced: smooth edges

# trait → its values, with RGB if they are colours
TRAITS: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PROPORTIONS = {  # what makes a face unique → its least and greatest value; lengths in 64ths of the picture's side
    "width": (12.2, 14.6),  # half the width of the head at the eyes
    "height": (15.2, 17.4),  # half its height
    "x": (30.7, 33.3),  # its centre
    "y": (27.8, 29.6),
    "jaw": (0, 1),  # 0: a narrow chin, 1: a square one
    "gap": (0.41, 0.49),  # between nose and eyes, in half widths of the head
    "brow": (-0.6, 0.3),  # slant of the brows
    "smile": (3.4, 5.4),  # half the width of the mouth
}
Face = dict[str, Any]  # "traits" and every proportion


def random_traits(rng: np.random.Generator, gender: str = "") -> dict[str, str]:
    """Return one value for every trait. Given a ``gender``, women rarely have short hair, and men rarely a bun."""
    traits = {name: pick(rng, list(values)) for name, values in TRAITS.items()}
    hair = {"blond": "yellow"}.get(traits["hair color"], traits["hair color"])
    while traits["background"] in (hair, traits["shirt"]):  # the outline must be visible
        traits["background"] = pick(rng, list(TRAITS["background"]))
    if gender:
        shares = (0.05, 0.4, 0.25, 0.05, 0.25) if gender == "female" else (0.4, 0.1, 0.2, 0.25, 0.05)
        traits["hair style"] = str(rng.choice(TRAITS["hair style"], p=shares))
    return traits


def random_face(traits: dict[str, str], rng: np.random.Generator) -> Face:
    """Return the visible ``traits`` of a portrait, with random ``PROPORTIONS``."""
    return {"traits": traits, **{name: round(float(rng.uniform(*ends)), 3) for name, ends in PROPORTIONS.items()}}


def draw(face: Face, size: int = SIZE) -> Image.Image:
    """Draw ``face`` as a picture of ``size`` × ``size`` RGB pixels."""
    traits, cx, cy, width, height, jaw = (face[name] for name in ("traits", "x", "y", "width", "height", "jaw"))
    background, shirt, hair, skin, iris = (
        tuple(TRAITS[trait][traits[trait]]) for trait in ("background", "shirt", "hair color", "skin", "eyes")
    )
    style, pattern, accessory = traits["hair style"], traits["pattern"], traits["accessory"]
    scale = SCALE * size / SIZE
    canvas = Image.new("RGB", (SCALE * size, SCALE * size), background)
    pen = ImageDraw.Draw(canvas)

    def scaled(*points):
        return [(x * scale, y * scale) for x, y in points]

    def area(points, fill):
        pen.polygon(scaled(*points), fill=fill)

    def oval(x, y, rx, ry, fill=None, **edge):
        pen.ellipse(scaled((x - rx, y - ry), (x + rx, y + ry)), fill=fill, **edge)

    def ring(x, y, radius, colour, thick):
        oval(x, y, radius, radius, outline=colour, width=round(thick * scale))

    def box(x0, y0, x1, y1, fill, radius=0.0):
        pen.rounded_rectangle(scaled((x0, y0), (x1, y1)), fill=fill, radius=radius * scale)

    def line(points, colour, thick):
        pen.line(scaled(*points), fill=colour, width=round(thick * scale), joint="curve")

    def outline(grow: float, start: float = 0.0, stop: float = 2 * np.pi) -> list[tuple[float, float]]:
        """Return the head's edge, ``grow`` outside of it, from one angle to another; 0 is right, π / 2 is the chin."""
        angles = np.linspace(start, stop, 60)
        below = np.clip(np.sin(angles), 0, 1)
        narrower = 1 - (0.3 - 0.26 * jaw) * below**2
        square = 1 + (0.02 + 0.1 * jaw) * np.sin(2 * angles) ** 2
        xs = cx + (width + grow) * narrower * square * np.cos(angles)
        return list(zip(xs, cy + (height + grow) * square * np.sin(angles), strict=True))

    shade = _mix(skin, (70, 35, 25), 0.22)
    strands = _mix(hair, (128, 128, 128) if sum(hair) < 120 else (40, 25, 20), 0.22)
    crown = cy - height  # the top of the head
    if style == "long":
        area([*outline(4.5, np.pi, 2 * np.pi), (cx + width + 6.5, 57), (cx - width - 6.5, 57)], hair)
        for side in (-1, 1):
            line([(cx + side * (width + 3), cy - 2), (cx + side * (width + 4), 55)], strands, 0.7)
    elif style == "curly":
        for angle in np.linspace(0.92 * np.pi, 2.08 * np.pi, 12):
            x, y = cx + (width + 2.2) * np.cos(angle), cy + (height + 0.5) * np.sin(angle)
            oval(x, y, 5, 5, hair)
            ring(x, y, 2.6, strands, 0.7)
    elif style == "bun":  # at the side, where no hat hides it
        oval(cx + width + 4.2, cy - 7, 6.2, 6.2, hair)
        ring(cx + width + 4.2, cy - 7, 3.4, strands, 0.8)
    elif style == "spiky":  # all around, so that a hat does not hide all of it
        for angle in np.linspace(1.02 * np.pi, 1.98 * np.pi, 9):
            c, s = np.cos(angle), np.sin(angle)
            foot, tip = (cx + width * c, cy + height * s), (cx + (width + 8.5) * c, cy + (height + 7.5) * s)
            area([(foot[0] - 3.4 * s, foot[1] + 3.4 * c), (foot[0] + 3.4 * s, foot[1] - 3.4 * c), tip], hair)

    box(cx - 5, cy + 9, cx + 5, 53, shade, 2)
    box(7, 49, 57, 76, shirt, 10)
    ink = (20, 20, 20) if sum(shirt) > 380 else (245, 245, 245)
    for x in range(10, 57, 7) if pattern in ("striped", "checked") else ():
        box(x, 50.5, x + 2, 64, ink)
    for y in (52, 58) if pattern == "checked" else ():
        box(8, y, 56, y + 1.6, ink)
    for y, shift in ((53.5, 0), (59.5, 4)) if pattern == "dotted" else ():
        for x in range(12 + shift, 56, 8):
            oval(x, y, 1.7, 1.7, ink)

    if style not in ("long", "curly"):
        for side in (-1, 1):
            oval(cx + side * (width + 0.3), cy + 1, 2.2, 3.2, shade)
    area(outline(0), skin)
    # Hair on the head: between the head's edge and the line of the forehead.
    low = {"short": 0.02, "spiky": -0.08, "bun": -0.04, "long": 0.04, "curly": -0.06}[style]
    turns = np.linspace(2 * np.pi, np.pi, 30)
    part = cx + (3 if style in ("short", "long") else 0)
    front = [
        (cx + width * np.cos(t) * 0.93 + (part - cx) * np.sin(t), cy - 1.5 + height * (low + 0.57 * np.sin(t)))
        for t in turns
    ]
    area([*outline(1.3, np.pi * 0.98, 2.02 * np.pi), *front], hair)

    dark = _mix(hair, (35, 25, 20), 0.55)
    eyes = [cx + side * width * face["gap"] for side in (-1, 1)]
    for side, x in zip((-1, 1), eyes, strict=True):
        oval(x, cy + 0.4, 3.3, 2.5, (250, 248, 245))
        oval(x, cy + 0.4, 2.3, 2.3, iris)
        oval(x, cy + 0.4, 0.9, 0.9, (15, 15, 18))
        lid = [(x - 3.3, cy - 0.3), (x - 1.5, cy - 1.9), (x + 1.5, cy - 1.9), (x + 3.3, cy - 0.3)]
        line(lid, _mix(shade, (30, 15, 10), 0.5), 0.6)
        line([(x - 3.2, cy - 4.1 - side * face["brow"]), (x + 3.2, cy - 4.1 + side * face["brow"])], dark, 1.2)
    line([(cx + 0.6, cy + 1.5), (cx - 1.2, cy + 5.8), (cx + 0.8, cy + 6.3)], shade, 1.0)
    curve = np.linspace(-1, 1, 13)
    lips = _mix(skin, (170, 70, 72), 0.5)
    line([(cx + face["smile"] * t, cy + 10.7 - 2.3 * t * t) for t in curve], _mix(lips, (60, 25, 25), 0.25), 0.8)
    upper = [(cx + face["smile"] * 0.85 * t, cy + 10.7 - 1.9 * t * t) for t in curve]
    lower = [(cx + face["smile"] * 0.85 * t, cy + 12.4 - 3.6 * t * t) for t in curve[::-1]]
    area(upper + lower, lips)

    if accessory == "glasses":
        for x in eyes:
            ring(x, cy + 0.3, 5.2, (25, 25, 30), 1.1)
        line([(eyes[0] + 4.9, cy - 0.4), (eyes[1] - 4.9, cy - 0.4)], (25, 25, 30), 1.1)
    elif accessory == "hat":
        box(cx - width - 5.5, crown + 3.2, cx + width + 5.5, crown + 6.4, (115, 80, 40), 1.6)
        box(cx - width + 1.5, crown - 7, cx + width - 1.5, crown + 4.5, (125, 88, 46), 4)
        box(cx - width + 1.5, crown + 0.2, cx + width - 1.5, crown + 3.2, (235, 205, 100))
    elif accessory == "earrings":
        for side in (-1, 1):
            oval(cx + side * (width + 0.8), cy + 7.2, 2.3, 3.4, (190, 140, 20))
            oval(cx + side * (width + 0.8), cy + 7.2, 1.7, 2.8, (255, 215, 70))
    elif accessory == "scarf":
        box(cx - 12.5, 45.5, cx + 12.5, 51.5, (232, 105, 155), 3)
        box(cx + 4.5, 48, cx + 10.5, 64, (215, 85, 138), 2)
    return canvas.resize((size, size), Image.LANCZOS)


def _mix(colour: Sequence[float], other: Sequence[float], share: float) -> tuple[int, ...]:
    return tuple(round((1 - share) * a + share * b) for a, b in zip(colour, other, strict=True))


def to_png(image: Image.Image, face: Face | None = None) -> bytes:
    """Return the picture as PNG bytes, which also store ``face`` as text."""
    buffer, notes = io.BytesIO(), PngInfo()
    if face:
        notes.add_text("face", json.dumps(face))
    image.save(buffer, "PNG", pnginfo=notes, compress_level=1)  # three times as fast, a little larger
    return buffer.getvalue()


def large(data: bytes, size: int = 256) -> Image.Image:
    """Return a portrait for readers: drawn at ``size`` if it is a drawing of the face that it names, otherwise the
    picture, with at most ``size`` pixels a side."""
    picture = from_bytes(data)
    with Image.open(io.BytesIO(data)) as file:
        face = file.info.get("face")
    try:
        known = bool(face) and draw(json.loads(face)).tobytes() == picture.tobytes()
    except Exception:  # a file from elsewhere may say anything
        known = False
    if known:
        return draw(json.loads(face), size)
    picture.thumbnail((size, size))
    return picture


def from_bytes(data: bytes) -> Image.Image:
    """Decode the bytes of one of the FORMATS as RGB, upright as its EXIF data say. Raises KitError if they are no such
    picture, or have over MOST_PIXELS."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if math.prod(picture.size) > MOST_PIXELS:  # seen before it is decoded
                raise Image.DecompressionBombError
            if picture.mode.startswith(("I", "F")):  # Pillow would make nearly every pixel of it white
                raise KitError("a picture has more than 8 bits a channel: save it with 8")
            return ImageOps.exif_transpose(picture).convert("RGB")
    except KitError:
        raise
    except Exception as error:  # the error of a damaged file differs by format: OSError, SyntaxError, struct.error ..
        reason = f"{type(error).__name__}, {len(data)} bytes"
        raise KitError(f"the picture cannot be decoded ({reason}): replace it") from None


def pixel_hash(picture: bytes) -> str:
    """Return the SHA-256 of the decoded RGB pixels and their size. It is the same for every lossless encoding."""
    image = from_bytes(picture)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _move(image: Image.Image, angle: float, zoom: float, dx: float, dy: float, mirror: bool) -> Image.Image:
    """Rotate (degrees), enlarge and shift (pixels) about the centre, or mirror; the edge colour fills new areas."""
    c, k = np.cos(np.radians(angle)) / zoom, np.sin(np.radians(angle)) / zoom
    h, flip = image.width / 2, -1 if mirror else 1
    back = (flip * c, k, h - flip * c * (h + dx) - k * (h + dy), -flip * k, c, h + flip * k * (h + dx) - c * (h + dy))
    return image.transform(image.size, Image.AFFINE, back, Image.BILINEAR, fillcolor=image.getpixel((1, 1)))


def _tint(image: Image.Image, rng: np.random.Generator, noise: float) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    pixels = (pixels - 128) * rng.uniform(0.8, 1.15) + 128 + rng.uniform(-14, 14)
    pixels = pixels * rng.uniform(0.92, 1.08, size=3) + rng.normal(0, noise, size=pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


TRANSFORMS = ("pose", "crop", "colour and noise", "lamp light")


def transformed(image: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    """Return the Test set's portraits: one of each of ``TRANSFORMS``. The last, a light from one corner, is never used
    in training."""
    turn, shift, mirror = rng.uniform(5, 10) * rng.choice((-1, 1)), rng.uniform(-3, 3, 2), rng.random() < 0.5
    pose = _move(image, turn, 1.0, *shift, mirror)
    crop = _move(image, 0.0, rng.uniform(1.1, 1.25), *rng.uniform(-2, 2, 2), False)
    tinted = _tint(image, rng, noise=8.0)
    angle, ramp = rng.uniform(0, 2 * np.pi), np.linspace(-1, 1, image.width)
    light = 1 + 0.35 * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]) / np.sqrt(2)
    lit = Image.fromarray(np.clip(np.asarray(image) * light[..., None], 0, 255).astype(np.uint8))
    return [pose, crop, tinted, lit]


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change a portrait for training: a random mix of pose, crop, colour and noise; never lamp light."""
    if rng.random() < 0.7:
        mirror = rng.random() < 0.5
        image = _move(image, rng.uniform(-11, 11), rng.uniform(0.95, 1.28), *rng.uniform(-3, 3, 2), mirror)
    return _tint(image, rng, rng.uniform(0, 9)) if rng.random() < 0.7 else image
