"""Compare how well several descriptions of a network's input fit the network, without labels.

Two measurements rate a description: the *norm distance*, how far the statistics that the network's batch norms see lie
from those of its training, and the *agreement* of its predictions with those on a smaller and on a mirrored copy of the
images. A wrong scale or normalisation shows in the distance; the agreement decides between descriptions that are
equally near, such as the two orders of the colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NEAR = 1.5
"""Descriptions whose norm distance is up to so many times the smallest are ordered by misfit, others by distance."""

CLEAR = 1.9
"""From this ratio of norm distances on one description fits clearly better than another. On clear frames of four
networks wrong scales and normalisations had 2.2 and more (but for the mean of another data set), right ones 1.0; on
frames turned to night, fog or noise right ones had 1.65 at most."""

TIED = 1.25
"""Up to this ratio of misfits two descriptions fit equally well."""

COLOUR = 1.15
"""From this ratio of misfits on the colour order counts as decided."""

_LEAST = 1e-4
"""Distances and disagreements below it are not meaningful and are raised to it."""


@dataclass(frozen=True)
class Fit:
    """How well one description fits.

    Attributes:
        distance: norm distance, 0 to 1; None for a network without batch norms.
        agreement: of the classes predicted on an image and on its changed copies, beyond what their shares alone would
            give (`agreement.kappa`); None where it was not measured.
    """

    distance: float | None
    agreement: float | None = None

    @property
    def misfit(self) -> float:
        """``distance · (1 − agreement)``, or the one factor that was measured; smaller is better.

        A product, because the ratios of both are comparable between networks while their sizes are not.
        """
        distance = 1.0 if self.distance is None else max(self.distance, _LEAST)
        return distance if self.agreement is None else distance * max(1 - self.agreement, _LEAST)

    def farther(self, other: "Fit") -> float:
        """How many times larger its norm distance is than another's; 1 without batch norms."""
        if self.distance is None or other.distance is None:
            return 1.0
        return max(self.distance, _LEAST) / max(other.distance, _LEAST)


def ranked(fits: Sequence[Fit]) -> list[int]:
    """Indices of fits, the best first.

    Those whose norm distance is `NEAR` the smallest come first, by their misfit; then the others, by their distance.
    """
    nearest = min(fits, key=lambda fit: 1.0 if fit.distance is None else fit.distance)

    def place(index: int) -> tuple[bool, float]:
        far = fits[index].farther(nearest) > NEAR
        return far, (fits[index].distance or 0.0) if far else fits[index].misfit

    return sorted(range(len(fits)), key=place)


def times(one: Fit, other: Fit) -> float:
    """How many times larger one misfit is than another, from the measurements that both have."""
    if one.agreement is None or other.agreement is None:
        return one.farther(other)
    return one.misfit / other.misfit
