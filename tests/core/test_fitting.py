from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import Density, Favour, LabelSource, LogitSpace, Shift, Tails
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.corrections import LinearCorrection, LocationCorrection, OffsetCorrection, SpatialCorrection
from blda_cli.core.fitting import fit_correction, resolve_strength, supervised
from blda_cli.core.fitting.evidence import Evidence
from blda_cli.core.fitting.strength import DomainGap, ReferenceComparison, domain_gap
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.methods import METHODS, PUBLISHED, AlignmentSettings
from blda_cli.core.sample import join
from blda_cli.core.spatial_priors import PositionCounts, at_size
from blda_cli.core.statistics import LogitStatistics

C = 4
FREQUENCIES = [0.55, 0.25, 0.15, 0.05]

BLDA = [
    AlignmentSettings(shift=shift, density=density, tau=1.0)
    for shift, density in [
        (Shift.NEGATIVE, Density.EMPIRICAL),
        (Shift.QUANTILE, Density.EMPIRICAL),
        (Shift.QUANTILE, Density.MIXTURE),
        (Shift.LOCATION, Density.EMPIRICAL),
        (Shift.BALANCED, Density.EMPIRICAL),
        (Shift.TWO_PASS, Density.EMPIRICAL),
    ]
]
EVERY = [
    *BLDA,
    PUBLISHED,
    *(AlignmentSettings(method=method, tau=1.0) for method in METHODS if method != "blda"),
]


def name(settings: AlignmentSettings) -> str:
    return "-".join([settings.method, settings.shift, settings.density, settings.tails])


def scene(seed: int = 0, size: int = 128) -> tuple[Tensor, Tensor]:
    """Logits of a network that favours the frequent classes, as far as it takes them for frequent, and labels."""
    random = torch.Generator().manual_seed(seed)
    frequencies = torch.tensor(FREQUENCIES)
    labels = torch.multinomial(frequencies, 2 * size * size, replacement=True, generator=random).view(2, size, size)
    evidence = torch.randn(2, C, size, size, generator=random) * 1.2
    evidence += 2.5 * torch.nn.functional.one_hot(labels, C).movedim(-1, 1)
    return evidence + 1.5 * frequencies.log().view(-1, 1, 1), labels


def evidence_of(logits: Tensor, labels: Tensor, space: LogitSpace = LogitSpace.RAW) -> Evidence:
    statistics = LogitStatistics(C, LabelSource, space=space)
    statistics.update(logits, labels, ["left", "right"])
    return Evidence(statistics, statistics.cells[LabelSource.PSEUDO])


def test_every_method_is_listed() -> None:
    assert set(METHODS) == set(METHODS)


@pytest.mark.parametrize("settings", EVERY, ids=name)
def test_no_strength_leaves_the_argmax(settings: AlignmentSettings) -> None:
    logits, labels = scene()
    correction = fit_correction(replace(settings, tau=0.0), evidence_of(logits, labels))
    assert torch.equal(correction.predict(logits), logits.argmax(dim=1))


@pytest.mark.parametrize("settings", [s for s in EVERY if s.method != "none"], ids=name)
@pytest.mark.parametrize("space", LogitSpace)
def test_permuting_the_classes_permutes_the_result(settings: AlignmentSettings, space: LogitSpace) -> None:
    logits, labels = scene(size=64)
    order = torch.tensor([2, 0, 3, 1])
    plain = fit_correction(settings, evidence_of(logits, labels, space))
    permuted = fit_correction(settings, evidence_of(logits[:, order], order.argsort()[labels], space))
    scores = plain.scores(logits)
    back = permuted.scores(logits[:, order])[:, order.argsort()]
    # Bins: in the spaces without constants a sum's order may tip a logit over an edge.
    assert ((scores - back).abs() < 1e-3).double().mean() > 0.999
    assert (scores - logits.log_softmax(dim=1)).abs().max() > 0.1


@pytest.mark.parametrize("settings", BLDA, ids=name)
def test_blda_lets_the_rare_classes_gain(settings: AlignmentSettings) -> None:
    logits, labels = scene()
    before, after = ConfusionMatrix(C), ConfusionMatrix(C)
    before.update(labels, logits.argmax(dim=1))
    after.update(labels, fit_correction(settings, evidence_of(logits, labels)).predict(logits))
    assert after.accuracy()[3] > before.accuracy()[3] + 0.1
    assert after.mean_accuracy() > before.mean_accuracy() + 0.02
    assert after.bias().abs().sum() < before.bias().abs().sum()


