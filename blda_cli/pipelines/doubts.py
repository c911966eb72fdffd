"""Checks before a run for signs of a wrong model description."""

from collections.abc import Sequence

from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.data.labels import LabelReader
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.runtime.monitor import Monitor
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.descriptions import (
    Comparison,
    described_network,
    glance,
    reachable_network,
    tells,
    untrained_norms,
)
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.python import varies
from blda_cli.segmenters.spec import SegmenterSpec

WEIGHTS, DESCRIPTION = "weights", "description"
"""Kinds of finding, the keys under which statistics record a doubt."""


_MOSTLY = 0.5
"""Share of label pixels without a class from which on a remark is made."""

_LISTED = 8
"""Names that a remark lists."""

UNSAID = (
    "the pixels go in as 0..1, not normalised, because the model's description says nothing else; most networks were "
    "trained with a mean and a deviation: say so under [preprocessing] in a TOML file"
)


def say_doubts(
    spec: SegmenterSpec, segmenter: Segmenter, files: Sequence[ImageSource], monitor: Monitor, *, trains: bool = False
) -> dict[str, str]:
    """Check a model's description before a run, and report doubts.

    Args:
        spec: the model's description.
        segmenter: the loaded model, its norms unchanged.
        files: the images of the run.
        monitor: receives the findings.
        trains: the run trains the network, for which random weights are a beginning.

    Returns:
        As `doubts_about`, for the provenance.

    Raises:
        BldaError: the network's weights are random, and it is not trained.
    """
    doubts = doubts_about(spec, segmenter, files)
    if WEIGHTS in doubts and not trains and _has_random_weights(spec, segmenter):
        raise BldaError(f"{doubts[WEIGHTS]}; --no-check runs it as it is")
    for doubt in doubts.values():
        monitor.say(f"{doubt} (blda check tells more, --no-check leaves this look out)")
    network = described_network(segmenter)
    if not doubts and network is not None and is_unsaid(spec) and not tells(network):
        segmenter.notes.append(UNSAID)
    return doubts


def doubts_about(spec: SegmenterSpec, segmenter: Segmenter, files: Sequence[ImageSource]) -> dict[str, str]:
    """Signs of forgotten weights or of a wrong preprocessing description, the gravest first.

    Takes a second or two: two images are run with each common description.

    Args:
        spec: the model's description.
        segmenter: the loaded model, its norms unchanged.
        files: the images.

    Returns:
        By kind of finding, one sentence with the finding and its remedy; empty where there is none.
    """
    network = described_network(segmenter)
    if network is None:
        return {}
    weights = forgotten_weights(spec, network)
    if weights:
        return {WEIGHTS: weights}
    comparison = glance(network, files)
    return {} if comparison is None else {DESCRIPTION: better_description(comparison)}


def forgotten_weights(spec: SegmenterSpec, segmenter: NetworkSegmenter) -> str | None:
    """One sentence where all or some of the network's weights still have their initial values."""
    network = reachable_network(segmenter)
    if network is None:
        return None
    fresh, total = untrained_norms(network)
    way_out = (
        "give them with --weights FILE, or as weights in the model's TOML"
        if spec.segmenter.kind == "python" and spec.segmenter.weights is None
        else "give the file of the trained network"
    )
    if total and fresh == total:
        return (
            f"the {total} norm layers of the network hold the values they are made with, so its weights were not "
            f"loaded: {way_out}"
        )
    if fresh:
        return (
            f"{fresh} of the {total} norm layers of the network hold the values they are made with, so a part of its "
            f"weights was not loaded: {way_out}"
        )
    if not total and _has_random_weights(spec, segmenter):
        return f"{spec.segmenter.factory} gives other weights each time it is called, so none were loaded: {way_out}"
    return None


def _has_random_weights(spec: SegmenterSpec, segmenter: Segmenter) -> bool:
    """Whether no weights file is given and the factory gives other weights each time it is called."""
    without = spec.segmenter.kind == "python" and spec.segmenter.weights is None
    network = described_network(segmenter)
    return without and network is not None and varies(spec, network)


def better_description(comparison: Comparison) -> str:
    """The sentence about a description that fits clearly better than the given one."""
    best, own = comparison.best, comparison.own
    return (
        f"another description of the network's input fits {own.fit.farther(best.fit):.1f} times better (norm distance "
        f"{best.fit.distance:.3f} against {own.fit.distance:.3f}): {best.description}, in place of {own.description}; "
        f"{best.description.in_place_of(own.description)}"
    )


def is_unsaid(spec: SegmenterSpec) -> bool:
    """Whether pixels go in as 0..1 because the model's description says nothing else."""
    said = spec.preprocessing
    nothing = said.mean is None and said.std is None and said.scale is None
    return nothing and spec.segmenter.kind in ("python", "exported", "torchscript", "onnx")


def label_remarks(reader: LabelReader, confusion: ConfusionMatrix, ignored: float, names: Sequence[str]) -> list[str]:
    """Problems of the labels themselves, one sentence each.

    Args:
        reader: has read them.
        confusion: of predictions and labels.
        ignored: share of the label pixels that have no class.
        names: of the classes.
    """
    found = []
    if ignored >= _MOSTLY:
        found.append(
            f"{ignored:.0%} of the label pixels have no class under the encoding {reader.encoding}: is it the right "
            "one (--label-encoding)?"
        )
    if reader.unmatched:
        found.append(f"classes of the labels that are none of the network's are ignored: {listed(reader.unmatched)}")
    absent = [name for name, present in zip(names, confusion.present.tolist(), strict=True) if not present]
    if absent:
        found.append(f"classes that occur in no label: {listed(absent)}")
    return found


def listed(names: Sequence[str]) -> str:
    """A few names, and how many there are beyond."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
