from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.core.choices import LogitSpace, Tails
from blda_cli.core.corrections import Correction, LocationCorrection, OffsetCorrection, QuantileCorrection
from blda_cli.core.logit_space import to_space
from blda_cli.core.mixture import GaussianMixture
from blda_cli.core.shifts import Anchors, quantile_shifts

C, B, LIMIT = 4, 64, 16.0
CENTERS = (torch.arange(B) + 0.5) * (2 * LIMIT / B) - LIMIT


def drawn(seed: int, scale: float = 4.0) -> Tensor:
    return torch.randn(2, C, 9, 7, generator=torch.Generator().manual_seed(seed)) * scale


def corrections(seed: int = 0, scale: float = 3.0) -> dict[str, Correction]:
    random = torch.Generator().manual_seed(seed)
    tables = torch.randn(C, C, B, generator=random).cumsum(dim=2).div(8) * scale
    return {
        "offset": OffsetCorrection(torch.randn(C, generator=random) * scale),
        "location": LocationCorrection(torch.randn(C, C, generator=random) * scale),
        **{f"quantile, {space}": QuantileCorrection(tables, LIMIT, space) for space in LogitSpace},
    }


NAMES = list(corrections())
INVARIANT = [name for name in NAMES if name != "quantile, raw"]


def assert_predicts_its_scores(correction: Correction, logits: Tensor, tolerance: float = 1e-4) -> None:
    scores, ids = correction.scores(logits), correction.predict(logits)
    assert ids.dtype == torch.int64
    assert ids.shape == logits.shape[:1] + logits.shape[2:]
    chosen = scores.gather(1, ids.unsqueeze(1)).squeeze(1)
    assert (scores.amax(dim=1) - chosen).max() <= tolerance


def reference_scores(reference: ModuleType, correction: Correction, logits: Tensor) -> Tensor:
    """``log softmax_l(f_l + Δ[c, l](f_l))`` at ``l = c`` in float64, pixel by pixel."""
    values = logits.double().numpy()

    def shift(label: int, channel: int, z: np.ndarray) -> np.ndarray:
        match correction:
            case OffsetCorrection(offsets):
                return np.full_like(z, float(offsets[channel]))
            case LocationCorrection(shifts):
                return np.full_like(z, float(shifts[label, channel]))
            case QuantileCorrection(shifts, limit):
                index = np.floor((z + limit) / (2 * limit) * B).astype(int).clip(0, B - 1)
                return np.asarray(shifts[label, channel].double().numpy()[index])
        raise AssertionError(correction)

    if isinstance(correction, QuantileCorrection):  # binned in float32, as it is counted
        values = to_space(logits.float(), correction.space).double().numpy()
    return torch.from_numpy(reference.aligned_log_scores(values, shift))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_scores_are_those_of_the_reference(reference: ModuleType, name: str, scale: float) -> None:
    logits, correction = drawn(1, scale), corrections()[name]
    scores = correction.scores(logits)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), reference_scores(reference, correction, logits), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.5, 4.0, 60.0]), strength=st.sampled_from([0.3, 3.0, 60.0]))
def test_the_prediction_has_the_highest_score(name: str, seed: int, scale: float, strength: float) -> None:
    assert_predicts_its_scores(corrections(seed, strength)[name], drawn(seed, scale), 2e-6 * (scale + strength) * 20)


@pytest.mark.parametrize("name", ["location", "quantile, raw"])
def test_shifts_wider_than_float32s_exponent_lose_nothing(reference: ModuleType, name: str) -> None:
    logits, correction = drawn(2, 80), corrections(3, 150.0)[name]
    expected = reference_scores(reference, correction, logits)
    torch.testing.assert_close(correction.scores(logits).double(), expected, rtol=1e-4, atol=1e-3)
    chosen = expected.gather(1, correction.predict(logits).unsqueeze(1)).squeeze(1)
    assert (expected.amax(dim=1) - chosen).max() < 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_other_precisions_are_those_values_in_float32(name: str, dtype: torch.dtype) -> None:
    correction, logits = corrections()[name], drawn(4).to(dtype)
    torch.testing.assert_close(correction.scores(logits), correction.scores(logits.float()))
    same = correction.predict(logits) == correction.predict(logits.float())
    assert same.double().mean() > 0.99 if dtype == torch.float64 else same.all()


@pytest.mark.parametrize("name", NAMES)
def test_a_classifiers_logits_are_pixels_of_one_by_one_images(name: str) -> None:
    correction, logits = corrections()[name], drawn(5).movedim(1, -1).reshape(-1, C)
    pixels = logits[..., None, None]
    torch.testing.assert_close(correction.scores(logits), correction.scores(pixels)[..., 0, 0], rtol=0, atol=1e-6)
    assert correction.predict(logits).shape == (len(logits),)
    assert torch.equal(correction.predict(logits), correction.predict(pixels)[..., 0, 0])