@pytest.mark.parametrize("settings", [s for s in BLDA if s.shift is Shift.QUANTILE], ids=name)
@pytest.mark.parametrize("tails", Tails)
def test_cells_equal_to_the_anchors_change_nothing(settings: AlignmentSettings, tails: Tails) -> None:
    logits, labels = scene()
    statistics = evidence_of(logits, labels).statistics
    cells = statistics.cells[LabelSource.PSEUDO]
    one = cells.negative()
    same = LogitHistogram.from_counts(one.expand(C, C, -1).clone(), cells.limit)
    statistics.cells[LabelSource.PSEUDO] = same
    correction = fit_correction(replace(settings, tails=tails), Evidence(statistics, same))
    cumulative = one.cumsum(0) / one.sum()
    low, high = (float(cells.centers[int(torch.searchsorted(cumulative, q))]) for q in (0.02, 0.98))
    inside = logits.clamp(low, high) if tails is Tails.CLAMP else logits
    assert (correction.scores(inside) - inside.log_softmax(dim=1)).abs().max() < 1e-3


@pytest.mark.parametrize("settings", [s for s in BLDA if s.shift is not Shift.TWO_PASS], ids=name)
def test_labels_without_enough_pixels_are_left_as_they_are(settings: AlignmentSettings) -> None:
    logits, labels = scene(size=16)
    logits[:, 1:] -= 2  # fewer than 500 pixels of every class but the first
    correction = fit_correction(settings, evidence_of(logits, labels))
    scores = correction.scores(logits)
    assert scores.isfinite().all()
    if settings.shift not in (Shift.BALANCED, Shift.NEGATIVE):
        torch.testing.assert_close(scores[:, 1:], logits.log_softmax(dim=1)[:, 1:], rtol=1e-4, atol=1e-4)


def test_the_two_pass_form_by_hand() -> None:
    logits, labels = scene(size=36)  # few enough pixels that the sample holds them all
    evidence = evidence_of(logits, labels)
    values, cells = logits.double(), evidence.cells(LabelSource.PSEUDO)
    assert len(evidence.statistics.sample) == 2 * 36 * 36
    pixels = values.movedim(1, -1).reshape(-1, C).numpy()
    first = pixels.argmax(axis=1)
    means = np.stack([pixels[first == c].mean(axis=0) for c in range(C)])
    enough = np.array([(first == c).sum() >= 500 for c in range(C)])
    centre = means[enough].mean(axis=0)
    own = (np.diag(means) * np.bincount(first, minlength=C))[enough].sum() / np.isin(first, enough.nonzero()).sum()
    centre[~enough] = (centre[~enough] * enough.sum() + own) / (enough.sum() + 1)
    assert not enough.all()
    np.testing.assert_allclose(cells.means(), means, atol=cells.limit / cells.bins)
    second = (pixels - centre).argmax(axis=1)
    count = np.bincount(second, minlength=C)
    mu = np.stack([pixels[second == c].mean(axis=0) for c in range(C)])
    positive = (np.diag(mu) * count).sum() / count.sum()
    negative = ((mu.sum(axis=1) - np.diag(mu)) * count).sum() / (count.sum() * (C - 1))
    shifts = np.where(np.eye(C) > 0, positive, negative) - mu
    shifts[count < 500] = 0
    expected = 0.7 * (shifts / 2 + shifts.mean(axis=0) / 2)
    correction = fit_correction(AlignmentSettings(shift=Shift.TWO_PASS, tau=0.7), evidence)
    assert isinstance(correction, LocationCorrection)
    assert (count >= 500).sum() == 2
    np.testing.assert_allclose(correction.shifts, expected, atol=0.01)


def test_a_sample_of_the_pixels_serves_the_two_pass_form_like_all_of_them() -> None:
    logits, labels = scene(size=256)
    evidence = evidence_of(logits, labels)
    kept = len(evidence.statistics.sample)
    assert kept < 2 * 256 * 256 / 2
    whole = LogitStatistics(C, [LabelSource.PSEUDO])
    whole.sample.capacity = 2 * 256 * 256
    whole.update(logits, None, ["left", "right"])
    settings = AlignmentSettings(shift=Shift.TWO_PASS, tau=1.0)
    sampled = fit_correction(settings, evidence)
    complete = fit_correction(settings, Evidence(whole, whole.cells[LabelSource.PSEUDO]))
    assert isinstance(sampled, LocationCorrection)
    assert isinstance(complete, LocationCorrection)
    torch.testing.assert_close(sampled.shifts, complete.shifts, rtol=0, atol=0.03)


