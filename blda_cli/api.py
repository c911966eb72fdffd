"""The Python interface: the commands as functions, and a correction for an inference loop of one's own."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blda_cli.core.checks import check_logits
from blda_cli.core.corrections import Correction
from blda_cli.core.fitting import resolve_strength
from blda_cli.core.methods import AlignmentSettings, chosen_settings
from blda_cli.core.norms import MixedNorms, Norms
from blda_cli.core.statistics import LogitStatistics
from blda_cli.data.classes import ClassSet, class_set, numbered_classes
from blda_cli.errors import BldaError
from blda_cli.exporting.correct import corrected_module
from blda_cli.files import claim
from blda_cli.finetuning import run as pipeline_of_finetune
from blda_cli.finetuning.settings import FinetuneRequest, full_names, run_settings
from blda_cli.pipelines import align as pipeline_of_align
from blda_cli.pipelines import check as pipeline_of_check
from blda_cli.pipelines import collect
from blda_cli.pipelines import export as pipeline_of_export
from blda_cli.pipelines import merge as pipeline_of_merge
from blda_cli.pipelines import report as pipeline_of_report
from blda_cli.pipelines.alignment_inputs import AlignmentInputs, StatisticsInput, fit
from blda_cli.pipelines.export import ExportRecord
from blda_cli.pipelines.job import Job
from blda_cli.pipelines.requests import (
    AlignRequest,
    CheckRequest,
    CollectRequest,
    ExportRequest,
    FilesRequest,
    MergeRequest,
    ReportRequest,
    request,
)
from blda_cli.reporting.check_model import Check
from blda_cli.reporting.model import Report
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.segmenters.instance_norms import mixing
from blda_cli.settings import fitted
from blda_cli.store import statistics as store
from blda_cli.store.predictions import RunRecord
from blda_cli.store.provenance import Provenance, current_provenance
from blda_cli.store.statistics import StatisticsFile

Array = NDArray[Any]


@dataclass(frozen=True, repr=False)
class Alignment:
    """A rule that turns a network's logits into debiased predictions.

    Attributes:
        settings: method, form and strength, which is a number here even where it was ``"auto"``.
        classes: of the logits' channels.
        correction: the rule itself.
        norms: norm statistics that the network has to have, or the weight with which it has to mix them with each
            image's own; :meth:`module` puts them in. None: its own. :meth:`predict` and :meth:`scores` warn where they
            are not called within :class:`InstanceNorms` of that weight.

    Example:
        >>> import torch
        >>> from blda_cli import Alignment, LogitStatistics
        >>> logits = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> logits[:, 0] += 1  # channel 0 lies too high
        >>> statistics = LogitStatistics(num_classes=3)
        >>> statistics.update(logits)
        >>> alignment = Alignment.fit(statistics, shift="balanced", tau=1.0)
        >>> before, after = logits.argmax(dim=1), alignment.predict(logits)
        >>> (after == 0).sum() < (before == 0).sum()
        tensor(True)
    """

    settings: AlignmentSettings
    classes: ClassSet
    correction: Correction
    norms: Norms | MixedNorms | None = None

    @classmethod
    def from_file(
        cls,
        statistics: str | Path,
        *,
        reference: str | Path | None = None,
        anchors: str | Path | None = None,
        labelled: str | Path | None = None,
        spatial_priors: str | Path | None = None,
        preset: str | None = None,
        **choices: Any,
    ) -> "Alignment":
        """Fit a correction to a file of statistics, of the images to be corrected or of others like them.

        Args:
            statistics: what ``blda collect-stats`` or :func:`blda_cli.write_statistics` wrote. Where it holds norm
                statistics (``norms``), the logits must come from a network with these.
            reference: statistics of a few dozen images like those the network was trained on, without labels: the
                strength follows from the difference from them; the quantile and location forms take their anchors
                there.
            anchors: the former name of ``reference``.
            labelled: statistics with labels of a few images, for the supervised method.
            spatial_priors: statistics with labels, for class-normalised confidence.
            preset: ``"published"``: the alignment as published. (``"strong"`` is for :func:`collect_stats` and
                :func:`align`, which run the network.)
            **choices: as the options of ``blda align``, with the same defaults: ``method``, ``shift``, ``tau``,
                ``label_source``, ``density``, ``tails``; see :class:`AlignmentSettings`.

        Returns:
            The alignment, on the CPU.

        Raises:
            BldaError: a file cannot be read, the files do not fit each other, or they lack what the method needs.
            ValueError: there is no such choice.
        """
        given = {"reference": reference, "anchors": anchors, "labelled": labelled, "spatial_priors": spatial_priors}
        files = fitted(FilesRequest, {name: path for name, path in given.items() if path} | {"stats": str(statistics)})
        return _aligned(AlignmentInputs.read(files), chosen_settings(choices, preset))

    @classmethod
    def fit(
        cls,
        statistics: LogitStatistics,
        *,
        reference: LogitStatistics | None = None,
        norm_distance: float | None = None,
        norm_weight: float | None = None,
        norm_shift: float | None = None,
        preset: str | None = None,
        **choices: Any,
    ) -> "Alignment":
        """Fit a correction to statistics that were counted in the same program.

        Args:
            statistics: of the images to be corrected or of others like them.
            reference: statistics of images like those the network was trained on, see :meth:`from_file`.
            norm_distance: see :func:`write_statistics`.
            norm_weight: likewise.
            norm_shift: the former name of ``norm_distance``.
            preset: see :meth:`from_file`.
            **choices: see :meth:`from_file`.

        Raises:
            BldaError: the statistics lack what the method needs.
            ValueError: there is no such choice.
        """
        norm_distance = _renamed(norm_distance, norm_shift)
        known = None if reference is None else StatisticsInput(_content(reference, None, None, None))
        target = StatisticsInput(_content(statistics, None, norm_distance, norm_weight))
        inputs = AlignmentInputs(target, known)
        return _aligned(inputs, chosen_settings(choices, preset))

    @overload
    def predict(self, logits: Tensor, *, check_finite: bool = ...) -> Tensor: ...

    @overload
    def predict(self, logits: Array, *, check_finite: bool = ...) -> Array: ...

    def predict(self, logits: Tensor | Array, *, check_finite: bool = False) -> Tensor | Array:
        """The debiased class of every pixel.

        Args:
            logits: ``[N, C, *spatial]`` (``[N, C]`` of a classifier) floating point, a tensor on the alignment's
                device or a numpy array.
            check_finite: raise where a logit is NaN or infinite, which waits for the device.

        Returns:
            int64 ``[N, *spatial]``, an array where ``logits`` is one.

        Raises:
            TypeError: ``logits`` is not of floating-point numbers.
            ValueError: it has another shape, lies on another device, or is not finite.
        """
        found = self.correction.predict(self._checked(logits, check_finite).detach())
        return found if isinstance(logits, Tensor) else found.numpy()

    @overload
    def scores(self, logits: Tensor, *, check_finite: bool = ...) -> Tensor: ...

    @overload
    def scores(self, logits: Array, *, check_finite: bool = ...) -> Array: ...

    def scores(self, logits: Tensor | Array, *, check_finite: bool = False) -> Tensor | Array:
        """Log-probabilities of each class under its own hypothesis, float32 ``[N, C, *spatial]``.

        They need not sum to one over the classes; the prediction is where they are highest. Arguments and errors are
        those of :meth:`predict`.
        """
        found = self.correction.scores(self._checked(logits, check_finite))
        return found if isinstance(logits, Tensor) else found.numpy()

    def module(self, network: nn.Module, images: Tensor | None = None, *, probabilities: bool = False) -> nn.Module:
        """The network with this alignment in it, which takes the network's place and needs no blda to predict.

        It runs under ``torch.compile``, ``DistributedDataParallel`` and autograd; an argmax over its output's
        channels is :meth:`predict` of the network's output.

        Args:
            network: gives logits of the classes, ``[N, C, H, W]`` or ``[N, C]``, as a tensor, or in a dict, a tuple or
                an object with ``.logits``. A copy of it is changed.
            images: float ``[N, 3, h, w]``, made as the network takes them, to try it on; by default random ones.
            probabilities: the network gives probabilities.

        Returns:
            Where the correction is one offset per class and a layer of the network can take it, a copy of the network
            with another bias. Else a module that holds the copy as ``network`` and returns its output with corrected
            scores in it: those of corrections that are no offsets at the size of ``images``.

        Raises:
            BldaError: the network cannot be run, has other channels, or other batch norms than :attr:`norms` are for.

        Example:
            >>> import torch
            >>> from blda_cli import Alignment, LogitStatistics
            >>> network = torch.nn.Conv2d(3, 4, 1)
            >>> images = torch.rand(8, 3, 32, 32)
            >>> statistics = LogitStatistics(num_classes=4)
            >>> statistics.update(network(images).detach())
            >>> alignment = Alignment.fit(statistics, shift="balanced", tau=0.5)
            >>> corrected = alignment.module(network)  # another bias
            >>> bool((corrected(images).argmax(dim=1) == alignment.predict(network(images).detach())).all())
            True
        """
        return corrected_module(
            network,
            self.correction,
            classes=len(self.classes),
            norms=self.norms,
            images=images,
            probabilities=probabilities,
        )

    @property
    def device(self) -> torch.device:
        """Where the logits must be; :meth:`to` changes it."""
        return next(value.device for value in vars(self.correction).values() if isinstance(value, Tensor))

    def to(self, device: torch.device | str) -> "Alignment":
        """The same alignment for logits on another device."""
        return replace(self, correction=self.correction.to(torch.device(device)))

    def __repr__(self) -> str:
        """Method, strength, norms, number of classes and device."""
        norms = f"{self._adapted}, " if self._adapted else ""
        return f"Alignment({self.settings.describe()}, {norms}{len(self.classes)} classes, on {self.device})"

    @property
    def _adapted(self) -> str:
        """The norms that the network has to have; empty: its own."""
        if self.norms is None or self.norms.identity is None:
            return ""
        return f"norm weight {self.norms.weight:g}" if isinstance(self.norms, MixedNorms) else "target norms"

    def _checked(self, logits: Tensor | Array, check_finite: bool) -> Tensor:
        values = logits
        if isinstance(logits, np.ndarray):
            # torch takes neither negative strides nor, without a warning, read-only arrays
            values = torch.from_numpy(np.require(logits, requirements=["C", "W"]))
        check_logits(values, len(self.classes))
        if values.device != self.device:
            raise ValueError(f"the logits are on {values.device}, the alignment on {self.device}: alignment.to(...)")
        if check_finite and not bool(torch.isfinite(values).all()):
            raise ValueError("logits are not finite")
        if self._adapted:
            self._warn_of_norms()
        return values

    def _warn_of_norms(self) -> None:
        way_out = "use alignment.module(network)"
        if isinstance(self.norms, MixedNorms):
            if mixing(self.norms.weight):
                return
            way_out += f", or run the network and this within blda_cli.InstanceNorms(network, {self.norms.weight:g})"
        warnings.warn(f"the alignment is for logits of the network with {self._adapted}: {way_out}", stacklevel=4)


def write_statistics(
    path: str | Path,
    statistics: LogitStatistics,
    classes: str | Sequence[str] | None = None,
    *,
    norm_distance: float | None = None,
    norm_weight: float | None = None,
    model: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    norm_shift: float | None = None,
) -> None:
    """Write statistics that were counted in a user's own loop.

    ``blda report --stats`` and :meth:`Alignment.from_file` take the file as it is. ``blda align --stats`` cannot check
    that it is of the model given, and requires ``--force``.

    Args:
        path: the HDF5 file to write.
        statistics: the statistics.
        classes: a preset's name (``"cityscapes"``), or one name per class; by default the classes are numbered.
        norm_distance: :attr:`ObservedNorms.distance` of the pass, which detects images out of domain even where the
            network is confident in its predictions; None: unknown.
        norm_weight: of the :class:`InstanceNorms` that the network ran within; None: it ran with its own norms.
        model: a note about the network: anything that JSON can hold.
        overwrite: replace a file that is there.
        norm_shift: the former name of ``norm_distance``.

    Raises:
        BldaError: the file is there or cannot be written, or the names are not those of as many classes.

    Example:
        >>> import tempfile, torch
        >>> from blda_cli import LogitStatistics, read_statistics, write_statistics
        >>> statistics = LogitStatistics(num_classes=3)
        >>> statistics.update(torch.randn(2, 3, 32, 32))
        >>> path = Path(tempfile.mkdtemp()) / "frames.h5"
        >>> write_statistics(path, statistics, classes=["road", "tree", "car"])
        >>> read_statistics(path).classes.names
        ('road', 'tree', 'car')
    """
    norm_distance = _renamed(norm_distance, norm_shift)
    with _keywords_named():
        claim(Path(path), overwrite=overwrite)
    content = _content(statistics, classes, norm_distance, norm_weight)
    store.write_statistics(Path(path), replace(content, model=dict(model or {})))


def _renamed(norm_distance: float | None, norm_shift: float | None) -> float | None:
    """The norm distance, under its former name too."""
    if norm_shift is None:
        return norm_distance
    warnings.warn("norm_shift is called norm_distance now", DeprecationWarning, stacklevel=3)
    return norm_shift


def _content(
    statistics: LogitStatistics,
    classes: str | Sequence[str] | None,
    norm_distance: float | None,
    norm_weight: float | None,
) -> StatisticsFile:
    count = statistics.num_classes
    names = numbered_classes(count) if classes is None else class_set(classes)
    if len(names) != count:
        raise BldaError(f"{len(names)} classes are named, the statistics are of {count}: give one name per class")
    if norm_weight is not None and not 0 <= norm_weight <= 1:
        raise BldaError(f"norm_weight = {norm_weight:g} should be between 0 and 1")
    return StatisticsFile(
        statistics,
        names,
        model={},
        complete=True,
        provenance=Provenance(norm_distance=norm_distance),
        norms=None if norm_weight is None else MixedNorms(norm_weight),
    )


def _aligned(inputs: AlignmentInputs, settings: AlignmentSettings) -> Alignment:
    if not isinstance(settings.tau, str) and settings.tau > 1:
        warnings.warn(f"a strength of {settings.tau:g} overcorrects: 1 moves the cells all the way", stacklevel=3)
    evidence = inputs.evidence(settings)
    settings = replace(settings, tau=resolve_strength(settings, evidence))
    target = inputs.target.content
    return Alignment(settings, target.classes, fit(settings, evidence), target.norms)


def check(**options: Any) -> Check:
    """Check a model's description, as ``blda check`` does.

    Args:
        **options: as the command's, e.g. ``model="net.toml", images="frames", output="check"``.

    Returns:
        The findings; their ``remarks`` come the gravest first.

    Raises:
        BldaError: the model, an image or a label cannot be read, the network cannot be run, or a file cannot be
            written.

    Example:
        >>> import blda_cli
        >>> for remark in blda_cli.check(model="net.toml", images="frames").remarks:  # doctest: +SKIP
        ...     print(remark)
    """
    with _keywords_named():
        return pipeline_of_check.check(request(CheckRequest, options), SilentMonitor())


def collect_stats(
    *, output: str | Path, overwrite: bool = False, **options: Any
) -> StatisticsFile | dict[Path, StatisticsFile]:
    """Count a segmenter's logits over images, as ``blda collect-stats`` does.

    Args:
        output: the HDF5 file to write.
        overwrite: replace it.
        **options: as the command's, e.g. ``model="net.toml", images="frames", flip=True``.

    Returns:
        The content of the file; with ``by="folder"`` of every file, by its path.

    Raises:
        BldaError: the segmenter, an image or a label cannot be read, or the file cannot be written.

    Example:
        >>> import blda_cli
        >>> blda_cli.collect_stats(model="net.toml", images="frames", output="frames.h5")  # doctest: +SKIP
        >>> blda_cli.align(  # doctest: +SKIP
        ...     model="net.toml", images="frames", stats="frames.h5", output="aligned"
        ... )
        >>> report = blda_cli.report("frames.h5", ["aligned"], output="report")  # doctest: +SKIP
    """
    asked = request(CollectRequest, options)
    with _keywords_named():
        written = collect.collect_stats(asked, _job("collect_stats", output, overwrite, options))
    return written if asked.by else next(iter(written.values()))


def align(*, output: str | Path, overwrite: bool = False, **options: Any) -> RunRecord:
    """Write a segmenter's corrected predictions of images, as ``blda align`` does.

    Args:
        output: the folder to write.
        overwrite: replace it.
        **options: as the command's, e.g. ``model="net.toml", images="frames", stats="frames.h5"``.

    Returns:
        The record of the folder.

    Raises:
        BldaError: the segmenter, an image or a statistics file cannot be read, the statistics are of another model,
            or the predictions cannot be written.
    """
    with _keywords_named():
        return pipeline_of_align.align(request(AlignRequest, options), _job("align", output, overwrite, options))


def report(
    stats: str | Path,
    aligned: Sequence[str | Path] = (),
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Report:
    """Report how over- or under-predicted each class is, and what corrections changed, as ``blda report`` does.

    Args:
        stats: the statistics.
        aligned: folders of corrected predictions.
        output: a folder to write ``report.html``, ``report.json`` and ``report.csv`` to; None writes nothing.
        overwrite: replace a report that is there.
        **options: as the command's, e.g. ``labels="labels", compare=True``.

    Returns:
        The report's numbers.

    Raises:
        BldaError: a file cannot be read or written, or the files do not fit each other.
    """
    options |= {"stats": Path(stats), "aligned": [Path(folder) for folder in aligned] or None}
    job = _job("report", output, overwrite, options) if output is not None else None
    with _keywords_named():
        return pipeline_of_report.report(request(ReportRequest, options), job)


def export(*, output: str | Path, overwrite: bool = False, **options: Any) -> ExportRecord:
    """Write a corrected network that runs without blda, as ``blda export`` does.

    Args:
        output: the folder to write.
        overwrite: replace an export that is there.
        **options: as the command's, e.g. ``model="net.toml", images="frames", stats="frames.h5", format="onnx"``.

    Returns:
        The record of the folder.

    Raises:
        BldaError: the segmenter, an image or a statistics file cannot be read, the format cannot hold the correction,
            or the export predicts something else than :func:`align`.

    Example:
        >>> import blda_cli
        >>> record = blda_cli.export(  # doctest: +SKIP
        ...     model="net.toml", images="frames", stats="frames.h5", output="exported", format="onnx"
        ... )
        >>> record.agreement.describe()  # doctest: +SKIP
        'equal on all 1,382,400 pixels of 4 images'
    """
    with _keywords_named():
        return pipeline_of_export.export(request(ExportRequest, options), _job("export", output, overwrite, options))


def merge(parts: Sequence[str | Path], *, output: str | Path, overwrite: bool = False) -> StatisticsFile | RunRecord:
    """Put statistics files, or folders of predictions, of different images together, as ``blda merge`` does.

    Args:
        parts: the files or folders.
        output: the file or folder to write.
        overwrite: replace it.

    Returns:
        What was written.

    Raises:
        BldaError: the parts do not go together, or the output cannot be written.
    """
    options = {"parts": [Path(part) for part in parts]}
    with _keywords_named():
        return pipeline_of_merge.merge(request(MergeRequest, options), _job("merge", output, overwrite, options))


def finetune(
    *,
    output: str | Path,
    resume: bool = False,
    config: str | Path | None = None,
    host: str | None = None,
    preset: str | None = None,
    device: str = "auto",
    workers: int = 4,
    tensorboard: bool = False,
    write_model: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a segmenter on images of another domain, as ``blda finetune`` does.

    Args:
        output: the run folder.
        resume: go on from its checkpoint, if there is one.
        config: a run's ``config.toml``, whose settings the options replace.
        host: ``"dacs"``, ``"daformer"`` or ``"mic"``.
        preset: ``"published"``.
        device: where to train.
        workers: threads that read images.
        tensorboard: also write TensorBoard events.
        write_model: where to write the description of the network that is trained; ``model`` describes it after that.
        **options: as the command's, e.g. ``model="net.toml", target_images="dusk", source=False, method="dacs"``; other
            settings as ``section__name``, e.g. ``cag__confidence=0.9``.

    Returns:
        ``output``, ``model`` (the trained model's description) and ``validation``: the last scores, or None.

    Raises:
        BldaError: the model, the images or the run folder cannot be used, or a loss is not finite.

    Example:
        >>> import blda_cli
        >>> run = blda_cli.finetune(  # doctest: +SKIP
        ...     model="net.toml", target_images="dusk", source=False, method="dacs", iterations=800, output="run"
        ... )
        >>> blda_cli.collect_stats(model=run["model"], images="dusk", output="dusk.h5")  # doctest: +SKIP
    """
    given = full_names(options)
    settings = run_settings(given, "finetune", config=Path(config) if config else None, host=host, preset=preset)
    kept = Path(write_model) if write_model else None
    asked = FinetuneRequest(settings, resume, device, workers, tensorboard, kept)
    return pipeline_of_finetune.finetune(asked, _job("finetune", output, False, options))


@contextmanager
def _keywords_named() -> Iterator[None]:
    """Within ``with``, errors name the keywords that their remedy is given by, not the options."""
    try:
        yield
    except BldaError as error:
        error.args = (str(error).replace("--overwrite", "overwrite=True").replace("--no-check", "check=False"),)
        raise


def _job(name: str, output: str | Path, overwrite: bool, options: Mapping[str, Any]) -> Job:
    given: dict[str, Any] = {
        f"--{key.replace('_', '-')}": value if isinstance(value, bool) else str(value)
        for key, value in options.items()
        if value is not None and key != "set"
    }
    if options.get("set") is not None:  # may be given several times
        given["--set"] = [str(one) for one in options["set"]]
    return Job(Path(output), overwrite, current_provenance(f"blda_cli.{name}", given))
