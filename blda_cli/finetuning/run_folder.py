"""A run folder: settings, metrics, checkpoint, pictures and the trained model."""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from blda_cli.data.classes import ClassSet
from blda_cli.data.pixels import stretched
from blda_cli.errors import BldaError
from blda_cli.files import replacing, to_json, unwritable
from blda_cli.finetuning.learning_curves import learning_curves
from blda_cli.finetuning.settings import Settings
from blda_cli.segmenters.spec import SegmenterSpec, to_toml
from blda_cli.typed import check_type

FORMAT = "blda-run"

_ENTRY: dict[str, Any] = {
    "losses": Mapping[str, float | None] | None,
    "validation": Mapping[str, Any] | None,
    "unlabelled": Mapping[str, Any] | None,
}
"""Types of the plotted entries in a line of the metrics."""

_CHECKPOINT: dict[str, Any] = {
    "settings": str,
    "model": dict[str, Any],
    "norms": str,
    "norm_weight": float | None,
    "trainer": dict[str, Any],
}
"""Types of a checkpoint's entries; older ones lack ``norm_weight``."""


class RunFolder:
    """The folder of all outputs of a run.

    ``config.toml``, ``run.json`` (command, versions, the initial model, the state of the data's files),
    ``metrics.jsonl`` and their plot ``metrics.svg``, ``checkpoint.pth``, ``source_classes.npz`` (pixels of each class
    in the source images), ``pictures/`` of mixed batches, ``model.toml`` and its weights, ``statistics.h5``;
    ``tensorboard/`` on request; with the target's own labels ``start.h5`` and ``pseudo_labels/start/``, see
    :func:`blda_cli.finetuning.own_labels.label_target`.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        """The settings, resolved."""
        return self.path / "config.toml"

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return self.path / "checkpoint.pth"

    @property
    def model(self) -> Path:
        """The trained model's description."""
        return self.path / "model.toml"

    @property
    def _record(self) -> Path:
        return self.path / "run.json"

    @property
    def _class_pixels(self) -> Path:
        return self.path / "source_classes.npz"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    def check_free(self) -> None:
        """Make sure that a run can start here.

        Raises:
            BldaError: there is a run with a checkpoint, or something else.
        """
        if self.checkpoint.exists():
            raise BldaError(f"{self.path} holds a run already: --resume goes on with it, or choose another folder")
        if self.path.exists() and not self.path.is_dir():
            raise BldaError(f"{self.path} is no folder: choose a new one")
        if self.path.is_dir() and any(self.path.iterdir()) and self.record() is None:
            raise BldaError(f"{self.path} holds other things: choose a new folder")

    def record(self) -> dict[str, Any] | None:
        """The record that :meth:`start` wrote; None where there is none."""
        try:
            record: dict[str, Any] = json.loads(self._record.read_text(encoding="utf-8"))
            check_type(record, dict[str, Any], "record")
            check_type(record.get("data"), Mapping[str, str], "data")
        except (OSError, ValueError, RecursionError):
            return None
        return record if record.get("format") == FORMAT else None

    def changed(self, data: Mapping[str, str]) -> str | None:
        """A file that was modified, added or removed since this folder's run began; None where there is none.

        Args:
            data: the state of every file, by its path, see :func:`blda_cli.files.stamp`.
        """
        known = (self.record() or {}).get("data", {})
        return next((path for path in sorted({*known, *data}) if known.get(path) != data.get(path)), None)

    def start(self, settings: Settings, record: dict[str, Any]) -> None:
        """Write the run's settings and provenance.

        Raises:
            BldaError: the folder cannot be written.
        """
        _write_text(self._record, to_json({"format": FORMAT, **record}))  # the folder is ours now
        _write_text(self.config, settings.to_toml())

    def class_pixels(self, keys: Sequence[str], classes: ClassSet, meaning: str) -> np.ndarray | None:
        """Counts from :meth:`keep_class_pixels`, if they are of these images, classes and label values; ``[images,
        C]``."""
        try:
            with np.load(self._class_pixels, allow_pickle=False) as kept:
                same = np.array_equal(kept["keys"], keys) and np.array_equal(kept["classes"], classes.names)
                same = same and str(kept["meaning"]) == meaning
                pixels = np.asarray(kept["pixels"])
        except Exception:  # zipfile, zlib and numpy each have their own; what is lost is counted again
            return None
        fits = pixels.shape == (len(keys), len(classes)) and pixels.dtype.kind == "i" and pixels.min(initial=0) >= 0
        return pixels if same and fits else None

    def keep_class_pixels(self, keys: Sequence[str], classes: ClassSet, meaning: str, pixels: np.ndarray) -> None:
        """Keep how many pixels of each class every source image has, as reading all labels takes long.

        Args:
            keys: of the images.
            classes: the segmenter's.
            meaning: text that changes when the label files' values mean other classes.
            pixels: int64 ``[images, C]``.
        """
        with replacing(self._class_pixels) as temporary, temporary.open("wb") as stream:
            names = np.array(classes.names)
            np.savez(stream, keys=np.array(keys), classes=names, meaning=np.array(meaning), pixels=pixels)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; the old one stays until the new one is on disk.

        Raises:
            BldaError: it cannot be written; the old one is still there.
        """
        with replacing(self.checkpoint) as temporary:
            try:
                with temporary.open("wb") as stream:
                    torch.save(state, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
            except RuntimeError as error:  # what torch makes of a full disk
                raise BldaError(f"{self.checkpoint} cannot be written: {error}; the last one is kept") from error

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU; None where there is none.

        Raises:
            BldaError: it cannot be read.
        """
        if not self.checkpoint.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            for name, hint in _CHECKPOINT.items():
                check_type(state.get(name), hint, name)
            tomllib.loads(state["settings"])
        except ValueError as error:
            raise BldaError(f"{self.checkpoint} is no checkpoint: {error}") from error
        except Exception as error:  # unpickling raises anything on a damaged file
            raise BldaError(f"{self.checkpoint} cannot be read as a checkpoint: is it complete?") from error
        return state

    def cut_metrics(self, step: int) -> None:
        """Drop the entries after ``step``."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                check_type(entry, Mapping[str, Any], "entry")
                for name, hint in _ENTRY.items():
                    check_type(entry.get(name), hint, name)
                check_type(entry.get("iteration"), int, "iteration")
                if entry.get("unlabelled"):
                    check_type(entry["unlabelled"].get("agreement"), float, "unlabelled.agreement")
                    check_type(entry["unlabelled"].get("share"), Mapping[str, float], "unlabelled.share")
                if entry.get("validation"):
                    check_type(entry["validation"].get("iou"), Mapping[str, float | None], "validation.iou")
                    check_type(entry["validation"].get("mean_iou"), float | None, "validation.mean_iou")
            except (ValueError, RecursionError):  # a line that was being written, or somebody else's
                continue
            if entry["iteration"] <= step:
                kept.append(line)
        _write_text(self.metrics, "".join(f"{line}\n" for line in kept))

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line of JSON to the metrics.

        Raises:
            BldaError: it cannot be written.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise unwritable(self.metrics, error) from error

    def first_validation(self) -> dict[str, Any] | None:
        """The entry logged before the first step: scores of the validation, or the measurements without labels."""
        for entry in self._entries():
            if entry["iteration"] == 0:
                scores: dict[str, Any] | None = entry.get("validation") or entry.get("unlabelled")
                return scores
        return None

    def plot_metrics(self, classes: ClassSet) -> None:
        """Draw ``metrics.svg`` from the metrics logged so far.

        Raises:
            BldaError: it cannot be written.
        """
        entries = self._entries()
        if any(kind in entry for entry in entries for kind in ("losses", "validation", "unlabelled")):
            _write_text(self.path / "metrics.svg", learning_curves(entries, classes))

    def _entries(self) -> list[dict[str, Any]]:
        """The logged entries."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.is_file() else []
        return [json.loads(line) for line in lines]

    def save_pictures(self, step: int, images: Tensor, labels: Tensor, classes: ClassSet) -> None:
        """Save mixed images beside their labels.

        Args:
            step: names the file.
            images: float ``[N, B, h, w]`` in 0..255; RGB where B is 3, else shown by `stretched`.
            labels: ``[N, h, w]``.
            classes: for the colours.
        """
        colors = np.array([*classes.palette, (0, 0, 0)], dtype=np.uint8)  # IGNORE_INDEX is the last entry
        values = images.permute(0, 2, 3, 1).cpu().numpy()
        of_colors = values.shape[-1] == 3
        pixels = values.round().clip(0, 255).astype(np.uint8) if of_colors else [stretched(one) for one in values]
        rows = [np.concatenate(pair, axis=1) for pair in zip(pixels, colors[labels.cpu().numpy()], strict=True)]
        with replacing(self.path / "pictures" / f"{step:06}.png") as temporary:
            Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")

    def export(self, spec: SegmenterSpec, network: nn.Module, *, adapted_norms: bool) -> SegmenterSpec:
        """Write the model: ``weights.safetensors``, or ``weights.pth`` where safetensors is not installed.

        Args:
            spec: the description of the original network.
            network: the network to write.
            adapted_norms: whether its batch norms hold statistics of the target images.

        Returns:
            The description written to ``model.toml``.
        """
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
        try:
            from safetensors.torch import save_file
        except ModuleNotFoundError:
            weights = self.path / "weights.pth"
            with replacing(weights) as temporary:
                torch.save(state, temporary)
        else:
            weights = self.path / "weights.safetensors"
            with replacing(weights) as temporary:
                save_file(state, temporary)
        own = replace(spec.segmenter, weights=weights, weights_key=None, adapted_norms=adapted_norms, corrected=None)
        trained = replace(spec, segmenter=own)
        _write_text(self.model, to_toml(trained, self.path))
        return trained


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