@pytest.mark.parametrize("settings", [s for s in BLDA if s.shift in (Shift.QUANTILE, Shift.LOCATION)], ids=name)
def test_anchors_come_from_where_they_are_asked_from(settings: AlignmentSettings) -> None:
    logits, labels = scene(size=64)
    evidence = evidence_of(logits, labels)
    positives = torch.nn.functional.one_hot(logits.argmax(dim=1), C).movedim(-1, 1)
    source = evidence_of(logits + 3 * positives, labels)  # its positive logits lie 3 higher, its predictions the same
    own = fit_correction(settings, evidence).scores(logits)
    others = fit_correction(settings, replace(evidence, anchor_cells=source.anchor_cells)).scores(logits)
    odds = (others.exp().logit() - own.exp().logit())[(own > -3) & (own < -0.1)]
    assert float(odds.median()) == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("source", LabelSource)
def test_logit_adjustment_subtracts_the_log_of_the_shares(source: LabelSource) -> None:
    logits, labels = scene()
    correction = fit_correction(
        AlignmentSettings(method="logit-adjust", tau=0.6, label_source=source), evidence_of(logits, labels)
    )
    shares = {
        LabelSource.GROUND_TRUTH: torch.bincount(labels.flatten()) / labels.numel(),
        LabelSource.PSEUDO: torch.bincount(logits.argmax(dim=1).flatten()) / labels.numel(),
        LabelSource.SOFT: logits.softmax(dim=1).mean(dim=(0, 2, 3)),
    }[source]
    assert isinstance(correction, OffsetCorrection)
    torch.testing.assert_close(correction.offsets, -0.6 * shares.log(), rtol=1e-3, atol=1e-3)


def test_logit_adjustment_leaves_a_class_alone_that_is_never_predicted() -> None:
    """With the log of a share of nothing it would take every pixel."""
    logits, labels = scene()
    logits[:, 2] -= 100
    correction = fit_correction(AlignmentSettings(method="logit-adjust", tau=1.0), evidence_of(logits, labels))
    assert isinstance(correction, OffsetCorrection)
    assert correction.offsets[2] == 0
    assert (correction.offsets[[0, 1, 3]] > 0).all()
    assert not (correction.predict(logits) == 2).any()


def test_class_confidence_divides_by_the_confidence_of_the_top_fifth(reference: ModuleType) -> None:
    logits, labels = scene(size=40)
    correction = fit_correction(AlignmentSettings(method="class-confidence"), evidence_of(logits, labels))
    confidence, predicted = logits.double().softmax(dim=1).amax(dim=1).flatten(), logits.argmax(dim=1).flatten()
    thresholds = reference.class_thresholds(confidence.numpy(), predicted.numpy(), C, 0.2)
    assert isinstance(correction, OffsetCorrection)
    np.testing.assert_allclose(correction.offsets.numpy(), -np.log(thresholds), rtol=2e-3)
    expected = (logits.double().softmax(dim=1) / torch.from_numpy(thresholds).view(-1, 1, 1)).argmax(dim=1)
    assert (expected != logits.argmax(dim=1)).any()
    assert float((correction.predict(logits) == expected).double().mean()) > 0.999


def test_spatial_priors_multiply_the_scores_at_their_place(reference: ModuleType) -> None:
    """Thresholds and labels of q_n(c) p_n(c), by the formula."""
    logits, labels = scene(size=40)
    counts = PositionCounts(C)
    counts.update(labels.sort(dim=1).values)
    evidence = replace(evidence_of(logits, labels), priors=counts.priors())
    settings = AlignmentSettings(method="class-confidence")
    correction = fit_correction(settings, evidence)
    assert isinstance(correction, SpatialCorrection)
    scores = logits.double().softmax(dim=1) * at_size(counts.priors().double(), (40, 40))
    best, predicted = scores.max(dim=1)
    thresholds = reference.class_thresholds(best.flatten().numpy(), predicted.flatten().numpy(), C, 0.2)
    np.testing.assert_allclose(correction.offsets.numpy(), -np.log(thresholds), rtol=2e-3)
    expected = (scores / torch.from_numpy(thresholds).view(-1, 1, 1)).argmax(dim=1)
    assert float((correction.predict(logits) == expected).double().mean()) > 0.998
    without = fit_correction(settings, evidence_of(logits, labels))
    assert float((without.predict(logits) == expected).double().mean()) < 0.99
    off = fit_correction(replace(settings, tau=0.0), evidence)
    assert torch.equal(off.predict(logits), logits.argmax(dim=1))


def test_spatial_priors_need_positions() -> None:
    logits, labels = scene(size=16)
    evidence = replace(evidence_of(logits, labels), priors=PositionCounts(C).priors())
    evidence.statistics.sample.positions.fill_(torch.nan)
    with pytest.raises(ValueError, match="do not tell where their pixels lie"):
        fit_correction(AlignmentSettings(method="class-confidence"), evidence)