@pytest.mark.parametrize("name", INVARIANT)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), reach=st.sampled_from([1, 16]))
def test_a_constant_per_pixel_changes_nothing(name: str, seed: int, reach: int) -> None:
    random = torch.Generator().manual_seed(seed)
    # Multiples of 2⁻⁸ in a small range: adding the constant is exact, so no logit falls into another bin.
    logits = (drawn(seed) * 256).round() / 256
    moved = logits + torch.randint(-reach, reach + 1, (2, 1, 9, 7), generator=random)
    correction = corrections(seed)[name]
    plain, constant = correction.scores(logits), correction.scores(moved)
    # Where the space's own rounding tips a logit over the edge of a bin, the whole pixel may differ.
    agree = ((plain - constant).abs() < 1e-4).all(dim=1)
    assert agree.double().mean() > 0.97
    assert (correction.predict(logits) == correction.predict(moved))[agree].double().mean() > 0.97


def test_a_constant_per_pixel_matters_to_shifts_of_raw_logits() -> None:
    correction, logits = corrections()["quantile, raw"], drawn(6)
    assert (correction.scores(logits) - correction.scores(logits + 3)).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_no_strength_is_the_argmax(name: str) -> None:
    correction, logits = corrections(scale=0.0)[name], drawn(7)
    if name == "offset":
        assert torch.equal(OffsetCorrection(torch.zeros(C)).predict(logits), logits.argmax(dim=1))
    assert torch.equal(correction.predict(logits), logits.argmax(dim=1))
    torch.testing.assert_close(correction.scores(logits), logits.log_softmax(dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(C)))
def test_permuting_the_classes_permutes_the_result(name: str, order: list[int]) -> None:
    correction, logits = corrections()[name], drawn(8)
    match correction:
        case OffsetCorrection(offsets):
            permuted: Correction = OffsetCorrection(offsets[order])
        case LocationCorrection(shifts):
            permuted = LocationCorrection(shifts[order][:, order])
        case QuantileCorrection(shifts, limit, space):
            permuted = QuantileCorrection(shifts[order][:, order], limit, space)
            # Sums in another order may tip a logit over the edge of a bin: keep pixels that lie well inside.
            position = to_space(logits, space) / (2 * limit / B)
            inside = ((position - position.round()).abs() > 1e-4).all(dim=1)
            logits = logits.movedim(1, -1)[inside]
    scores = correction.scores(logits)
    torch.testing.assert_close(permuted.scores(logits[:, order]), scores[:, order], rtol=1e-5, atol=1e-5)
    back = torch.tensor(order)[permuted.predict(logits[:, order])]
    torch.testing.assert_close(scores.gather(1, back.unsqueeze(1)).squeeze(1), scores.amax(dim=1))


def test_logits_beyond_the_axis_take_the_outermost_shift() -> None:
    correction = corrections()["quantile, raw"]
    assert isinstance(correction, QuantileCorrection)
    logits = torch.tensor([[LIMIT + 90, -LIMIT - 90, LIMIT, -LIMIT]])
    last, first = correction.shifts[..., -1], correction.shifts[..., 0]
    edge = torch.stack([last[:, 0], first[:, 1], last[:, 2], first[:, 3]], dim=1)
    expected = (logits + edge).log_softmax(dim=1).diagonal()
    torch.testing.assert_close(correction.scores(logits)[0], expected)
    assert_predicts_its_scores(correction, logits)


@pytest.fixture(scope="module")
def cells(published: dict[str, Tensor]) -> tuple[GaussianMixture, Anchors]:
    names = ("weights", "means", "variances")
    anchors = GaussianMixture(*(published[f"anchor_{name}"] for name in names))
    return GaussianMixture(*(published[f"gmm_{name}"] for name in names)), Anchors(anchors[0], anchors[1])


EVERY = torch.ones(6, dtype=torch.bool)


@pytest.mark.parametrize("tau", [0.1, 0.2, 1.0])
def test_exact_shifts_give_the_published_scores(
    published: dict[str, Tensor], cells: tuple[GaussianMixture, Anchors], tau: float
) -> None:
    values = published["logits"].movedim(1, 0).flatten(1).double()
    shifts = quantile_shifts(*cells, EVERY, values, Tails.CLAMP)  # hypothesis, channel, pixel
    scores = (values + tau * shifts).softmax(dim=1).diagonal(dim1=0, dim2=1).T
    expected = published[f"aligned_scores_tau{tau}"].movedim(1, 0).flatten(1)
    torch.testing.assert_close(scores, expected.double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("tau", "bins", "tolerance"),
    [(tau, 1 << 10, tau * 32 / 1024) for tau in (0.1, 0.2, 1.0)]  # strength times half a bin
    + [(0.1, 1 << 14, 1e-4), (0.2, 1 << 15, 1e-4), (1.0, 1 << 18, 1e-4)],
)
def test_tabulated_shifts_give_the_published_scores(
    published: dict[str, Tensor], cells: tuple[GaussianMixture, Anchors], tau: float, bins: int, tolerance: float
) -> None:
    limit = 32.0  # the logits reach 16.4
    centers = (torch.arange(bins, dtype=torch.float64) + 0.5) * (2 * limit / bins) - limit
    shifts = quantile_shifts(*cells, EVERY, centers, Tails.CLAMP)
    correction = QuantileCorrection((tau * shifts).float(), limit, LogitSpace.RAW)
    expected = published[f"aligned_scores_tau{tau}"]
    assert (correction.scores(published["logits"]).exp() - expected).abs().max() < tolerance
    ids = correction.predict(published["logits"])
    assert (expected.amax(dim=1) - expected.gather(1, ids.unsqueeze(1)).squeeze(1)).max() < 2 * tolerance
