import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import Tails
from blda_cli.core.mixture import GaussianMixture
from blda_cli.core.online_mixture import LogitGrid, OnlineMixture, count_cells, reach
from blda_cli.core.shifts import Anchors, quantile_shifts
from blda_cli.finetuning.methods.blda import Blda
from blda_cli.finetuning.methods.objective import MixedTargets, Objective
from blda_cli.finetuning.networks.student import Outputs
from blda_cli.finetuning.settings import Settings

C = 3


def method(**values: Any) -> Blda:
    settings = Settings().with_values({key.replace("__", "."): value for key, value in values.items()}, "test")
    return Blda(settings.blda, C, torch.device("cpu"))


def labelled(blda: Blda, logits: Tensor) -> Tensor:
    labels = blda.target_labels(logits)
    assert labels is not None
    return labels


def forward(seed: int, size: int = 48) -> tuple[Outputs, Tensor]:
    """Logits that know the labels, biased towards class 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (2, size, size), generator=generator)
    logits = torch.randn(2, C, size, size, generator=generator) + 3 * F.one_hot(labels, C).permute(0, 3, 1, 2)
    logits[:, 0] += 1.5
    labels[0, :2] = IGNORE_INDEX
    density = torch.rand(2, size, size, generator=generator)
    return Outputs(logits.requires_grad_(), density=density.requires_grad_()), labels


def exact_loss(
    outputs: Outputs, labels: Tensor, cells: GaussianMixture, anchors: GaussianMixture, tau: float
) -> Tensor:
    """Corrected cross-entropy, pixel by pixel as the formula reads."""
    kept = labels != IGNORE_INDEX
    logits = outputs.logits.detach().permute(0, 2, 3, 1)[kept].double()
    own = labels[kept]
    shifts = quantile_shifts(
        cells, Anchors(anchors[0], anchors[1]), torch.ones(C, dtype=torch.bool), logits.T.contiguous(), Tails.CLAMP
    )
    shift = shifts[own, :, torch.arange(len(own))]
    loss = torch.zeros(labels.shape, dtype=torch.float64)
    loss[kept] = F.cross_entropy(logits - tau * shift, own, reduction="none")
    return loss


def cells_of(bank: OnlineMixture) -> GaussianMixture:
    return GaussianMixture(
        *(getattr(bank.mixture, name)[: C * C].unflatten(0, (C, C)) for name in ("weights", "means", "variances"))
    )


def anchors_of(blda: Blda) -> GaussianMixture:
    return GaussianMixture(*(getattr(blda.source.mixture, name)[-2:] for name in ("weights", "means", "variances")))


def test_source_losses_are_the_formulas() -> None:
    blda = method(blda__tau=0.3, blda__density_weight=0.5)
    outputs, labels = forward(0)
    losses = blda.source_losses(outputs, labels)
    cells = cells_of(blda.source)
    expected = exact_loss(outputs, labels, cells, anchors_of(blda), 0.3).mean()
    torch.testing.assert_close(losses["source"].double(), expected, atol=1e-4, rtol=0)
    kept = labels != IGNORE_INDEX
    own = outputs.logits.detach().gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    levels = torch.stack([cells[label][label].cdf(own.flatten()).view_as(own) for label in range(C)])
    target = levels.gather(0, labels.clamp(min=0).unsqueeze(0)).squeeze(0)
    assert outputs.density is not None
    difference = torch.where(kept, (outputs.density - target).abs(), 0.0).mean()
    torch.testing.assert_close(losses["source_density"].double(), 0.5 * difference, atol=1e-4, rtol=0)


def test_the_strength_falls_from_1_to_the_published_one() -> None:
    blda, fixed = method(), method(blda__tau=0.3)
    blda.costs = torch.tensor([1.0, 1.5])
    strengths = []
    for step in (0, 800, 20_000, 40_000, 60_000):
        blda.source.step.fill_(step)
        strengths.append(float(blda.tau))
    assert strengths == pytest.approx([1, 0.1**0.02, 0.1**0.5, 0.1, 0.1])
    fixed.source.step.fill_(20_000)
    assert float(fixed.tau) == pytest.approx(0.3)


def test_the_strength_is_limited_where_the_shift_outweighs_the_loss() -> None:
    """The shift adds at most one and a half times the plain cross-entropy, over the mean of the batches so far."""
    blda, fixed = method(), method(blda__tau=0.7)
    costs = []
    for seed in (0, 1):
        outputs, labels = forward(seed)
        outputs.logits.detach().mul_(4)[:, 0].add_(8)
        loss = blda.source_losses(outputs, labels)["source"]
        some = Outputs(outputs.logits[..., ::4, ::4]), labels[..., ::4, ::4]
        cells, anchors = cells_of(blda.source), anchors_of(blda)
        costs.append([float(exact_loss(*some, cells, anchors, tau).mean()) for tau in (0.0, 1.0)])
        plain, full = torch.tensor(costs).mean(dim=0).tolist()
        assert full > 3 * plain
        assert float(blda.tau) == pytest.approx(1.5 * plain / (full - plain), rel=2e-3)
        uncorrected = F.cross_entropy(outputs.logits, labels, ignore_index=IGNORE_INDEX)
        assert loss.item() < 2.7 * uncorrected.item()
        fixed.source_losses(outputs, labels)
        assert float(fixed.tau) == pytest.approx(0.7)


def test_the_banks_are_fitted_to_cells_and_pools() -> None:
    """Mean and variance of a mixture that EM was run on are those of its values, whatever it started from."""
    blda = method()
    outputs, labels = forward(1)
    blda.source_losses(outputs, labels)
    logits = outputs.logits.detach().movedim(1, 0)
    cells = [logits[channel][labels == label] for label in range(C) for channel in range(C)]
    positive = [label * C + label for label in range(C)]
    pools = [torch.cat([cell for n, cell in enumerate(cells) if (n in positive) == own]) for own in (True, False)]
    mixture, means = blda.source.mixture, blda.source.means()
    spread = mixture.variances + (mixture.means - means.unsqueeze(-1)).square()
    for row, values in enumerate([*cells, *pools]):
        assert float(means[row]) == pytest.approx(float(values.mean()), abs=0.01)  # a bin is 0.06 wide
        assert float((mixture.weights * spread).sum(-1)[row]) == pytest.approx(float(values.var()), rel=0.02)
    assert blda.source.fitted.all()
    assert not blda.target.fitted.any()


def test_first_fits_are_whole_unless_published() -> None:
    for published in (False, True):
        blda = method(blda__blend_first_fit=published, blda__warmup=1)
        outputs, labels = forward(1)
        few = labels.masked_fill(labels == 0, IGNORE_INDEX)
        for _ in range(3):
            blda.source_losses(outputs, few)
        blda.source_losses(outputs, labels)
        mean = float(outputs.logits.detach()[:, 0][labels == 0].mean())
        missed = abs(float(blda.source.means()[0]) - mean)
        assert missed > 1 if published else missed < 0.01


def test_mixed_pixels_look_in_the_bank_of_their_domain() -> None:
    blda = method(blda__tau=0.3)
    outputs, labels = forward(2)
    blda.source_losses(outputs, labels)
    mixed, pseudo = forward(3)
    mixed.logits.data -= 1.0
    from_source = torch.rand(labels.shape) < 0.5
    weights = torch.rand(labels.shape)
    losses = blda.mixed_losses(mixed, MixedTargets(pseudo, weights, from_source))
    anchors = anchors_of(blda)
    per_pixel = torch.where(
        from_source,
        exact_loss(mixed, pseudo, cells_of(blda.source), anchors, 0.3),
        exact_loss(mixed, pseudo, cells_of(blda.target), anchors, 0.3),
    )
    torch.testing.assert_close(losses["mixed"].double(), (weights * per_pixel).mean(), atol=1e-4, rtol=0)
    only_target = torch.where(from_source, IGNORE_INDEX, pseudo)
    grid = LogitGrid.spanning(reach(mixed.logits), 256)
    pixels = count_cells(grid, mixed.logits.detach(), only_target)[:, 0].sum(dim=1)
    torch.testing.assert_close(blda.target_pixels, pixels * (1 - 0.99))


def test_with_both_weights_zero_it_is_plain_cross_entropy() -> None:
    settings = Settings().with_values({"blda.tau": 0.0, "blda.density_weight": 0.0}, "test")
    blda, plain = Blda(settings.blda, C, torch.device("cpu")), Objective()
    outputs, labels = forward(4)
    targets = MixedTargets(labels, torch.rand(labels.shape), torch.rand(labels.shape) < 0.5)
    for ours, theirs in (
        (blda.source_losses(outputs, labels), plain.source_losses(outputs, labels)),
        (blda.mixed_losses(outputs, targets), plain.mixed_losses(outputs, targets)),
    ):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value)
        assert all(float(value.detach()) == 0 for name, value in ours.items() if name not in theirs)


def test_debiased_labels_are_the_argmax_until_the_banks_know_the_target_and_then_less_biased() -> None:
    blda = method(blda__debias_pseudo_labels=True)
    outputs, labels = forward(5)
    logits = outputs.logits.detach()
    assert method().target_labels(logits) is None
    assert torch.equal(labelled(blda, logits), logits.argmax(dim=1))
    targets = MixedTargets(logits.argmax(dim=1), torch.ones(labels.shape), torch.zeros(labels.shape, dtype=torch.bool))
    blda.source_losses(outputs, labels)
    for _ in range(3):
        blda.mixed_losses(outputs, targets)
    known = labels != IGNORE_INDEX
    before = (logits.argmax(dim=1) == labels)[known].float().mean()
    after = (labelled(blda, logits) == labels)[known].float().mean()
    assert float(after) > float(before)


def test_it_tells_the_bias_of_the_target() -> None:
    blda = method()
    assert all(math.isnan(one) for one in blda.metrics()["estimated_bias"])
    outputs, labels = forward(6)
    blda.source_losses(outputs, labels)
    blda.mixed_losses(
        outputs, MixedTargets(labels, torch.ones(labels.shape), torch.zeros(labels.shape, dtype=torch.bool))
    )
    bias = blda.metrics()["estimated_bias"]
    assert all(math.isfinite(one) for one in bias)
    assert bias[0] == max(bias)


@pytest.mark.parametrize("classes", [3, 19, 65, 150])
def test_tables_stay_small_with_many_classes(classes: int) -> None:
    blda = Blda(Settings().blda, classes, torch.device("cpu"))
    assert 64 <= blda._table_bins <= 2048
    assert blda._table_bins * classes**2 <= 1 << 22


def seen(blda: Blda, seed: int) -> list[Tensor]:
    """Losses, gradient and state of a step."""
    outputs, labels = forward(seed)
    device = blda.costs.device
    assert outputs.density is not None
    outputs = Outputs(outputs.logits.detach().to(device).requires_grad_(), density=outputs.density.detach().to(device))
    labels = labels.to(device)
    losses = blda.source_losses(outputs, labels)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    losses |= blda.mixed_losses(outputs, MixedTargets(labels.clamp(min=0), weights, labels == 1))
    losses["masked"] = blda.masked_loss(outputs, labels, weights)
    torch.stack(list(losses.values())).sum().backward()
    assert outputs.logits.grad is not None
    state = [blda.costs.clone(), blda.target_pixels.clone(), *(one.clone() for one in blda.target.mixture.parameters)]
    return [*(value.detach() for value in losses.values()), outputs.logits.grad, *state]


class Replayed:
    """As a CUDA graph: the operations of the third call with inputs of some shape, on the tensors that they were of."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._calls = 0

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        self._calls += 1
        if self._calls <= 2:
            return self._function(*inputs)
        if self._calls == 3:
            owner = self._function.__self__  # type: ignore[attr-defined]
            before = copy.deepcopy(owner.state_dict())
            self._kind = type(self._function(*inputs))
            self._traced = make_fx(lambda *given: tuple(vars(self._function(*given)).values()))(*inputs)
            owner.load_state_dict(before)
        return self._kind(*self._traced(*inputs))


def test_a_step_is_the_same_operations_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a CUDA graph of it may be replayed: no number that the step depends on is Python's."""
    plain = method(blda__density_weight=0.5)
    monkeypatch.setattr("blda_cli.finetuning.methods.blda.GraphedCall", Replayed)
    replayed = method(blda__density_weight=0.5)
    for seed in range(6):
        for one, other in zip(seen(plain, seed), seen(replayed, seed), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_replayed_as_a_graph_are_those_launched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings().with_values({"blda.density_weight": 0.5}, "test")
    graphed = Blda(settings.blda, C, torch.device("cuda"))
    monkeypatch.setattr("blda_cli.finetuning.methods.blda.GraphedCall", torch.no_grad())
    plain = Blda(settings.blda, C, torch.device("cuda"))
    for seed in range(6):
        for one, other in zip(seen(graphed, seed), seen(plain, seed), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
