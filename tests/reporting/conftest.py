from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import LabelSource
from blda_cli.core.fitting import Evidence, fit_correction
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.statistics import LogitStatistics
from blda_cli.data.classes import ClassSet, class_set
from blda_cli.data.label_files import write_label_png
from blda_cli.data.pillow_images import PillowImage
from blda_cli.files import file_digest
from blda_cli.store.predictions import RECORD, PredictionWriter, RunRecord, write_record
from blda_cli.store.provenance import Provenance
from blda_cli.store.statistics import StatisticsFile, write_statistics

SIZE = (60, 90)


@dataclass
class Domain:
    """Made-up frames of which everything is known: ``FOLDER/images``, ``labels``, ``stats.h5`` and predictions."""

    folder: Path
    classes: ClassSet
    logits: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]

    @property
    def stats(self) -> Path:
        return self.folder / "stats.h5"

    def align(self, name: str, settings: AlignmentSettings, **record: object) -> Path:
        statistics = self.statistics
        correction = fit_correction(settings, Evidence(statistics, statistics.cells[settings.label_source]))
        made = RunRecord(
            classes=list(self.classes.names),
            palette=[list(color) for color in self.classes.palette],
            ids=list(self.classes.ids),
            model={"kind": "python"},
            settings={**asdict(settings), "scores": False},
            statistics={
                "file": str(self.stats),
                "sha256": file_digest(self.stats),
                "anchors": None,
                "anchors_sha256": None,
            },
            images={key: str(self.folder / "images" / f"{key}.png") for key in self.logits},
            pixels_before=[0] * len(self.classes),
            pixels_after=[0] * len(self.classes),
            provenance=Provenance(f"blda align --output {name}", date="2026-01-02T03:04:05+00:00"),
        )
        for field, value in record.items():
            setattr(made, field, value)
        folder = self.folder / name
        with PredictionWriter(folder, made) as writer:
            for key, logits in self.logits.items():
                file = PillowImage(Path(made.images[key]), key)
                writer.write(file, logits[0].argmax(dim=0).numpy(), correction.predict(logits)[0].numpy(), None)
            writer.flush()
        write_record(folder / RECORD, made)
        return folder

    @property
    def statistics(self) -> LogitStatistics:
        statistics = LogitStatistics(
            len(self.classes), [LabelSource.GROUND_TRUTH, LabelSource.PSEUDO, LabelSource.SOFT]
        )
        for key, logits in self.logits.items():
            statistics.update(logits, self.labels[key], [key])
        return statistics

    def write_statistics(self, *, labelled: bool) -> None:
        statistics = self.statistics
        if not labelled:
            del statistics.cells[LabelSource.GROUND_TRUTH]
            statistics.confusion = None
            statistics.sample.labels.fill_(IGNORE_INDEX)
        write_statistics(
            self.stats,
            StatisticsFile(
                statistics=statistics,
                classes=self.classes,
                model={"kind": "python", "factory": "streets:net", "weights": "sha256:00"},
                images=list(self.logits),
                complete=True,
                provenance=Provenance(
                    command="blda collect-stats --model net.toml --images frames --output stats.h5 --flip",
                    options={"--model": "net.toml", "--images": "frames", "--output": "stats.h5", "--flip": True},
                    date="2026-01-02T03:04:05+00:00",
                ),
            ),
        )


@pytest.fixture(scope="session")
def make_domain(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Domain]:
    """Makes frames of ``count`` classes; the last class never occurs, and of the others later ones are favoured."""

    def make(count: int, frames: int = 5, *, names: list[str] | None = None, labelled: bool = False) -> Domain:
        folder = tmp_path_factory.mktemp("domain")
        names = names or [f"class {number}" if number % 3 else f"a class called {number}" for number in range(count)]
        domain = Domain(folder, class_set(names), {}, {})
        generator = torch.Generator().manual_seed(count)
        favour = torch.linspace(-1.5, 1.5, count).view(1, count, 1, 1)
        for number in range(frames):
            coarse = torch.randn(1, count - 1, 5, 7, generator=generator)
            field = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic")
            labels = field.argmax(dim=1)
            truth = torch.nn.functional.one_hot(labels, count).permute(0, 3, 1, 2)
            noise = torch.nn.functional.interpolate(
                torch.randn(1, count, 15, 22, generator=generator), SIZE, mode="bilinear"
            )
            logits = 2.5 * truth + favour + 1.2 * noise
            logits[:, -1] -= 8  # never predicted
            key = f"drive/frame {number}"
            domain.logits[key], domain.labels[key] = logits, labels
            colors = np.array(domain.classes.palette, dtype=np.float64)[labels[0].numpy()]
            speckle = torch.randn(*SIZE, 3, generator=generator).numpy() * 12
            picture = (0.6 * colors + 60 + speckle).clip(0, 255).astype(np.uint8)
            (folder / "images/drive").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / "images" / f"{key}.png")
            write_label_png(folder / "labels" / f"{key}.png", labels[0].numpy(), domain.classes)
        domain.write_statistics(labelled=labelled)
        return domain

    return make
