import torch

from blda_cli.core.parts import differing_parts
from blda_cli.core.sample import PixelSample

C = 4


def sampled(parts: dict[str, tuple[float, list[float]]], images: int = 6) -> PixelSample:
    """Some images of every part; a part's logits have a factor and, per class, a constant."""
    random = torch.Generator().manual_seed(0)
    sample = PixelSample.empty(C)
    for name, (factor, constant) in parts.items():
        for index in range(images):
            labels = torch.randint(0, C, (1, 40, 40), generator=random)
            logits = torch.randn(1, C, 40, 40, generator=random)
            logits += 2.5 * torch.nn.functional.one_hot(labels, C).movedim(-1, 1)
            logits = factor * (logits + torch.tensor(constant).view(-1, 1, 1))
            sample += sample.draw(logits, logits.argmax(dim=1), None, [f"{name}/{index}"])
    return sample


def keys(*names: str) -> dict[str, list[str]]:
    return {name: [f"{name}/{index}" for index in range(6)] for name in names}


DAY, DUSK = (3.0, [0.0, 0.3, -0.3, 0.0]), (1.0, [1.2, -0.3, 0.3, -0.6])


def test_a_part_of_another_domain_is_named() -> None:
    sample = sampled({"monday": DAY, "dusk": DUSK, "tuesday": DAY})
    found = differing_parts(sample, keys("monday", "dusk", "tuesday"))
    assert found is not None
    assert found.surest in ("monday", "tuesday")
    assert list(found.others) == ["dusk"]
    assert found.others["dusk"].confidence < found.others["dusk"].reference_confidence


def test_parts_of_one_domain_are_not() -> None:
    assert differing_parts(sampled({"monday": DAY, "tuesday": DAY}), keys("monday", "tuesday")) is None
    assert differing_parts(sampled({"dusk": DUSK}), keys("dusk")) is None
    assert differing_parts(sampled({"dusk": DUSK}), keys("dusk", "empty")) is None