def test_prior_shift_finds_the_fixed_point_of_the_mean_posterior() -> None:
    logits, labels = scene(size=256)  # more pixels than the sample holds
    correction = fit_correction(AlignmentSettings(method="prior-shift"), evidence_of(logits, labels))
    assert isinstance(correction, OffsetCorrection)
    priors = correction.offsets.double().softmax(dim=0)
    posteriors = (logits.double().softmax(dim=1) * priors.view(-1, 1, 1)).movedim(1, -1).reshape(-1, C)
    mean = (posteriors / posteriors.sum(dim=1, keepdim=True)).mean(dim=0)
    torch.testing.assert_close(mean, priors, rtol=0, atol=5e-3)
    assert priors.argmax() == 0


def test_cells_that_were_not_counted_are_missed_by_name() -> None:
    logits, _ = scene(size=16)
    statistics = LogitStatistics(C, [LabelSource.PSEUDO])
    statistics.update(logits, None, ["left", "right"])
    evidence = Evidence(statistics, statistics.cells[LabelSource.PSEUDO])
    with pytest.raises(ValueError, match=r"no soft cells \(only pseudo\)"):
        fit_correction(AlignmentSettings(label_source=LabelSource.SOFT), evidence)


def few_labels(classes: int = C, ahead: float = 0.0) -> tuple[Evidence, Tensor, Tensor]:
    """Eight labelled images of the first ``classes`` classes as evidence, and another one to score."""
    logits, labels = away(ahead)
    seen = torch.where(labels[:1] < classes, labels[:1], 255)
    statistics = LogitStatistics(C, LabelSource)
    for strip in range(8):  # as eight images
        rows = slice(16 * strip, 16 * strip + 16)
        statistics.update(logits[:1, :, rows], seen[:, rows], [f"labelled {strip}"])
    return Evidence(statistics, statistics.cells[LabelSource.GROUND_TRUTH]), logits[1:], labels[1:]


def test_a_few_labels_beat_the_network_and_the_published_form() -> None:
    evidence, logits, labels = few_labels()
    scores = {}
    for label, settings in {
        "argmax": AlignmentSettings(method="none"),
        "published": replace(PUBLISHED, label_source=LabelSource.GROUND_TRUTH),
        "supervised": AlignmentSettings(method="supervised"),
    }.items():
        confusion = ConfusionMatrix(C)
        confusion.update(labels, fit_correction(settings, evidence).predict(logits))
        scores[label] = (confusion.mean_iou(), confusion.mean_accuracy())
    for rival in ("argmax", "published"):
        assert scores["supervised"][0] > scores[rival][0]
        assert scores["supervised"][1] > scores[rival][1]


def test_a_class_that_no_label_has_keeps_the_networks_probability() -> None:
    evidence, logits, _ = few_labels(classes=C - 1)
    correction = fit_correction(AlignmentSettings(method="supervised"), evidence)
    assert (correction.predict(logits) == C - 1).any()


def test_labels_of_other_images_are_pooled_with_the_targets_own_shifts() -> None:
    labelled, logits, labels = few_labels()
    target = LogitStatistics(C, [LabelSource.PSEUDO])
    target.update(logits, None, ["target"])
    evidence = Evidence(target, target.cells[LabelSource.PSEUDO], labelled=labelled.statistics)
    confusion = ConfusionMatrix(C)
    confusion.update(labels, fit_correction(AlignmentSettings(method="supervised"), evidence).predict(logits))
    argmax = ConfusionMatrix(C)
    argmax.update(labels, logits.argmax(dim=1))
    assert confusion.mean_accuracy() > argmax.mean_accuracy()


