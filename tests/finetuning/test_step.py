"""Training steps against a second implementation, written from the papers: every loss, gradients, updates."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.pillow_images import read_image
from blda_cli.finetuning.data.augmentation import augment
from blda_cli.finetuning.data.samples import Batch
from blda_cli.finetuning.trainer import Trainer

C, VOID = 4, IGNORE_INDEX
BASE = {
    "training.iterations": 40,
    "training.learning_rate": 0.01,
    "training.head_factor": 3.0,
    "training.weight_decay": 0.1,
    "host.teacher_momentum": 0.6,
    "host.confidence": 0.3,
    "host.ignore_rows": (6, 9),
    "blda.tau": 0.5,
    "blda.density_weight": 20.0,
    "blda.momentum": 0.8,
}


def gaussian_cdf(bank: dict[str, Tensor], values: Tensor) -> Tensor:
    """``F(z)`` of mixtures ``[..., K]`` at values ``[P]``."""
    standard = (values - bank["means"].unsqueeze(-1)) / bank["variances"].sqrt().unsqueeze(-1)
    below: Tensor = torch.special.ndtr(standard)
    return (bank["weights"].unsqueeze(-1) * below).sum(-2)


class Bank:
    """Online mixtures (Li et al., ICML 2025, §3.3), on the samples themselves, one cell at a time."""

    def __init__(self, cells: int, start: Any, momentum: float, warmup: int) -> None:
        self.values = {name: getattr(start, name).double().clone() for name in ("weights", "means", "variances")}
        self.stale, self.fitted, self.steps = torch.ones(cells), torch.zeros(cells, dtype=torch.bool), 0
        self.momentum, self.warmup = momentum, warmup

    def update(self, samples: list[Tensor], enough: float) -> None:
        kept = self.momentum * min(self.steps / self.warmup, 1)
        for cell, sample in enumerate(samples):
            old = {name: value[cell] for name, value in self.values.items()}
            new = old
            if len(sample) >= enough:
                for _ in range(3):
                    distance = sample[:, None] - new["means"]
                    density = new["weights"] * torch.exp(-(distance**2) / 2 / new["variances"])
                    density = density / (2 * torch.pi * new["variances"]).sqrt() + 1e-7
                    share = density / density.sum(1, keepdim=True)
                    means = (share * sample[:, None]).sum(0) / share.sum(0)
                    variances = (share * (sample[:, None] - means) ** 2).sum(0) / share.sum(0)
                    new = {"weights": share.mean(0), "means": means, "variances": variances.clamp(min=1e-4)}
                old_share = kept ** float(self.stale[cell]) if self.fitted[cell] else 0.0
                for name, value in self.values.items():
                    value[cell] = old_share * old[name] + (1 - old_share) * new[name]
            self.stale[cell] = 1 if len(sample) >= enough else self.stale[cell] + 1
            self.fitted[cell] |= len(sample) >= enough
        self.steps += 1


class Reference:
    """What a step's losses are, from a batch, the student's weights before it and the teacher's."""

    def __init__(self, trainer: Trainer, networks: tuple[nn.Module, nn.Module, nn.Module]) -> None:
        self.settings, (self.student, self.teacher, self.initial) = trainer.settings, networks
        self.density_head = trainer.student.density_head
        objective: Any = trainer.objective
        if trainer.settings.training.method == "blda":
            warmup = trainer.settings.training.iterations // 10
            arguments = (trainer.settings.blda.momentum, warmup)
            self.source = Bank(C * C + 2, objective.source.mixture, *arguments)
            self.target = Bank(C * C, objective.target.mixture, *arguments)

    def run(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = network.encoder(images / 255)  # type: ignore[operator]
        logits = network.classifier(features.relu())  # type: ignore[operator]
        return F.interpolate(logits, images.shape[2:], mode="bilinear"), features

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        host, blda = self.settings.host, self.settings.blda
        logits, features = self.run(self.student, batch.source_images)
        ones = torch.ones(batch.source_labels.shape)
        from_source = torch.ones_like(batch.pasted)
        losses = self.objective("source", logits, features, batch.source_labels, ones, from_source)
        if host.feature_distance:
            _, before = self.run(self.initial, batch.source_images)
            things = torch.stack([(batch.source_labels == 2).float()], 1)  # car
            mask = (F.avg_pool2d(things, 2)[:, 0] >= 0.75).float()
            distance = ((features - before.detach()) ** 2).sum(1).clamp(min=1e-24).sqrt()
            losses["feature_distance"] = host.feature_distance * (mask * distance).sum() / mask.sum()
        if self.settings.training.method == "source":
            return losses

        with torch.no_grad():
            seen, _ = self.run(self.teacher, batch.target_images)
            if host.whole_images:
                paths = [crop.file.path for crop in batch.target_crops]
                wholes = torch.stack([torch.tensor(read_image(path)).permute(2, 0, 1).float() for path in paths])
                for number, (logits, crop) in enumerate(
                    zip(self.run(self.teacher, wholes)[0], batch.target_crops, strict=True)
                ):
                    columns = crop.left + torch.arange(crop.size[1])
                    columns = columns.flip(0) if crop.mirrored else columns
                    seen[number] = logits[:, crop.top : crop.top + crop.size[0]][:, :, columns]
        confidence, pseudo = seen.softmax(1).max(1)
        rows = torch.stack([torch.arange(c.size[0]) + c.top for c in batch.target_crops])
        counted = (rows >= host.ignore_rows[0]) & (rows < 40 - host.ignore_rows[1])
        weights = (confidence >= host.confidence).float().mean((1, 2))[:, None, None] * counted[:, :, None] * ones
        mixed = torch.where(batch.pasted[:, None], batch.source_images, batch.target_images)
        logits, features = self.run(self.student, augment(mixed, batch.tone, batch.color, batch.blur))
        labels = torch.where(batch.pasted, batch.source_labels, pseudo)
        mixed_weights = torch.where(batch.pasted, 1.0, weights)
        losses |= self.objective("mixed", logits, features, labels, mixed_weights, batch.pasted)
        if host.masked_consistency:
            images = augment(batch.target_images, batch.masked_tone, batch.masked_color, batch.masked_blur)
            images = torch.where(batch.kept[:, None], images, images.mean((2, 3), keepdim=True))
            logits, _ = self.run(self.student, images)
            assert blda.tau is not None
            tau = blda.tau if self.settings.training.method == "blda" else 0.0
            shift = self.shift(logits, pseudo, torch.zeros_like(batch.pasted))[0] if tau else 0.0
            loss = F.cross_entropy(logits - tau * shift, pseudo, reduction="none")
            losses["masked"] = host.masked_consistency * (weights * loss).mean()
        return losses

    def objective(
        self, name: str, logits: Tensor, features: Tensor, labels: Tensor, weights: Tensor, from_source: Tensor
    ) -> dict[str, Tensor]:
        if self.settings.training.method != "blda":
            return {name: (weights * F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none")).mean()}
        own = (labels != VOID) & (weights > 0) & (from_source if name == "source" else ~from_source)
        values, of = logits.detach().double().permute(0, 2, 3, 1)[own], labels[own]
        cells = [values[of == label, channel] for label in range(C) for channel in range(C)]
        enough = 500 / (2 * 512**2) * labels.numel()
        if name == "source":
            diagonal = [label * C + label for label in range(C)]
            positive = torch.cat([cells[cell] for cell in diagonal])
            negative = torch.cat([cell for number, cell in enumerate(cells) if number not in diagonal])
            self.source.update([*cells, positive, negative], enough)
        else:
            self.target.update(cells, enough)
        shift, density = self.shift(logits, labels, from_source)
        blda = self.settings.blda
        assert blda.tau is not None
        corrected = F.cross_entropy(logits - blda.tau * shift, labels, ignore_index=VOID, reduction="none")
        assert self.density_head is not None
        predicted = self.density_head(features.relu(), logits.shape[2:])
        missed = torch.where(density.isnan(), 0, (predicted - density.nan_to_num()).abs())
        return {
            name: (weights * corrected).mean(),
            f"{name}_density": blda.density_weight * (weights * missed).mean(),
        }

    def shift(self, logits: Tensor, labels: Tensor, from_source: Tensor) -> tuple[Tensor, Tensor]:
        """``Δ[y, l](f_l)`` and ``F[y, y](f_y)`` of every pixel; anchors inverted by looking them up on a fine grid."""
        grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
        anchors = gaussian_cdf({name: value[-2:] for name, value in self.source.values.items()}, grid)
        shift, density = torch.zeros(logits.shape), torch.full(labels.shape, torch.nan)
        for bank, domain in ((self.source, from_source), (self.target, ~from_source)):
            for label in range(C):
                pixels = (labels == label) & domain
                for channel in range(C):
                    cell, values = label * C + channel, logits.detach()[:, channel][pixels].double()
                    if not bank.fitted[cell]:
                        continue
                    level = gaussian_cdf({name: value[cell] for name, value in bank.values.items()}, values)
                    place = torch.searchsorted(anchors[int(label != channel)].contiguous(), level.clamp(0.01, 0.99))
                    shift[:, channel][pixels] = (grid[place] - values).float()
                    if label == channel:
                        density[pixels] = level.float()
        return shift, density


PARTS: dict[str, dict[str, Any]] = {
    "source": {"training.method": "source"},
    "dacs": {"training.method": "dacs"},
    "blda": {},
    "dacs, all parts": {
        "training.method": "dacs",
        "host.feature_distance": 0.05,
        "host.masked_consistency": 0.7,
    },
    "dacs, labels of crops": {"training.method": "dacs", "host.whole_images": False},
    "blda, all parts": {"host.feature_distance": 0.05, "host.masked_consistency": 0.7},
}


@pytest.mark.parametrize("parts", PARTS)
def test_three_steps_are_those_of_the_papers(still_project: Any, batches: Callable[..., Any], parts: str) -> None:
    values = {name.replace(".", "__"): value for name, value in {**BASE, **PARTS[parts]}.items()}
    trainer = still_project.trainer(**values)
    networks = tuple(still_project.segmenter().module.train() for _ in range(3))
    reference = Reference(trainer, networks)
    student, teacher, _ = networks
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in trainer.student.network.parameters()]
    for step, batch in enumerate(batches(still_project, [[0, 1], [2, 3], [4, 5]], **values), start=1):
        before = [one.detach().clone() for one in trainer.student.network.parameters()]
        student.load_state_dict(trainer.student.network.state_dict())
        student.zero_grad()
        losses = reference.losses(batch)
        torch.stack(list(losses.values())).sum().backward()
        report = trainer.train_step([batch])

        assert report.losses.keys() == losses.keys()
        for name, value in losses.items():
            assert float(report.losses[name]) == pytest.approx(float(value.detach()), rel=2e-3), (step, name)
        # The updates, from the gradients that AdamW got; weights differ where gradients do.
        training = trainer.settings.training
        rate = training.learning_rate * min(step / 4, 1) * (1 - (step - 1) / 40)
        follow = max(1 / (step + 1), 1 - 0.6)
        parameters = zip(trainer.student.network.named_parameters(), student.parameters(), strict=True)
        for number, ((name, trained), expected) in enumerate(parameters):
            gradient = trained.grad
            assert gradient is not None
            assert expected.grad is not None
            torch.testing.assert_close(gradient, expected.grad, rtol=0.02, atol=float(expected.grad.abs().max()) / 100)
            first, second = moments[number]
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient**2, 0.001)
            way = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            layer_rate = rate * (1 if name.startswith("encoder") else 3)
            moved = before[number] - layer_rate * way - layer_rate * 0.1 * before[number] * (name not in NORMS)
            torch.testing.assert_close(trained.detach(), moved, rtol=1e-4, atol=1e-6)
            own = dict(teacher.named_parameters())[name]
            own.data = (1 - follow) * own.data + follow * trained.detach()
            torch.testing.assert_close(dict(trainer.teacher.network.named_parameters())[name], own)


NORMS = ("encoder.1.weight", "encoder.1.bias")
