import torch

from blda_cli.finetuning.methods.pseudo_labels import confidence_weighted, debiased_labels


def test_the_weight_is_the_images_share_of_confident_pixels() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    logits[0, 1] = torch.tensor([[9.0, 9.0], [9.0, 1.0]])
    logits[1, 2, 0, 0] = 9.0
    pseudo = confidence_weighted(logits, 0.968)
    assert pseudo.weights[0].unique().tolist() == [0.75]
    assert pseudo.weights[1].unique().tolist() == [0.25]
    assert pseudo.labels[0].unique().tolist() == [1]
    assert pseudo.kept.sum(dim=(1, 2)).tolist() == [3, 1]
    confident = torch.softmax(logits, dim=1).amax(dim=1) >= 0.968
    assert torch.equal(pseudo.kept, confident)


def test_debiasing_undoes_a_constant_added_to_a_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (4, 40, 40), generator=generator)
    fair = torch.randn(4, 3, 40, 40, generator=generator)
    fair.scatter_add_(1, labels.unsqueeze(1), torch.full((4, 1, 40, 40), 4.0))
    biased = fair + torch.tensor([5.0, 0.0, 0.0]).view(3, 1, 1)
    by_label = torch.stack([biased.permute(0, 2, 3, 1)[labels == label].mean(dim=0) for label in range(3)])
    pixels = labels.flatten().bincount().float()
    before = (biased.argmax(dim=1) == labels).float().mean()
    after = (debiased_labels(biased, by_label, pixels) == labels).float().mean()
    assert float(before) < 0.75
    assert float(after) > 0.97


def test_labels_without_pixels_do_not_disturb() -> None:
    logits = torch.randn(1, 3, 6, 6)
    means = torch.zeros(3, 3)
    means[2] = 1e9
    labels = debiased_labels(logits, means, torch.tensor([5000.0, 5000.0, 0.0]))
    assert torch.equal(labels, logits.argmax(dim=1))