def test_the_regression_is_converged() -> None:
    """Where a multinomial regression has converged, what it predicts has the moments of its labels."""
    evidence, _, _ = few_labels(classes=C - 1, ahead=1.0)
    correction = fit_correction(AlignmentSettings(method="supervised"), evidence)
    assert isinstance(correction, LinearCorrection)
    label_free = fit_correction(AlignmentSettings(), evidence)
    assert isinstance(label_free, OffsetCorrection)
    assert label_free.offsets.abs().max() > 0.05
    sample = evidence.statistics.sample
    labelled = sample.among(sample.labels != IGNORE_INDEX)
    few, many = (join([replace(part, capacity=size // C)]) for part, size in ((labelled, 16_000), (sample, 4_000)))
    own = label_free.predict(many.logits)
    shares = torch.zeros(C).double().index_add_(0, own, many.weights()) / many.weights().sum()
    assert 0 < shares[C - 1] < 0.3 / C  # the class without a label
    trust = 8 / (8 + 5)  # of eight images, all of which show the other classes
    adjustment = trust * 0.4 * shares.clamp(min=0.3 / C).log()
    adjustment[C - 1] = 0
    before = torch.cat([few.logits, many.logits]).double() + label_free.offsets
    targets = torch.nn.functional.one_hot(few.labels, C).double()
    targets = torch.cat([targets, before[len(targets) :].softmax(dim=1)])
    parts = [part / part.sum() for part in (few.weights(), many.weights())]
    weights = torch.cat([8 * parts[0], 2 * parts[1]]) / 10  # eight images; the unlabelled pixels weigh as much as two
    raw = before - label_free.offsets
    after = raw + raw @ correction.linear.double() + correction.bias + adjustment
    wrong = ((before + (after - before) / trust).softmax(dim=1) - targets) * weights[:, None]
    assert wrong.sum(dim=0).abs().max() < 2e-5
    moments = wrong.T @ (raw - raw.mean(dim=1, keepdim=True))
    assert moments.abs().max() < 5e-3  # the ridge's share
    assert (before.softmax(dim=1) - targets)[weights > 0].abs().mean() > 0.05  # there was something to learn


def test_a_few_labelled_points_are_enough() -> None:
    """Labels of some hundred pixels survive the thinning of a sample that holds a hundred times as many."""
    logits, labels = away(size=256)
    points = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.005
    evidence = evidence_of(logits, torch.where(points, labels, 255))
    assert 200 < (evidence.statistics.sample.labels != IGNORE_INDEX).sum() < 600
    confusion, argmax = ConfusionMatrix(C), ConfusionMatrix(C)
    argmax.update(labels, logits.argmax(dim=1))
    confusion.update(labels, fit_correction(AlignmentSettings(method="supervised"), evidence).predict(logits))
    assert confusion.mean_iou() > argmax.mean_iou() + 0.02


def test_the_regression_takes_few_steps_with_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rare and frequent classes differ a thousandfold in curvature: unhelped, conjugate gradients go on and on."""
    random = torch.Generator().manual_seed(0)
    classes, pixels = 40, 2500
    mixed = torch.randn(classes, classes, generator=random).double() / 3
    scores = torch.randn(pixels, classes, generator=random).double() @ mixed
    noisy = scores + 1.5 * torch.randn(pixels, classes, generator=random) - torch.linspace(0, 4, classes)
    hot = torch.nn.functional.one_hot(noisy.argmax(dim=1), classes).double()
    targets = torch.cat([hot[:2000], scores[2000:].softmax(dim=1)])
    weights = torch.rand(pixels, generator=random).double() ** 6
    products = 0

    def counted(*arguments: Any, **options: Any) -> OptimizeResult:
        nonlocal products
        found = minimize(*arguments, **options)
        assert found.success
        products += found.nhev
        return found

    monkeypatch.setattr("scipy.optimize.minimize", counted)
    supervised._regression(scores, targets, weights / weights.sum())
    assert products < 130


def test_the_strength_scales_what_supervision_adds() -> None:
    evidence, _, _ = few_labels()
    whole, half = (fit_correction(AlignmentSettings(method="supervised", tau=tau), evidence) for tau in ("auto", 0.5))
    assert isinstance(whole, LinearCorrection)
    assert isinstance(half, LinearCorrection)
    torch.testing.assert_close(half.linear * 2, whole.linear)
    torch.testing.assert_close(half.bias * 2, whole.bias)


def test_supervision_needs_labels() -> None:
    logits, labels = scene(size=32)
    evidence = evidence_of(logits, torch.full_like(labels, 255))
    with pytest.raises(ValueError, match="no labelled pixel"):
        fit_correction(AlignmentSettings(method="supervised"), evidence)


def away(ahead: float = 1.0, size: int = 128) -> tuple[Tensor, Tensor]:
    """The scene with the frequent class further ahead: a network a little away from home."""
    logits, labels = scene(size=size)
    logits[:, 0] += ahead
    return logits, labels


@pytest.mark.parametrize("method", ["blda", "logit-adjust"])
@pytest.mark.parametrize("shift", Shift)
def test_the_label_free_strength_improves_on_argmax(method: str, shift: Shift) -> None:
    logits, labels = away()
    evidence, settings = evidence_of(logits, labels), AlignmentSettings(method=method, shift=shift)
    assert 0 < resolve_strength(settings, evidence) < 0.7
    confusion, argmax = ConfusionMatrix(C), ConfusionMatrix(C)
    confusion.update(labels, fit_correction(settings, evidence).predict(logits))
    argmax.update(labels, logits.argmax(dim=1))
    assert confusion.mean_accuracy() > argmax.mean_accuracy()


def test_nothing_is_corrected_at_home() -> None:
    logits, labels = scene()
    logits = 6 * logits  # the same decisions, far from the borders
    logits += 4.0 * torch.nn.functional.one_hot(logits.argmax(dim=1), C).movedim(-1, 1)
    evidence = evidence_of(logits, labels)
    for shift in Shift:
        assert resolve_strength(AlignmentSettings(shift=shift), evidence) == 0
    assert torch.equal(fit_correction(AlignmentSettings(), evidence).predict(logits), logits.argmax(dim=1))


@pytest.mark.parametrize("shift", Shift)
@pytest.mark.parametrize(("favour", "factor"), [(Favour.ACCURACY, 1.3), (Favour.PIXELS, 0.7)])
def test_what_is_favoured_scales_the_strength(shift: Shift, favour: Favour, factor: float) -> None:
    evidence = evidence_of(*away())
    plain = resolve_strength(AlignmentSettings(shift=shift), evidence)
    favoured = resolve_strength(AlignmentSettings(shift=shift, favour=favour), evidence)
    assert favoured == pytest.approx(factor * plain, abs=2e-3)
    assert favoured != plain


def fitted_levels(means: np.ndarray, rows: list[int]) -> tuple[np.ndarray, float]:
    """Least squares of label and channel on the negative cells of some labels: the channels' part, and what is left."""
    cells = [(c, k) for c in rows for k in rows if c != k]
    design = np.zeros((len(cells), 2 * C))
    for row, (c, k) in enumerate(cells):
        design[row, c] = design[row, C + k] = 1
    values = np.array([means[cell] for cell in cells])
    part = np.linalg.lstsq(design, values, rcond=None)[0]
    levels = np.array([np.mean([means[c, k] - part[c] for c in rows if c != k]) for k in range(C)])
    unexplained = float(((values - design @ part) ** 2).sum() / (len(cells) - 2 * len(rows) + 1))
    return levels - levels[rows].mean(), unexplained


def slow_strength(logits: Tensor) -> tuple[float, float, float, float]:
    """Contested share, chance, disagreement and strength of the negative form in float64, all cells occupied."""
    pixels = logits.double().movedim(1, -1).reshape(-1, C).numpy()
    first = pixels.argmax(axis=1)
    assert np.bincount(first).min() >= 500
    means = np.stack([pixels[first == c].mean(axis=0) for c in range(C)])
    levels, unexplained = fitted_levels(means, list(range(C)))
    contested = float(((pixels + 0.4 * levels).argmax(axis=1) != first).mean())
    rho = unexplained / float(np.var(levels, ddof=1))
    margins = np.array([ordered[-1] - ordered[-2] for ordered in np.sort(pixels, axis=1)])
    pairs = [(a, b) for a in range(C) for b in range(C) if a != b]
    chance = float(np.mean([(0.4 * (levels[a] - levels[b]) > margins).mean() for a, b in pairs]))
    crowding = contested * (contested / chance) ** 2
    distance = min(max(np.log(crowding / 0.03) / np.log(5 / 3), 0), 1)
    return contested, chance, rho, 0.9 / (1 + rho) * distance * (C - 2) / 8


@pytest.mark.parametrize(("ahead", "full"), [(-0.6, False), (1.0, True)])
def test_the_gap_and_the_strength_by_hand(ahead: float, full: bool) -> None:
    logits, labels = scene(size=96)  # few enough pixels that the sample holds them all
    logits[:, 0] += ahead
    logits[:, 3] += 2.0
    evidence = evidence_of(logits, labels)
    gap = domain_gap(evidence.statistics.sample)
    contested, chance, rho, tau = slow_strength(logits)
    assert gap.contested == pytest.approx(contested, abs=1e-3)
    assert gap.chance == pytest.approx(chance, rel=1e-4)
    assert gap.disagreement == pytest.approx(rho, rel=1e-4)
    assert (gap.distance == 1) is full
    assert resolve_strength(AlignmentSettings(), evidence) == pytest.approx(tau, abs=1e-3)
    assert 0 < tau < 0.75


def test_the_distance_rises_from_in_domain_to_out_of_it() -> None:
    gaps = [
        DomainGap(share, share, 1.0, 11) for share in (0.0, 0.03, 0.05, 0.2)
    ]  # where levels aim no better than chance
    assert [gap.distance for gap in gaps] == [0, 0, 1, 1]
    assert DomainGap((0.03 * 0.05) ** 0.5, (0.03 * 0.05) ** 0.5, 1.0, 11).distance == pytest.approx(0.5)
    assert DomainGap(0.08, 0.16, 1.0, 11).distance == 0  # the levels point away from the crowd
    assert DomainGap(0.02, 0.01, 1.0, 11).distance == 1
    assert DomainGap(0.0, 0.0, 1.0, 11, norms_shifted=True).distance == 1


def test_few_classes_support_little_correction() -> None:
    assert [DomainGap(0.2, 0.2, 1.0, classes).support for classes in (0, 2, 4, 10, 150)] == [0, 0, 0.25, 1, 1]


@pytest.mark.parametrize("classes", [2, 3, 4, 150])
def test_any_number_of_classes_has_a_default(classes: int) -> None:
    """Random logits, a class that is never predicted among them: finite offsets, none of them for two classes."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, classes, 128, 128, generator=random) + torch.linspace(0, 1.5, classes).view(-1, 1, 1)
    logits[:, 0] -= 40 if classes > 2 else 0
    statistics = LogitStatistics(classes, [LabelSource.PSEUDO], bins=64)
    statistics.update(logits)
    evidence = Evidence(statistics, statistics.cells[LabelSource.PSEUDO])
    gap = domain_gap(statistics.sample)
    assert gap.classes == (classes - 1 if classes > 2 else 2) or classes == 150
    for settings in (AlignmentSettings(), AlignmentSettings(tau=1.0)):
        correction = fit_correction(settings, evidence)
        assert isinstance(correction, OffsetCorrection)
        assert bool(correction.offsets.isfinite().all())
        assert bool((correction.offsets == 0).all()) == (
            gap.classes < 3 or (settings.tau == "auto" and gap.distance == 0)
        )


def test_batch_norms_tell_that_a_network_is_out_of_domain() -> None:
    """However sure its logits are: the strength is that of the same network where its logits tell."""
    logits, labels = scene()
    told = evidence_of(logits, labels)
    sure = evidence_of(logits + 4.0 * torch.nn.functional.one_hot(logits.argmax(dim=1), C).movedim(-1, 1), labels)
    assert resolve_strength(AlignmentSettings(), sure) == 0
    assert resolve_strength(AlignmentSettings(), replace(sure, norms_shifted=True)) == pytest.approx(
        resolve_strength(AlignmentSettings(), told), abs=2e-3
    )


def test_adapted_norms_leave_less_to_correct() -> None:
    """Stronger evidence is asked for, and seven tenths of the strength hold."""
    plain, adapted = DomainGap(0.1, 0.1, 1.0, 11), DomainGap(0.1, 0.1, 1.0, 11, norms_adapted=True)
    assert plain.distance == 1
    assert adapted.distance == pytest.approx(0.5)
    assert DomainGap(0.05, 0.05, 1.0, 11, norms_adapted=True).distance == 0
    assert DomainGap(0.2, 0.2, 1.0, 11, norms_adapted=True).distance == 1
    assert DomainGap(0.01, 0.01, 1.0, 11, norms_shifted=True, norms_adapted=True).distance == 0
    evidence = evidence_of(*away())
    gap = domain_gap(evidence.statistics.sample, norms_adapted=True)
    assert 0 < gap.distance < 1
    assert resolve_strength(AlignmentSettings(), replace(evidence, norms_adapted=True)) == pytest.approx(
        0.7 * gap.distance * resolve_strength(AlignmentSettings(), evidence), abs=2e-3
    )


def reference_images(seed: int, sureness: float = 1.0, images: int = 12, ahead: float = 0.0) -> LogitStatistics:
    """Statistics of some images of the scene, by a network more or less sure, the first class more or less ahead."""
    logits, labels = scene(seed)
    logits = sureness * (logits + torch.tensor([ahead, 0, 0, 0])[:, None, None])
    statistics = LogitStatistics(C, [LabelSource.PSEUDO])
    for index, (part, label) in enumerate(zip(logits.chunk(images, dim=2), labels.chunk(images, dim=1), strict=True)):
        statistics.update(part[:1], label[:1], [f"{seed} {index}"])
    return statistics


def against(target: LogitStatistics, reference: LogitStatistics) -> Evidence:
    return Evidence(target, target.cells[LabelSource.PSEUDO], reference=reference)


def test_images_like_the_reference_are_left_alone() -> None:
    evidence = against(reference_images(1), reference_images(2))
    assert resolve_strength(AlignmentSettings(), replace(evidence, reference=None)) > 0
    for shift in Shift:
        assert resolve_strength(AlignmentSettings(shift=shift), evidence) == 0


def test_images_that_the_network_is_less_sure_of_than_of_the_reference_are_corrected() -> None:
    reference, target = reference_images(2, sureness=3.0), reference_images(1, ahead=1.0)
    gap = domain_gap(target.sample, reference=reference.sample)
    assert gap.reference is not None
    confidence, usual = (float(one.sample.logits.softmax(dim=1).amax(dim=1).mean()) for one in (target, reference))
    assert gap.reference.confidence == pytest.approx(confidence, abs=2e-3)
    assert gap.reference.reference_confidence == pytest.approx(usual, abs=2e-3)
    assert 0.4 < gap.reference.fall < (usual - confidence) / (1 - usual)
    assert gap.distance == gap.aim if gap.aim < 1 else 1
    assert resolve_strength(AlignmentSettings(), against(target, reference)) == pytest.approx(
        resolve_strength(AlignmentSettings(), replace(against(target, reference), reference=None)) * gap.distance,
        abs=2e-3,
    )
    assert resolve_strength(AlignmentSettings(), against(reference, target)) == 0  # surer than the reference


def test_the_fall_must_exceed_what_images_vary_by() -> None:
    """Of images that differ much from one another, a little less confidence on average says nothing."""
    target, reference = reference_images(1), reference_images(2, sureness=1.05)
    steady = domain_gap(target.sample, reference=reference.sample).reference
    varied = LogitStatistics(C, [LabelSource.PSEUDO])
    for index, part in enumerate(scene(2)[0][:1].chunk(12, dim=2)):
        varied.update(part * (1.05 + 0.5 * (-1) ** index), None, [str(index)])
    wild = domain_gap(target.sample, reference=varied.sample).reference
    assert steady is not None
    assert wild is not None
    assert wild.reference_confidence > steady.reference_confidence - 0.05
    assert steady.fall > 0
    assert wild.fall == 0


def test_a_reference_of_few_images_corrects_nothing() -> None:
    comparison = domain_gap(
        reference_images(1, ahead=1.0).sample, reference=reference_images(2, sureness=3.0, images=3).sample
    ).reference
    assert comparison is not None
    assert (comparison.images, comparison.fall) == (3, 0)


def test_the_levels_of_the_reference_need_no_correction() -> None:
    unlike = ReferenceComparison(0.8, 0.9, 1.0, levels=0.7, images=20)
    assert unlike.distance(norms_shifted=False) == 1
    assert replace(unlike, levels=0.25).distance(norms_shifted=False) == pytest.approx(0.5)
    assert replace(unlike, fall=0.1).distance(norms_shifted=False) == pytest.approx(0.25)
    assert replace(unlike, fall=0.0).distance(norms_shifted=False) == 0
    assert replace(unlike, fall=0.0, levels=0.25).distance(norms_shifted=True) == pytest.approx(0.5)
    target, same = reference_images(1, ahead=1.0), reference_images(2, ahead=1.0)
    found = domain_gap(target.sample, reference=same.sample).reference
    other = domain_gap(target.sample, reference=reference_images(2).sample).reference
    assert found is not None
    assert other is not None
    assert found.levels < 0.15 < other.levels


def test_a_reference_needs_sampled_pixels() -> None:
    with pytest.raises(ValueError, match="reference holds no sampled pixels"):
        resolve_strength(AlignmentSettings(), against(reference_images(1), LogitStatistics(C)))


def test_the_negative_form_by_hand() -> None:
    logits, labels = away(size=96)
    logits = (8 * logits).round() / 8 + 0.01  # no logit is at a bin's edge, so the cells' means are exact
    statistics = LogitStatistics(C, [LabelSource.PSEUDO], bins=1 << 14)
    statistics.update(logits, labels, ["left", "right"])
    tau = 0.4
    correction = fit_correction(AlignmentSettings(tau=tau), Evidence(statistics, statistics.cells[LabelSource.PSEUDO]))
    assert isinstance(correction, OffsetCorrection)
    pixels = logits.double().movedim(1, -1).reshape(-1, C).numpy()
    first = pixels.argmax(axis=1)
    assert (np.bincount(first) >= 500).tolist() == [True, True, True, False]
    means = np.stack([pixels[first == c].mean(axis=0) for c in range(C)])
    centre, _ = fitted_levels(means, [0, 1, 2])
    spread = centre[:3].std()
    scores = pixels - tau * centre
    winner, near = scores.argmax(axis=1), tau * spread
    outside, inside = np.zeros(C), np.zeros(C)
    for pixel, won in zip(scores, winner, strict=True):
        second = max(value for k, value in enumerate(pixel) if k != won)
        inside[won] += pixel[won] - second < near
        for k in range(C):
            outside[k] += k != won and pixel[won] - pixel[k] < near
    total = len(scores)
    balance = np.clip(np.log((outside / total + 1e-3) / (inside / total + 1e-3)), -2, 2)
    balance -= balance[:3].mean()
    balance[3] = 0
    expected = -tau * (centre + 0.5 * spread * balance)
    np.testing.assert_allclose(correction.offsets.numpy(), expected, atol=1e-3)


def test_a_strength_needs_sampled_pixels() -> None:
    evidence = evidence_of(*away(size=32))
    with pytest.raises(ValueError, match="no sampled pixels"):
        resolve_strength(AlignmentSettings(), replace(evidence, statistics=LogitStatistics(C)))


def test_a_rescaled_network_is_corrected_alike() -> None:
    logits, labels = away(size=64)
    plain, scaled = (
        fit_correction(AlignmentSettings(), evidence_of(factor * logits, labels)).predict(factor * logits)
        for factor in (1.0, 4.0)
    )
    assert (plain != scaled).double().mean() < 1e-3
