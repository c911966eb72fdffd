from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from blda_cli.data.labels import LabelReader
from blda_cli.data.loader import SkippedFile
from blda_cli.data.pillow_images import PillowImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import parse_model

CPU = torch.device("cpu")
Reference = Callable[[nn.Module, Tensor], Tensor]

MODULE = """
import torch
from blocks import head
from torch import nn

class TinyNet(nn.Module):
    def __init__(self, channels=5):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = head(channels)

    def forward(self, images):
        return self.head(torch.relu(self.norm(self.body(images))))

def make(channels=5):
    return TinyNet(channels)

def broken():
    raise RuntimeError("no licence")

def number():
    return 3

class Wrapped(TinyNet):
    def forward(self, images):
        x = super().forward(images)
        return RETURN

def nan(**_):
    return lambda images: torch.full((len(images), 5, *images.shape[2:]), float("nan"))
"""


def description(folder: Path, section: str = "", factory: str = "tiny:make", returns: str = "x") -> str:
    (folder / "tiny.py").write_text(MODULE.replace("RETURN", returns))
    (folder / "blocks.py").write_text(
        "from torch import nn\n\ndef head(channels):\n    return nn.Conv2d(8, channels, 1)\n"
    )
    file = folder / "tiny.toml"
    file.write_text(f'[segmenter]\nkind = "python"\nfactory = "{factory}"\n{section}')
    return str(file)


def load(model: str, weights: Path | None = None) -> NetworkSegmenter:
    segmenter = load_segmenter(parse_model(model, weights), CPU)
    assert isinstance(segmenter, NetworkSegmenter)
    return segmenter


