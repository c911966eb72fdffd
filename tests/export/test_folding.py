from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blda_cli.exporting.correct import of_channels
from blda_cli.exporting.folding import find_fold, fold_offsets
from blda_cli.segmenters.grouping import Grouping
from blda_cli.segmenters.outputs import find_scores

OFFSETS = torch.tensor([0.7, -1.3, 0.0, 2.5, -0.4])
Networks = Callable[[str], nn.Module]


def moved(network: nn.Module, before: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return find_scores(network(images)) - find_scores(before(images))


@pytest.mark.parametrize(
    ("name", "layer", "new_bias"),
    [
        ("bias", "head", False),
        ("no bias", "head", True),
        ("upsampled", "head", False),
        ("transposed", "head", True),
        ("normed", "head.1", False),
        ("two heads", "coarse", False),
        ("half the sum", "coarse", False),
        ("classifier", "head", False),
    ],
)
def test_folded_offsets_move_the_output_by_themselves(
    networks: Networks, name: str, layer: str, new_bias: bool
) -> None:
    network, before = networks(name), networks(name)
    fold = find_fold(network, torch.rand(1, 3, 64, 48))
    assert fold is not None
    assert (fold.layer, fold.new_bias) == (layer, new_bias)
    # Trying changes nothing.
    assert network.state_dict().keys() == before.state_dict().keys()
    assert not bool(moved(network, before, torch.rand(1, 3, 32, 32)).any())
    fold_offsets(network, fold, OFFSETS)
    assert (network.state_dict().keys() == before.state_dict().keys()) != new_bias
    difference = moved(network, before, torch.rand(2, 3, 40, 72))
    expected = OFFSETS.view(1, 5, *[1] * (difference.ndim - 2)).expand_as(difference)
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=0)


def test_a_head_with_a_bias_is_preferred_to_a_later_one_without(networks: Networks) -> None:
    network = networks("two heads")
    network.coarse = nn.Conv2d(8, 5, 1, bias=False)
    fold = find_fold(network, torch.rand(1, 3, 64, 48))
    assert fold is not None
    assert fold.layer == "fine"


@pytest.mark.parametrize(
    "after",
    [
        lambda scores: scores.softmax(dim=1),
        lambda scores: scores.relu(),
        lambda scores: scores.clamp(-3, 3),
        lambda scores: scores * torch.linspace(0.5, 1, scores.shape[3]),
        lambda scores: scores - scores.mean(dim=1, keepdim=True),
        lambda scores: F.pad(scores, (1, 1, 1, 1)),
    ],
    ids=["softmax", "relu", "clamped", "weighted by place", "centred", "padded"],
)
def test_a_layer_is_not_used_where_more_comes_after_it(
    headed: Callable[..., nn.Module], after: Callable[[Tensor], Tensor]
) -> None:
    assert find_fold(headed(nn.Conv2d(8, 5, 1), after), torch.rand(1, 3, 64, 48)) is None


def test_training_mode_and_running_statistics_survive_the_search(networks: Networks) -> None:
    network = networks("bias").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert find_fold(network, torch.rand(2, 3, 64, 48)) is not None
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_programs_are_searched_by_their_parameters(networks: Networks) -> None:
    images = torch.rand(2, 3, 32, 48)
    for program in (
        torch.jit.trace(networks("upsampled"), images),
        torch.export.export(networks("upsampled"), (images,)).module(),
    ):
        fold = find_fold(program, images)
        assert fold is not None
        assert fold.layer == "head"
        before = program(images)
        fold_offsets(program, fold, OFFSETS)
        torch.testing.assert_close(
            program(images) - before, OFFSETS.view(1, 5, 1, 1).expand_as(before), atol=1e-5, rtol=0
        )


def test_each_member_of_a_group_takes_its_offset_and_so_does_the_groups_logit() -> None:
    logits = torch.randn(2, 6, 7, 9) * 4
    grouping = Grouping(((4,), (0, 3, 2)))
    offsets = torch.tensor([1.5, -0.8])
    channels = of_channels(offsets, grouping, 6)
    assert channels.tolist() == pytest.approx([-0.8, 0, -0.8, -0.8, 1.5, 0])
    expected = grouping(logits) + offsets.view(1, 2, 1, 1)
    torch.testing.assert_close(grouping(logits + channels.view(1, 6, 1, 1)), expected, atol=1e-5, rtol=0)
    assert of_channels(offsets, None, 4).tolist() == pytest.approx([1.5, -0.8, 0, 0])
