"""Statistics files of a fit: reading, checks, assembly into evidence, records."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from blda_cli.core.corrections import Correction
from blda_cli.core.fitting import Evidence, fit_correction
from blda_cli.core.methods import AlignmentSettings
from blda_cli.errors import BldaError
from blda_cli.files import file_digest
from blda_cli.pipelines.requests import FilesRequest
from blda_cli.segmenters.base import Segmenter, model_identity
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.store.differences import difference_of
from blda_cli.store.provenance import DESCRIPTION_OPTIONS, INFERENCE_OPTIONS, option_words
from blda_cli.store.statistics import StatisticsFile, read_statistics


@dataclass(frozen=True)
class StatisticsInput:
    """Statistics that an alignment is fitted to.

    Attributes:
        content: the statistics.
        path: their file; None where they were counted in the same program.
        digest: of the file.
    """

    content: StatisticsFile
    path: Path | None = None
    digest: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a statistics file.

        Raises:
            BldaError: it cannot be read.
        """
        digest = file_digest(path) if path.is_file() else None
        return cls(read_statistics(path), path, digest)


@dataclass(frozen=True)
class AlignmentInputs:
    """All statistics that an alignment is fitted to.

    Attributes:
        target: statistics of the images to be corrected, or of others like them.
        reference: statistics of images of the training domain: a comparison with them shows whether the target is out
            of domain, and their pooled cells are the anchors; None: the target's cells are.
        labelled: statistics with ground truth of a few images like the target's, for the supervised method.
        spatial_priors: statistics with ground truth and its positions, e.g. of the source domain.
    """

    target: StatisticsInput
    reference: StatisticsInput | None = None
    labelled: StatisticsInput | None = None
    spatial_priors: StatisticsInput | None = None

    @classmethod
    def read(cls, request: FilesRequest, target: StatisticsInput | None = None) -> Self:
        """Read the files of a request.

        Args:
            request: names them.
            target: in place of ``request.stats``, where the statistics were collected just now.

        Raises:
            BldaError: one cannot be read.
        """
        paths = {one.name: getattr(request, one.name) for one in fields(cls) if one.name != "target"}
        if target is None:
            assert request.stats is not None
            target = StatisticsInput.read(request.stats)
        return cls(target, **{name: StatisticsInput.read(path) for name, path in paths.items() if path})

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Self | None:
        """Read the files that :meth:`record` named for an earlier run; None where one has changed since."""
        found = {}
        for name in (one.name for one in fields(cls)):
            key, digest_key = _record_keys(name)
            if name == "reference" and key not in record:  # as earlier versions called it
                key, digest_key = _record_keys("anchors")
            if record.get(key) is None:
                continue
            path = Path(record[key])
            if not path.is_file() or file_digest(path) != record.get(digest_key):
                return None
            found[name] = StatisticsInput.read(path)
        return cls(**found)

    def record(self) -> dict[str, str | None]:
        """Names and digests of the files, for ``run.json``."""
        made: dict[str, str | None] = {}
        for one in fields(self):
            used, (key, digest_key) = getattr(self, one.name), _record_keys(one.name)
            made[key] = str(used.path) if used else None
            made[digest_key] = used.digest if used else None
        return made

    def every(self) -> list[StatisticsInput]:
        """All of them, the target first."""
        return [used for one in fields(self) if (used := getattr(self, one.name)) is not None]

    def check(self, segmenter: Segmenter, inference: InferenceOptions, *, force: bool) -> None:
        """Refuse statistics of another segmenter, or with other inference options.

        Args:
            segmenter: the segmenter.
            inference: how it is run.
            force: accept statistics that differ in anything but the number of classes.

        Raises:
            BldaError: model, preprocessing, inference options or classes differ; the message names the difference.
        """
        for used in self.every():
            content = used.content
            if len(content.classes) != len(segmenter.classes):
                raise BldaError(
                    f"{used.path} is of {len(content.classes)} classes, the model has {len(segmenter.classes)}: "
                    "collect statistics with this model"
                )
            held, expected = content.model, model_identity(segmenter, inference)
            if used is self.reference:  # collected with the network's own norms, whatever the target's norm source
                held, expected = ({**one, "norms": None} for one in (held, expected))
            difference = difference_of(held, expected)
            if difference is None and content.classes.names != segmenter.classes.names:
                difference = "the classes"
            if difference and difference.startswith("norms") and self.target.path and used is not self.target:
                difference += f" (collect it with --norms {self.target.path})"
            if difference and difference.startswith("inference.scales") and used is not self.target and not force:
                scales = ",".join(f"{scale:g}" for scale in inference.scales)
                raise BldaError(f"{used.path} differs in {difference}: collect it with --scales {scales}, or --force")
            if difference and not force:
                options = INFERENCE_OPTIONS if difference.startswith("inference.") else DESCRIPTION_OPTIONS
                said = shlex.join(option_words(content.provenance.common_options(), options))
                raise BldaError(
                    f"{used.path} was made with another model or preprocessing: it differs in {difference}; "
                    f"{f'give {said} as it was collected with' if said else 'collect statistics with this one'}, or "
                    "--force"
                )

    def evidence(self, settings: AlignmentSettings) -> Evidence:
        """Assemble the inputs of a fit, with tensors on the CPU.

        Args:
            settings: method, form and strength.

        Raises:
            BldaError: a file lacks the label source, or two are of different classes or logit spaces.
        """
        target = self.target.content
        reference = self.reference.content if self.reference else None
        source = settings.label_source
        if "label_source" not in settings.takes and target.statistics.cells:
            source = next(iter(target.statistics.cells))
        if reference is not None:
            check_comparable(target, reference)
        anchors = reference if reference is not None and "reference" in settings.form.files else target
        for content in (target, anchors):
            if source not in content.statistics.cells:
                others = ", ".join(content.statistics.cells)
                raise BldaError(f"--label-source {source}: the statistics hold only {others}; collect that source too")
        return Evidence(
            target.statistics,
            anchors.statistics.cells[source],
            self.labelled.content.statistics if self.labelled else None,
            self._priors(target) if self.spatial_priors else None,
            norms_shifted=target.norms_shifted and not (reference and reference.norms_shifted),
            norms_adapted=target.norms_adapted,
            reference=reference.statistics if reference else None,
        )

    def _priors(self, target: StatisticsFile) -> Any:
        assert self.spatial_priors is not None
        content = self.spatial_priors.content
        if content.classes.names != target.classes.names:
            raise BldaError(
                "the spatial priors are of other classes than the statistics: collect both with the same model"
            )
        places = content.statistics.positions
        if places is None or not bool(places.counts.any()):
            raise BldaError(
                "the file given for the spatial priors does not tell where classes lie in the images: collect it with "
                "--labels, by this version of blda"
            )
        return places.priors()


def check_comparable(target: StatisticsFile, reference: StatisticsFile) -> None:
    """Refuse a reference that cannot be compared with the statistics.

    Raises:
        BldaError: it is of other classes, or of logits whose free constant is fixed in another way.
    """
    if reference.classes.names != target.classes.names:
        raise BldaError("the reference is of other classes than the statistics: collect both with the same model")
    if reference.statistics.space != target.statistics.space:
        raise BldaError(
            f"the reference holds {reference.statistics.space} logits, the statistics {target.statistics.space} ones: "
            "collect both with the same --logit-space"
        )


def fit(settings: AlignmentSettings, evidence: Evidence) -> Correction:
    """Fit a correction.

    Raises:
        BldaError: the evidence lacks what the method needs.
    """
    try:
        return fit_correction(settings, evidence)
    except ValueError as error:
        raise BldaError(str(error)) from error


def _record_keys(name: str) -> tuple[str, str]:
    """The keys in ``run.json`` of a file and of its digest."""
    return ("file", "sha256") if name == "target" else (name, f"{name}_sha256")
