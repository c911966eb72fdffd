"""The inputs of a fit: the statistics of the images, and optional statistics of other images."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from blda_cli.core.choices import LabelSource
from blda_cli.core.corrections import Correction
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.statistics import LogitStatistics


@dataclass(frozen=True)
class Evidence:
    """The inputs of a fit.

    Attributes:
        statistics: of the images to be corrected.
        anchor_cells: the cells whose pools are the anchors: the source's where there are some, else the target's own.
        labelled: statistics with ground truth of a few images like the target's, for the supervised method.
        priors: frequencies of the classes at each place, ``[C, rows, columns]``, for class-normalised confidence.
        norms_shifted: the batch norm statistics of the images differ from the network's, see
            :mod:`blda_cli.core.norms`: they are out of domain, even if the logits do not show it.
        norms_adapted: the network's batch norms held statistics of these images: most of the shift is gone already.
        reference: statistics of images of the training domain, without labels: the label-free strength follows from
            what differs between the two, and is 0 where nothing does.
    """

    statistics: LogitStatistics
    anchor_cells: LogitHistogram
    labelled: LogitStatistics | None = None
    priors: Tensor | None = None
    norms_shifted: bool = False
    norms_adapted: bool = False
    reference: LogitStatistics | None = None

    def cells(self, source: LabelSource) -> LogitHistogram:
        """The target's cells of a label source.

        Raises:
            ValueError: they were not counted.
        """
        if source not in self.statistics.cells:
            counted = ", ".join(self.statistics.cells)
            raise ValueError(f"the statistics hold no {source} cells (only {counted})")
        return self.statistics.cells[source]

    def cpu(self) -> "Evidence":
        """The same evidence with every histogram on the CPU, where the samples are."""
        return replace(
            self,
            statistics=self.statistics.cpu(),
            anchor_cells=self.anchor_cells.cpu(),
            reference=None if self.reference is None else self.reference.cpu(),
        )


Fit = Callable[[AlignmentSettings, Evidence, float], Correction]
"""A method: fits the correction of a given strength."""