@pytest.fixture
def weights(tmp_path: Path, tiny_net: nn.Module) -> Path:
    save_file(tiny_net.state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_logits_are_the_networks_own(
    tmp_path: Path, tiny_net: nn.Module, weights: Path, pixels: Tensor, reference: Reference
) -> None:
    segmenter = load(description(tmp_path), weights)
    assert segmenter.classes.names == tuple(f"class {n}" for n in range(5))
    assert any("no names" in note for note in segmenter.notes)
    torch.testing.assert_close(segmenter.logits(pixels), reference(tiny_net, pixels))
    assert not segmenter.logits(pixels).requires_grad


def test_streaming_keeps_the_order_and_batches_equal_sizes(
    tmp_path: Path, tiny_net: nn.Module, weights: Path, images: list[ImageSource], pixels: Tensor, reference: Reference
) -> None:
    segmenter = load(description(tmp_path), weights)
    batches = list(segmenter.stream(images, InferenceOptions(batch_size=2)))
    assert [[file.key for file in batch.files] for batch in batches] == [["town/a", "town/b"], ["c"]]
    assert [tuple(batch.logits.shape) for batch in batches] == [(2, 5, 50, 70), (1, 5, 40, 60)]
    torch.testing.assert_close(batches[0].logits, reference(tiny_net, pixels))
    batches[0].logits.mul_(2)  # those who get them may work in place


def test_labels_come_with_their_images(tmp_path: Path, weights: Path, images: list[ImageSource]) -> None:
    def label(file: ImageSource) -> np.ndarray:
        with Image.open(file.path) as image:
            return np.full((image.height, image.width), len(file.key), dtype=np.uint8)

    segmenter = load(description(tmp_path), weights)
    first, second = segmenter.stream(images, InferenceOptions(batch_size=2), cast(LabelReader, label))
    assert first.labels is not None
    assert second.labels is not None
    assert torch.equal(first.labels, torch.full((2, 50, 70), 6, dtype=torch.uint8))
    assert torch.equal(second.labels, torch.full((1, 40, 60), 1, dtype=torch.uint8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_logits_are_the_same(tmp_path: Path, weights: Path, images: list[ImageSource]) -> None:
    spec = parse_model(description(tmp_path), weights)
    on_cpu = list(load_segmenter(spec, CPU).stream(images * 4, InferenceOptions()))
    on_gpu = list(load_segmenter(spec, torch.device("cuda")).stream(images * 4, InferenceOptions()))
    assert len(on_gpu) == len(on_cpu) == 12
    for a, b in zip(on_cpu, on_gpu, strict=True):
        assert b.logits.is_cuda
        assert a.files == b.files
        torch.testing.assert_close(b.logits.cpu(), a.logits, atol=1e-3, rtol=1e-3)


def test_short_form_looks_in_the_working_directory(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description(tmp_path)
    monkeypatch.chdir(tmp_path)
    by_name, by_file = load("tiny:make", weights), load("tiny.py:make", weights)
    assert by_name.identity == by_file.identity
    assert by_name.identity["factory"] == "tiny:make"


def test_modules_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = description(tmp_path / "a"), description(tmp_path / "b", "arguments = {}", returns="x + 1")
    (tmp_path / "b" / "tiny.py").write_text("from torch import nn\n\ndef make():\n    return nn.Conv2d(3, 7, 1)\n")
    assert len(load(first).classes) == 5
    assert len(load(second).classes) == 7


def test_the_folder_does_not_stay_on_the_import_path(tmp_path: Path) -> None:
    import sys

    before = list(sys.path)
    load(description(tmp_path))
    assert sys.path == before


def test_preprocessing_channels_and_groups_in_sequence(
    tmp_path: Path, tiny_net: nn.Module, weights: Path, pixels: Tensor
) -> None:
    section = """
    channels = 4
    [preprocessing]
    color = "bgr"
    mean = [10.0, 20.0, 30.0]
    std = [2.0, 3.0, 4.0]
    scale = 10.0
    size = [32, 48]
    [classes]
    names = ["a", "b", "c", "d"]
    [classes.groups]
    ac = ["c", "a"]
    b = ["b"]
    """
    segmenter = load(description(tmp_path, section), weights)
    x = pixels.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (32, 48), mode="bilinear", antialias=True).flip(1)
    x = (x - torch.tensor([10.0, 20, 30]).view(3, 1, 1)) / torch.tensor([2.0, 3, 4]).view(3, 1, 1) / 10
    with torch.no_grad():
        out = F.interpolate(tiny_net(x)[:, :4], (50, 70), mode="bilinear")
    expected = torch.stack([out[:, [0, 2]].logsumexp(1), out[:, 1]], 1)
    torch.testing.assert_close(segmenter.logits(pixels), expected)
    assert segmenter.classes.names == ("ac", "b")


def test_forward_logits_has_gradients_at_the_networks_resolution(tmp_path: Path, weights: Path, pixels: Tensor) -> None:
    section = '[classes]\nnames = ["a", "b", "c", "d", "e"]\n[classes.groups]\nx = ["a", "b"]\ny = ["c"]'
    segmenter = load(description(tmp_path, section), weights)
    images = pixels.permute(0, 3, 1, 2).float().requires_grad_()
    logits = segmenter.forward_logits(images)
    assert logits.shape == (2, 2, 13, 18)
    logits[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    head = segmenter.module.head.bias.grad  # type: ignore[union-attr]
    assert isinstance(head, Tensor)
    assert (head[:2] > 0).all()
    assert (head[2:] == 0).all()
    resized = segmenter.forward_logits(images, size=(50, 70))
    torch.testing.assert_close(resized.detach(), segmenter.logits(pixels))


def test_forward_logits_runs_another_network(tmp_path: Path, weights: Path, pixels: Tensor) -> None:
    segmenter = load(description(tmp_path), weights)
    other = nn.Conv2d(3, 5, 1)
    images = pixels.permute(0, 3, 1, 2).float()
    torch.testing.assert_close(segmenter.forward_logits(images, network=other), other(images / 255))


@pytest.mark.parametrize(
    ("returns", "same"),
    [("{'aux': x + 1, 'out': x}", True), ("(x[..., ::2], x)", True), ("x.softmax(1)", False), ("x.argmax(1)", False)],
)
def test_what_networks_return(
    tmp_path: Path, tiny_net: nn.Module, weights: Path, pixels: Tensor, reference: Reference, returns: str, same: bool
) -> None:
    section = '[classes]\nnames = ["a", "b", "c", "d", "e"]'
    segmenter = load(description(tmp_path, section, "tiny:Wrapped", returns), weights)
    if same:
        torch.testing.assert_close(segmenter.logits(pixels), reference(tiny_net, pixels))
    else:
        with pytest.raises(BldaError, match=r'output = "probabilities"|class ids, not logits'):
            segmenter.logits(pixels)


def test_probabilities_are_resized_and_then_taken_the_logarithm_of(
    tmp_path: Path, tiny_net: nn.Module, weights: Path, pixels: Tensor
) -> None:
    section = '[preprocessing]\noutput = "probabilities"'
    segmenter = load(description(tmp_path, section, "tiny:Wrapped", "x.softmax(1)"), weights)
    with torch.no_grad():
        probabilities = tiny_net(pixels.permute(0, 3, 1, 2).float() / 255).softmax(1)
    expected = F.interpolate(probabilities, (50, 70), mode="bilinear").log()
    torch.testing.assert_close(segmenter.logits(pixels), expected)


def test_padding_the_network_leaves_in_is_cut(
    tmp_path: Path, tiny_net: nn.Module, weights: Path, pixels: Tensor
) -> None:
    section = '[classes]\nnames = ["a", "b", "c", "d", "e"]'
    model = description(tmp_path, section, "tiny:Padding")
    with (tmp_path / "tiny.py").open("a") as module:
        module.write(
            "\nclass Padding(TinyNet):\n"
            "    def forward(self, images):\n"
            "        h, w = images.shape[2:]\n"
            "        padded = nn.functional.pad(images, (0, -w % 32, 0, -h % 32))\n"
            "        return nn.functional.interpolate(super().forward(padded), scale_factor=4, mode='bilinear')\n"
        )
    segmenter = load(model, weights)
    got = segmenter.logits(pixels)
    x = F.pad(pixels.permute(0, 3, 1, 2).float() / 255, (0, 26, 0, 14))
    with torch.no_grad():
        expected = F.interpolate(tiny_net(x), scale_factor=4, mode="bilinear")[..., :50, :70]
    torch.testing.assert_close(got, expected)
    assert any("64x96" in note and "cut" in note for note in segmenter.notes)


def test_sides_are_made_multiples_and_the_logits_cut(
    tmp_path: Path, tiny_net: nn.Module, weights: Path, pixels: Tensor
) -> None:
    segmenter = load(description(tmp_path, "[preprocessing]\nmultiple_of = 32"), weights)
    with torch.no_grad():
        out = tiny_net(F.pad(pixels.permute(0, 3, 1, 2).float() / 255, (0, 26, 0, 14)))
    expected = F.interpolate(out, (64, 96), mode="bilinear")[..., :50, :70]
    torch.testing.assert_close(segmenter.logits(pixels), expected)


def test_a_classifiers_logits_pass_through(tmp_path: Path, images: list[ImageSource], pixels: Tensor) -> None:
    segmenter = load(description(tmp_path, "", "tiny:Wrapped", "x.mean(dim=(2, 3))"))
    assert segmenter.logits(pixels).shape == (2, 5)
    (first, _) = segmenter.stream(images, InferenceOptions(batch_size=2, flip=True, scales=(0.5, 1.0)))
    assert first.logits.shape == (2, 5)
    with pytest.raises(BldaError, match="one answer per image"):
        segmenter.logits(pixels, InferenceOptions(slide=(20, 20)))


def test_windows_scales_and_flips_of_a_network(
    tmp_path: Path, tiny_net: nn.Module, weights: Path, pixels: Tensor, reference: Reference
) -> None:
    segmenter = load(description(tmp_path), weights)
    got = segmenter.logits(pixels, InferenceOptions(slide=(32, 40), stride=(18, 30)))
    total, covered = torch.zeros(2, 5, 50, 70), torch.zeros(50, 70)
    rows, columns = (torch.tensor([min(at + 1, side - at) for at in range(side)]) for side in (32, 40))
    weight = rows[:, None] * columns
    for top in (0, 18):
        for left in (0, 30):
            window = (..., slice(top, top + 32), slice(left, left + 40))
            total[window] += weight * reference(tiny_net, pixels[:, window[1], window[2]])
            covered[window] += weight
    torch.testing.assert_close(got, total / covered)

    by_default = InferenceOptions(slide=(32, 40))
    assert by_default == InferenceOptions(slide=(32, 40), stride=(21, 26))
    assert InferenceOptions(slide=(1, 2)).stride == (1, 1)
    stepped = segmenter.logits(pixels, replace(by_default, stride=(21, 26)))
    torch.testing.assert_close(segmenter.logits(pixels, by_default), stepped, rtol=0, atol=0)

    got = segmenter.logits(pixels, InferenceOptions(scales=(0.5, 1.0), flip=True))
    mean = torch.zeros(2, 5, 50, 70)
    x = pixels.permute(0, 3, 1, 2).float() / 255
    for size in ((25, 35), (50, 70)):
        for mirrored in (False, True):
            view = F.interpolate(x, size, mode="bilinear", antialias=True)
            with torch.no_grad():
                out = tiny_net(view.flip(3) if mirrored else view)
            out = F.interpolate(out, (50, 70), mode="bilinear")
            mean += (out.flip(3) if mirrored else out).softmax(1) / 4
    torch.testing.assert_close(got.exp(), mean, atol=1e-5, rtol=1e-4)


def test_scales_of_a_network_that_is_fed_at_a_given_size(
    tmp_path: Path, tiny_net: nn.Module, weights: Path, pixels: Tensor
) -> None:
    segmenter = load(description(tmp_path, "[preprocessing]\nsize = [64, 96]"), weights)
    x = pixels.permute(0, 3, 1, 2).float()
    with torch.no_grad():
        small = F.interpolate(x, (32, 48), mode="bilinear", antialias=True) / 255
        out = tiny_net(F.pad(small, (0, 16)))  # to a multiple of 32, as the size given is one
    expected = F.interpolate(F.interpolate(out, (32, 64), mode="bilinear")[..., :48], (50, 70), mode="bilinear")
    torch.testing.assert_close(segmenter.logits(pixels, InferenceOptions(scales=(0.5,))), expected)
    assert not [note for note in segmenter.notes if "scales" in note]


def test_a_network_of_one_size_is_shown_less_detail(tmp_path: Path, pixels: Tensor) -> None:
    only = "x if images.shape[2:] == (64, 96) else x.view(3)"
    segmenter = load(description(tmp_path, "[preprocessing]\nsize = [64, 96]", "tiny:Wrapped", only))
    got = segmenter.logits(pixels, InferenceOptions(scales=(0.5, 1.0)))
    smaller = F.interpolate(pixels.permute(0, 3, 1, 2).float(), (25, 35), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = segmenter.forward_logits(smaller, (50, 70)).softmax(1) + segmenter.logits(pixels).softmax(1)
    torch.testing.assert_close(got.exp(), expected / 2)
    assert [note for note in segmenter.notes if note.startswith("the network takes 64x96 only")]


def test_a_scale_for_which_the_memory_does_not_suffice_is_no_size_that_is_not_taken(
    tmp_path: Path, pixels: Tensor
) -> None:
    short = "x if images.shape[2] <= 64 else (_ for _ in ()).throw(MemoryError())"
    segmenter = load(description(tmp_path, "[preprocessing]\nsize = [64, 96]", "tiny:Wrapped", short))
    with pytest.raises(BldaError, match=r"the memory does not suffice for an input of shape \[1, 3, 128, 192\]"):
        segmenter.logits(pixels, InferenceOptions(scales=(2.0,)))
    segmenter.logits(pixels, InferenceOptions(scales=(0.5, 1.0)))
    assert not [note for note in segmenter.notes if "scales" in note]


def test_scales_are_not_tried_by_what_scores_of_a_grey_image_look_like(tmp_path: Path, pixels: Tensor) -> None:
    like_sigmoids = "x if images[..., :8, :8].std() > 1e-3 else 0.5 + 0.4 * x.sigmoid()"
    section = "[preprocessing]\nsize = [64, 96]\n[classes]\nnames = ['a', 'b', 'c', 'd', 'e']"
    segmenter = load(description(tmp_path, section, "tiny:Wrapped", like_sigmoids))
    segmenter.logits(pixels, InferenceOptions(scales=(0.5, 1.0)))
    assert segmenter.notes == []


def test_mixed_precision_is_close(tmp_path: Path, weights: Path, pixels: Tensor) -> None:
    segmenter = load(description(tmp_path), weights)
    half = segmenter.logits(pixels, InferenceOptions(amp=True))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), segmenter.logits(pixels), atol=0.03, rtol=0.03)


def test_logits_that_are_not_finite_name_the_image(tmp_path: Path, images: list[ImageSource]) -> None:
    section = '[classes]\nnames = ["a", "b", "c", "d", "e"]'
    segmenter = load(description(tmp_path, section, "tiny:nan"))
    assert any("no torch.nn.Module" in note for note in segmenter.notes)
    with pytest.raises(BldaError, match="kind python cannot be trained"):
        _ = segmenter.module
    with pytest.raises(BldaError, match=r"town/a\.png: the logits are not finite"):
        list(segmenter.stream(images, InferenceOptions()))


def test_a_bad_image_is_skipped_or_stops(tmp_path: Path, weights: Path, images: list[ImageSource]) -> None:
    segmenter = load(description(tmp_path), weights)
    images[1].path.write_bytes(images[1].path.read_bytes()[:100])
    skipped: list[SkippedFile] = []
    batches = list(segmenter.stream(images, InferenceOptions(on_error="skip"), skipped=skipped))
    assert [batch.files[0].key for batch in batches] == ["town/a", "c"]
    assert [one.file.key for one in skipped] == ["town/b"]
    with pytest.raises(BldaError, match=r"b\.png"):
        list(segmenter.stream(images, InferenceOptions()))


def test_identity_tells_what_changes_the_logits(tmp_path: Path, weights: Path, tiny_net: nn.Module) -> None:
    model = description(tmp_path)
    first = load(model, weights).identity
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in tiny_net.state_dict().items()}}, tmp_path / "b.pth"
    )
    assert load(model, tmp_path / "b.pth").identity == first
    assert str(tmp_path) not in repr(first)
    identities = [first]
    names = '[classes]\nnames = ["a", "b", "c", "d", "e"]\n'
    for section in ("[preprocessing]\nscale = 3.0", names, names + '[classes.groups]\nx = ["a", "b"]'):
        identities.append(load(description(tmp_path, section), weights).identity)
    with torch.no_grad():
        tiny_net.get_parameter("head.bias")[0] += 1
    save_file(tiny_net.state_dict(), weights)
    identities.append(load(description(tmp_path), weights).identity)
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])


