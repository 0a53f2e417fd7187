"""Affine maps of the plane: rotations, flips, shifts, and what they make of each other."""

import math
from typing import NamedTuple

Box = tuple[float, float, float, float]


class Affine(NamedTuple):
    """`x' = a x + b y + c`, `y' = d x + e y + f`: a 2 x 3 matrix, in Pillow's order."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    def point(self, x: float, y: float) -> tuple[float, float]:
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def hull(self, box: Box) -> Box:
        """Returns the smallest upright box around the image of a box."""
        x1, y1, x2, y2 = box
        xs, ys = zip(*(self.point(x, y) for x in (x1, x2) for y in (y1, y2)), strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def after(self, first: 'Affine') -> 'Affine':
        """Returns the map that does `first` and then this one."""
        c, f = self.point(first.c, first.f)
        return Affine(self.a * first.a + self.b * first.d, self.a * first.b + self.b * first.e, c,
                      self.d * first.a + self.e * first.d, self.d * first.b + self.e * first.e, f)

    def inverse(self) -> 'Affine':
        """Returns the map back; of quarter turns and flips it is exact."""
        det = self.a * self.e - self.b * self.d
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    @property
    def keeps_pixels(self) -> bool:
        """Whether whole pixels become whole pixels: quarter turns, flips, whole shifts."""
        return ({abs(self.a), abs(self.b)} == {abs(self.d), abs(self.e)} == {0, 1}
                and abs(self.a) == abs(self.e) and all(map(float.is_integer, map(float, self))))


IDENTITY = Affine()


def shift(right: float, down: float) -> Affine:
    return Affine(c=right, f=down)


def rotation(degrees: float) -> Affine:
    """Returns a clockwise rotation, as seen on an image, whose y points down."""
    if degrees % 90 == 0:  # Sines and cosines would be off by 1e-16.
        cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(degrees // 90) % 4]
    else:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return Affine(cos, -sin, 0.0, sin, cos, 0.0)
