"""A street in perspective, drawn far to near with Pillow: colour, lamps, class and distance of every pixel."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(len(CLASSES))
UNLABELLED = 255

WIDTH, HEIGHT = 192, 128  # pixels
SUPERSAMPLING = 2  # drawn larger and averaged down, so that edges are smooth
FOCAL_LENGTH = 150.0  # pixels
CAMERA_HEIGHT = 1.5  # metres
NEAREST, FARTHEST = 2.0, 80.0  # metres

Color = tuple[float, float, float]  # reflectances, 0..1
Point = tuple[float, float]  # pixels
Drawing = tuple[float, Callable[[], None]]  # distance in metres, and what draws it

CIRCLE: list[Point] = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 17)[:-1]]

PAINTS: tuple[Color, ...] = (
    (0.70, 0.12, 0.10),
    (0.12, 0.20, 0.50),
    (0.75, 0.75, 0.76),
    (0.08, 0.08, 0.09),
    (0.30, 0.33, 0.36),
    (0.15, 0.35, 0.25),
    (0.85, 0.82, 0.70),
)
FACADES: tuple[Color, ...] = (
    (0.55, 0.30, 0.22),
    (0.72, 0.62, 0.45),
    (0.60, 0.58, 0.55),
    (0.80, 0.76, 0.70),
    (0.45, 0.38, 0.35),
)
CLOTHES: tuple[Color, ...] = ((0.10, 0.10, 0.14), (0.55, 0.12, 0.12), (0.15, 0.25, 0.45), (0.65, 0.60, 0.50))
SKIN: Color = (0.75, 0.55, 0.45)
SIGNS: tuple[Color, ...] = ((0.80, 0.08, 0.08), (0.10, 0.25, 0.70), (0.90, 0.75, 0.10))
DARK: Color = (0.0, 0.0, 0.0)
LAMPLIGHT: Color = (1.0, 0.85, 0.6)
REARLIGHT: Color = (0.9, 0.1, 0.05)


@dataclass(frozen=True)
class Contents:
    """What a street holds: mean numbers of objects in view, and shares of the plots along it.

    ``fences`` and ``gaps`` are the shares of plots with a fence or nothing instead of a building; ``storeys`` are the
    least and most of a building.
    """

    cars: float
    pedestrians: float
    bicyclists: float
    signs: float
    lamps: float
    trees: float
    fences: float
    gaps: float
    storeys: tuple[int, int]


class Canvas:
    """Four pictures drawn at once: colour, light of its own (where it is lit), class ids and distance in metres."""

    def __init__(self, horizon: float) -> None:
        size = (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING)
        self.color = Image.new("RGB", size)
        self.label = Image.new("L", size, SKY)
        self.lamps = Image.new("RGB", size)
        below_horizon = np.arange(size[1]) / SUPERSAMPLING - horizon
        ground = FOCAL_LENGTH * CAMERA_HEIGHT / np.maximum(below_horizon, 1e-6)
        rows = np.minimum(ground, FARTHEST).astype(np.float32)
        self.distance = Image.fromarray(np.repeat(rows[:, None], size[0], axis=1))
        self._pens = [ImageDraw.Draw(image) for image in (self.color, self.lamps, self.label, self.distance)]

    def polygon(
        self,
        points: Sequence[Point],
        color: Color,
        label: int | None = None,
        distance: float | None = None,
        lamp: Color = DARK,
    ) -> None:
        """Fill a polygon; without a label or distance, those stay what they are."""
        corners = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        self._pens[0].polygon(corners, _rgb(color))
        self._pens[1].polygon(corners, _rgb(lamp))
        if label is not None:
            self._pens[2].polygon(corners, label)
        if distance is not None:
            self._pens[3].polygon(corners, distance)


class Street:
    """One scene. X is metres to the right of the camera, Y metres above the ground, Z metres ahead.

    Attributes:
        canvas: where it is drawn.
        sun: the side the sun is on, -1 (left) or 1; None without sun, when nothing has a shadow.
    """

    def __init__(self, contents: Contents, sunny: bool, rng: np.random.Generator) -> None:
        self.contents = contents
        self.rng = rng
        self.sun = int(rng.choice([-1, 1])) if sunny else None
        self.vanishing_x = WIDTH * rng.uniform(0.35, 0.65)
        self.vanishing_y = HEIGHT * rng.uniform(0.38, 0.5)
        self.kerbs = (-rng.uniform(2.5, 6.0), rng.uniform(2.5, 6.0))
        self.pavement_width = rng.uniform(2.0, 4.0)
        self.canvas = Canvas(self.vanishing_y)
        self._draw_sky()
        self._draw_backdrop()
        self._draw_ground()
        drawings = [*self._plots(), *self._objects()]
        for _, draw in sorted(drawings, key=lambda drawing: -drawing[0]):
            draw()
        self._draw_bonnet()

    def project(self, x: float, y: float, z: float) -> Point:
        """A point of the world in pixels."""
        scale = FOCAL_LENGTH / z
        return self.vanishing_x + scale * x, self.vanishing_y + scale * (CAMERA_HEIGHT - y)

    # Shapes

    def _ground(self, x: tuple[float, float], z: tuple[float, float], color: Color, label: int | None = None) -> None:
        """Fill a rectangle on the ground."""
        corners = [(x[0], z[0]), (x[1], z[0]), (x[1], z[1]), (x[0], z[1])]
        self.canvas.polygon([self.project(a, 0, b) for a, b in corners], color, label)

    def _upright(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: float,
        color: Color,
        label: int | None = None,
        lamp: Color = DARK,
    ) -> None:
        """Fill a rectangle that faces the camera."""
        corners = [(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1])]
        self.canvas.polygon([self.project(a, b, z) for a, b in corners], color, label, z, lamp)

    def _wall(
        self,
        x: float,
        y: tuple[float, float],
        z: tuple[float, float],
        color: Color,
        label: int | None = None,
        lamp: Color = DARK,
    ) -> None:
        """Fill a rectangle along the street."""
        corners = [(y[0], z[0]), (y[1], z[0]), (y[1], z[1]), (y[0], z[1])]
        self.canvas.polygon([self.project(x, a, b) for a, b in corners], color, label, float(np.mean(z)), lamp)

    def _disc(self, x: float, y: float, z: float, radius: float, color: Color, label: int, lamp: Color = DARK) -> None:
        """Fill a disc that faces the camera."""
        points = [self.project(x + radius * cos, y + radius * sin, z) for cos, sin in CIRCLE]
        self.canvas.polygon(points, color, label, z, lamp)

    # Colours

    def _pick(self, colors: Sequence[Color], spread: float = 0.15) -> Color:
        return _scaled(colors[int(self.rng.integers(len(colors)))], self.rng.uniform(1 - spread, 1 + spread))

    def _leaves(self) -> Color:
        return _scaled((0.20, 0.36, 0.12), self.rng.uniform(0.5, 1.3))

    def _grey(self, low: float, high: float) -> Color:
        return _scaled((1.0, 0.99, 0.97), self.rng.uniform(low, high))

    def _shade(self, side: int) -> float:
        """How light a wall on one side of the street is."""
        return 0.6 if side == self.sun else 1.0

    # Surroundings

    def _draw_sky(self) -> None:
        horizon = int(self.vanishing_y) + 2
        for row in range(horizon):
            share = row / horizon
            color = (0.32 + 0.43 * share, 0.52 + 0.33 * share, 0.85 + 0.10 * share)
            self.canvas.polygon([(0, row), (WIDTH, row), (WIDTH, row + 1), (0, row + 1)], color, SKY)
        for _ in range(self.rng.poisson(4)):
            x, y = self.rng.uniform(-80, 80), self.rng.uniform(5, 40)
            for _ in range(8):
                spot = (x + self.rng.normal(0, 6), y + self.rng.normal(0, 1))
                self._disc(*spot, FARTHEST, self.rng.uniform(1, 3), (0.93, 0.94, 0.96), SKY)

    def _draw_backdrop(self) -> None:
        x = -70.0
        while x < 70:
            width = self.rng.uniform(5, 12)
            height = self.rng.uniform(0.6, 1) * 3 * self.contents.storeys[1]
            if self.rng.random() < self.contents.gaps:
                for _ in range(12):
                    spot = (x + self.rng.uniform(0, width), self.rng.uniform(0, 5))
                    self._disc(*spot, FARTHEST, self.rng.uniform(1, 2.5), self._leaves(), TREE)
            else:
                self._upright((x, x + width), (0, height), FARTHEST, self._pick(FACADES), BUILDING)
            x += width

    def _draw_ground(self) -> None:
        paving, asphalt = self._grey(0.5, 0.62), self._grey(0.3, 0.4)
        self._ground((-100, 100), (1, FARTHEST), paving, PAVEMENT)
        for z in np.geomspace(NEAREST, 30, 24):
            self._ground((-30, 30), (z, z * 1.01), _scaled(paving, 0.9))
        self._ground(self.kerbs, (1, FARTHEST), asphalt, ROAD)
        for kerb in self.kerbs:
            self._ground((kerb - 0.12, kerb + 0.12), (1, FARTHEST), _scaled(paving, 1.15))
        centre = float(np.mean(self.kerbs))
        for z in np.arange(self.rng.uniform(2, 4), 40, 6):
            self._ground((centre - 0.1, centre + 0.1), (z, z + 3), (0.85, 0.85, 0.82))
        if self.sun is not None:
            kerb = self.kerbs[0] if self.sun < 0 else self.kerbs[1]
            for z in np.cumsum(self.rng.uniform(2, 14, 6)):
                tip = kerb - self.sun * min(self.rng.uniform(1, 8), self.kerbs[1] - self.kerbs[0])
                self._ground((kerb, tip), (z, z + self.rng.uniform(1, 4)), _scaled(asphalt, 0.6))

    def _draw_bonnet(self) -> None:
        """The car that carries the camera; it has no class."""
        top = HEIGHT - self.rng.uniform(5, 9)
        points = [(WIDTH * 0.1, HEIGHT), (WIDTH * 0.25, top), (WIDTH * 0.75, top), (WIDTH * 0.9, HEIGHT)]
        self.canvas.polygon([(x, float(y)) for x, y in points], self._pick(PAINTS), UNLABELLED, 1.0)

    # Along the street

    def _plots(self) -> Iterator[Drawing]:
        kinds = (self._draw_building, self._draw_fence, self._draw_trees)
        shares = (1 - self.contents.fences - self.contents.gaps, self.contents.fences, self.contents.gaps)
        for side, kerb in zip((-1, 1), self.kerbs, strict=True):
            z = NEAREST
            while z < FARTHEST / 2:
                end = z + self.rng.uniform(6, 14)
                draw = kinds[self.rng.choice(len(kinds), p=shares)]
                yield end, partial(draw, side, kerb + side * self.pavement_width, (z, end))
                z = end

    def _draw_building(self, side: int, x: float, z: tuple[float, float]) -> None:
        low, high = self.contents.storeys
        storeys = int(self.rng.integers(low, high + 1))
        height = 3.0 * storeys + self.rng.uniform(0.3, 1.5)
        paint = self._pick(FACADES)
        self._upright((x, x + side * 12), (0, height), z[0], _scaled(paint, 0.85), BUILDING)
        facade = _scaled(paint, self._shade(side))
        self._wall(x, (0, height), z, facade, BUILDING)
        windows = max(int((z[1] - z[0]) / 2.5), 1)
        step = (z[1] - z[0]) / windows
        for storey in range(storeys):
            for window in range(windows):
                near = z[0] + (window + 0.3) * step
                y = 3.0 * storey + 1.0
                glass = _scaled((0.25, 0.30, 0.36), self.rng.uniform(0.6, 1.4))
                lamp = LAMPLIGHT if self.rng.random() < 0.2 else DARK
                self._wall(x, (y, y + 1.5), (near, near + 0.45 * step), glass, lamp=lamp)

    def _draw_fence(self, side: int, x: float, z: tuple[float, float]) -> None:
        height = self.rng.uniform(1.0, 1.9)
        self._draw_trees(side, x, z)
        paint = _scaled(self._pick(((0.45, 0.32, 0.2), (0.3, 0.36, 0.3), (0.62, 0.62, 0.6))), self._shade(side))
        self._wall(x, (0, height), z, paint, FENCE)
        for post in np.arange(z[0], z[1], 0.5):
            self._wall(x, (0, height), (post, post + 0.12), _scaled(paint, 0.6))

    def _draw_trees(self, side: int, x: float, z: tuple[float, float]) -> None:
        for _ in range(self.rng.poisson(1.5)):
            self._draw_tree(x + side * self.rng.uniform(2, 5), self.rng.uniform(*z))

    # On the street

    def _objects(self) -> Iterator[Drawing]:
        left, right = self.kerbs
        kinds: tuple[tuple[float, Callable[[float, float], None], tuple[float, float]], ...] = (
            (self.contents.trees, self._draw_tree, (0.6, 1.2)),
            (self.contents.lamps, self._draw_lamp, (0.3, 0.6)),
            (self.contents.signs, self._draw_sign, (0.3, 0.8)),
            (self.contents.pedestrians, self._draw_pedestrian, (0.5, self.pavement_width - 0.3)),
            (self.contents.cars, self._draw_car, (-1.1, -1.1)),
            (self.contents.bicyclists, self._draw_bicyclist, (-1.5, -0.4)),
        )
        for mean, draw, beyond_kerb in kinds:
            for _ in range(self.rng.poisson(mean)):
                offset = self.rng.uniform(*beyond_kerb)
                x = right + offset if self.rng.random() < 0.5 else left - offset
                # Even in 1/Z, which is even in the image: near and far objects are drawn alike often.
                z = 1 / self.rng.uniform(1 / 35, 1 / 5)
                yield z, partial(draw, x, z)

    def _draw_tree(self, x: float, z: float) -> None:
        height = self.rng.uniform(4, 8)
        self._upright((x - 0.15, x + 0.15), (0, height / 2), z, (0.22, 0.16, 0.10), TREE)
        for _ in range(40):
            spot = (x + self.rng.normal(0, height / 8), self.rng.normal(0.7, 0.15) * height)
            self._disc(*spot, z, self.rng.uniform(0.2, 0.6), self._leaves(), TREE)

    def _draw_lamp(self, x: float, z: float) -> None:
        height = self.rng.uniform(4, 7)
        self._upright((x - 0.09, x + 0.09), (0, height), z, self._grey(0.25, 0.5), POLE)
        arm = x - np.sign(x) * 1.2
        self._upright((x, arm), (height - 0.12, height), z, (0.35, 0.36, 0.38), POLE)
        self._upright((arm - 0.2, arm + 0.2), (height - 0.3, height - 0.1), z, (0.8, 0.8, 0.75), POLE, lamp=LAMPLIGHT)

    def _draw_sign(self, x: float, z: float) -> None:
        height = self.rng.uniform(2.2, 3.0)
        self._upright((x - 0.06, x + 0.06), (0, height), z, self._grey(0.4, 0.6), POLE)
        paint = self._pick(SIGNS)
        if self.rng.random() < 0.5:
            self._disc(x, height, z, 0.45, paint, SIGN)
            self._disc(x, height, z, 0.28, (0.9, 0.9, 0.9), SIGN)
        else:
            width = self.rng.uniform(0.4, 0.7)
            self._upright((x - width, x + width), (height - 0.4, height + 0.4), z, paint, SIGN)
            self._upright((x - width / 2, x + width / 2), (height - 0.1, height + 0.1), z, (0.9, 0.9, 0.9), SIGN)

    def _draw_car(self, x: float, z: float) -> None:
        paint = self._pick(PAINTS)
        if self.sun is not None:
            self._ground((x - 1.1, x + 1.1), (z * 0.97, z * 1.02), (0.1, 0.1, 0.1))
        for wheel in (x - 0.7, x + 0.7):
            self._upright((wheel - 0.15, wheel + 0.15), (0, 0.5), z, (0.05, 0.05, 0.05), CAR)
        self._upright((x - 0.9, x + 0.9), (0.25, 0.95), z, paint, CAR)
        roof = [(x - 0.8, 0.95), (x - 0.6, 1.5), (x + 0.6, 1.5), (x + 0.8, 0.95)]
        self.canvas.polygon([self.project(*corner, z) for corner in roof], _scaled(paint, 0.8), CAR, z)
        self._upright((x - 0.55, x + 0.55), (1.0, 1.4), z, (0.18, 0.22, 0.26), CAR)
        for light in (x - 0.75, x + 0.75):
            self._upright((light - 0.12, light + 0.12), (0.65, 0.85), z, REARLIGHT, CAR, lamp=REARLIGHT)

    def _draw_pedestrian(self, x: float, z: float) -> None:
        self._draw_person(x, 0.0, z, PEDESTRIAN)

    def _draw_bicyclist(self, x: float, z: float) -> None:
        for wheel in (x - 0.5, x + 0.5):
            self._disc(wheel, 0.35, z, 0.35, (0.08, 0.08, 0.08), BICYCLIST)
            self._disc(wheel, 0.35, z, 0.24, (0.35, 0.35, 0.36), BICYCLIST)
        self._upright((x - 0.5, x + 0.5), (0.45, 0.6), z, self._pick(PAINTS), BICYCLIST)
        self._draw_person(x, 0.3, z, BICYCLIST)

    def _draw_person(self, x: float, y: float, z: float, label: int) -> None:
        trousers, jacket = self._pick(CLOTHES), self._pick(CLOTHES)
        stride = self.rng.uniform(0.05, 0.2)
        for leg in (x - stride, x + stride):
            self._upright((leg - 0.09, leg + 0.09), (y, y + 0.85), z, trousers, label)
        self._upright((x - 0.24, x + 0.24), (y + 0.75, y + 1.45), z, jacket, label)
        self._disc(x, y + 1.6, z, 0.15, SKIN, label)


def _scaled(color: Color, factor: float) -> Color:
    red, green, blue = color
    return red * factor, green * factor, blue * factor


def _rgb(color: Color) -> tuple[int, int, int]:
    red, green, blue = (round(255 * min(max(value, 0.0), 1.0)) for value in color)
    return red, green, blue