@pytest.mark.parametrize(
    ("factory", "section", "message"),
    [
        ("nowhere_at_all:make", "", "no module 'nowhere_at_all'"),
        ("tiny:unmake", "", "no callable 'unmake'"),
        ("tiny:broken", "", "no licence"),
        ("tiny:number", "", "returns int"),
        ("tiny:make", "arguments = {chanels = 3}", "chanels"),  # codespell:ignore
        ("tiny", "", "should be module:callable"),
        ("tiny:tinynet", "", r"no callable 'tinynet'; do you mean tiny:TinyNet\?"),
        ("tiny:unmake", "", "no callable 'unmake'; do you mean tiny:make"),
        ("tiny.TinyNet", "", r"should be module:callable or file.py:callable; do you mean tiny:TinyNet\?"),
        ("tinny:make", "", r"no module 'tinny', .*; do you mean tiny\?"),
        ("tinny.py:make", "", r"tinny.py: no such file; do you mean tiny.py\?"),
        ("missing.py:make", "", "no such file"),
        ("tiny:make", '[classes]\nnames = ["a", "b"]', "name what each of its channels stands for"),
        ("tiny:make", 'channels = 3\n[classes]\nnames = ["a", "b"]', "channels = 3, but 2 classes"),
        ("tiny:make", '[classes]\nnames = "citiscapes"', "cityscapes"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, pixels: Tensor, factory: str, section: str, message: str) -> None:
    with pytest.raises(BldaError, match=message) as caught:
        load(description(tmp_path, section, factory)).logits(pixels)
    assert "\n" not in str(caught.value)


def test_a_module_beside_the_weights_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "only_there.py").write_text("raise SystemExit")
    with pytest.raises(BldaError, match=r"do you mean net/only_there\.py, which lies beside the weights\?"):
        load(description(tmp_path, "", "only_there:make"), tmp_path / "net" / "tiny.pth")


def test_a_network_that_fails_on_the_image_says_so(tmp_path: Path, pixels: Tensor) -> None:
    section = '[classes]\nnames = ["a", "b", "c", "d", "e"]'
    segmenter = load(description(tmp_path, section, "tiny:Wrapped", "x.view(1, 2, 3)"))
    with pytest.raises(BldaError, match=r"fails on an input of shape \[2, 3, 50, 70\]"):
        segmenter.logits(pixels)


def test_real_frames(shared_data: Path) -> None:
    espnet = Path(__file__).parents[2] / "examples" / "espnet" / "espnet.toml"
    segmenter = load(str(espnet), shared_data / "weights" / "espnet_cityscapes_p2_q8.pth")
    frame = sorted((shared_data / "camvid" / "dusk" / "images").glob("*.png"))[0]
    (batch,) = segmenter.stream([PillowImage(frame, frame.stem)], InferenceOptions())
    with Image.open(frame) as image:
        assert tuple(batch.logits.shape) == (1, 11, image.height, image.width)
    assert segmenter.classes.names[:2] == ("sky", "building")
