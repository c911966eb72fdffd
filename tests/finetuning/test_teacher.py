import torch
import torch.nn.functional as F
from torch import nn

from blda_cli.finetuning.networks.teacher import Teacher


def test_it_is_the_students_moving_average() -> None:
    student = nn.Linear(3, 2)
    teacher = Teacher(student, momentum=0.9, holds_norms=False)
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


class DropPath(nn.Module):
    pass


def test_dropout_and_stochastic_depth_are_off_and_batch_norms_take_the_batch() -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout2d(0.9), DropPath())
    teacher = Teacher(student, 0.9, holds_norms=False).network
    assert isinstance(teacher, nn.Sequential)
    assert [module.training for module in teacher] == [False, True, False, False]
    with torch.no_grad():
        normalised = teacher[:3](torch.randn(2, 3, 8, 8) + 5)
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert torch.count_nonzero(teacher.state_dict()["1.running_mean"]) == 0


class Attending(nn.Module):
    """Dropout as torch's own attention has it and as a function, beside a batch norm that has a child of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.norm = nn.BatchNorm1d(5)
        self.norm.add_module("drop", nn.Dropout(0.5))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        attended = self.attention(values, values, values, need_weights=False)[0]
        normalised: torch.Tensor = self.norm(F.dropout(attended, 0.5, self.training))
        dropped: torch.Tensor = self.norm.get_submodule("drop")(normalised)
        return dropped


def test_no_dropout_of_any_kind_is_on() -> None:
    teacher = Teacher(Attending(), 0.9, holds_norms=False).network
    values = torch.randn(2, 5, 4)
    with torch.no_grad():
        assert torch.equal(teacher(values), teacher(values))
    assert [name for name, module in teacher.named_modules() if module.training] == ["norm"]


def test_held_norms_normalise_by_the_averages_they_have() -> None:
    student = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout2d(0.9), DropPath())
    teacher = Teacher(student, 0.9, holds_norms=True).network
    assert isinstance(teacher, nn.Sequential)
    images = torch.randn(2, 4, 8, 8) + 5
    assert [module.training for module in teacher] == [False, False, False]
    torch.testing.assert_close(teacher[0](images), images, atol=1e-4, rtol=0)


def test_running_statistics_follow_the_students() -> None:
    student = nn.Sequential(nn.BatchNorm2d(1))
    teacher = Teacher(student, 0.5, holds_norms=False)
    student.state_dict()["0.running_mean"].fill_(8.0)
    teacher.follow(student, 1)
    assert float(teacher.network.state_dict()["0.running_mean"]) == 4.0
    student.state_dict()["0.running_mean"].fill_(0.0)
    teacher.follow(student, 2)
    assert float(teacher.network.state_dict()["0.running_mean"]) == 2.0
