import pytest
import torch
from torch import nn

from blda_cli.finetuning.teacher import Teacher


def test_it_is_the_students_moving_average() -> None:
    student = nn.Linear(3, 2)
    teacher = Teacher(student, momentum=0.9)
    expected = student.weight.detach().clone()
    for step in range(1, 20):
        with torch.no_grad():
            student.weight.add_(torch.randn(2, 3))
        teacher.follow(student, step)
        keep = min(1 - 1 / (step + 1), 0.9)
        expected = keep * expected + (1 - keep) * student.weight.detach()
    assert isinstance(teacher.network, nn.Linear)
    torch.testing.assert_close(teacher.network.weight, expected)
    assert not any(one.requires_grad for one in teacher.network.parameters())


def test_dropout_and_stochastic_depth_are_off_and_batch_norms_follow_the_target() -> None:
    class DropPath(nn.Module):
        pass

    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout2d(0.9), DropPath())
    teacher = Teacher(student, 0.9).network
    assert isinstance(teacher, nn.Sequential)
    assert [module.training for module in teacher] == [True, True, False, False]
    images = torch.randn(2, 3, 8, 8) + 5
    with torch.no_grad():
        teacher[:3](images)
    assert float(teacher.state_dict()["1.running_mean"].abs().min()) > 0
    assert torch.count_nonzero(student.state_dict()["1.running_mean"]) == 0


def test_running_statistics_average_the_targets_as_slowly_as_the_weights() -> None:
    student = nn.Sequential(nn.BatchNorm2d(1, affine=False))
    teacher = Teacher(student, 0.9)
    expected = 0.0
    for step in range(1, 30):
        teacher.follow(student, step)
        images = torch.randn(2, 1, 4, 4)
        teacher.network(images)
        expected += max(1 / (step + 1), 0.1) * (float(images.mean()) - expected)
    assert float(teacher.network.state_dict()["0.running_mean"]) == pytest.approx(expected, abs=1e-5)


def test_a_teacher_that_never_labels_takes_the_students_statistics() -> None:
    student = nn.Sequential(nn.BatchNorm2d(1))
    teacher = Teacher(student, 0.5, labels=False)
    student.state_dict()["0.running_mean"].fill_(8.0)
    teacher.follow(student, 1)
    assert float(teacher.network.state_dict()["0.running_mean"]) == 4.0
