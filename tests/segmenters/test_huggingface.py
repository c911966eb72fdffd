import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.data.classes import preset
from blda_cli.errors import BldaError
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model

hf = pytest.importorskip("transformers")

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NAMES = ["road", "side walk", "sky"]


def swin() -> Any:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return hf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=stages
    )


def labels(names: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def segformer(names: list[str] = NAMES) -> Any:
    return hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(
            depths=[1] * 4,
            hidden_sizes=[8, 8, 16, 16],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            **labels(names),
        )
    )


def upernet() -> Any:
    return hf.UperNetForSemanticSegmentation(
        hf.UperNetConfig(
            backbone_config=swin(), hidden_size=16, auxiliary_in_channels=32, pool_scales=[1, 2], **labels(NAMES)
        )
    )


def vit_arguments() -> dict[str, Any]:
    return {
        "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": 64, "patch_size": 16, **labels(NAMES),
    }  # fmt: skip


def beit() -> Any:
    return hf.BeitForSemanticSegmentation(
        hf.BeitConfig(**vit_arguments(), out_indices=[1, 2, 3, 4], use_relative_position_bias=True, pool_scales=[1, 2])
    )


def dpt() -> Any:
    return hf.DPTForSemanticSegmentation(
        hf.DPTConfig(
            **vit_arguments(), neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, backbone_out_indices=[0, 1, 2, 3]
        )
    )


def mask2former() -> Any:
    return hf.Mask2FormerForUniversalSegmentation(
        hf.Mask2FormerConfig(
            backbone_config=swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
            encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6,
            **labels(NAMES),
        )
    )  # fmt: skip


def maskformer() -> Any:
    decoder = hf.DetrConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=6,
    )  # fmt: skip
    return hf.MaskFormerForInstanceSegmentation(
        hf.MaskFormerConfig(
            backbone_config=swin(), fpn_feature_size=32, mask_feature_size=32, decoder_config=decoder, **labels(NAMES)
        )
    )


def eomt() -> Any:
    return hf.EomtForUniversalSegmentation(hf.EomtConfig(**vit_arguments(), num_blocks=1, num_queries=6))


def oneformer() -> Any:
    return hf.OneFormerForUniversalSegmentation(
        hf.OneFormerConfig(
            backbone_config=swin(), conv_dim=32, mask_dim=32, hidden_dim=32, encoder_feedforward_dim=16,
            encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6,
            text_encoder_width=16, text_encoder_num_layers=1, text_encoder_vocab_size=64, task_seq_len=7,
            **labels(NAMES),
        )
    )  # fmt: skip


PROCESSOR = {
    "image_processor_type": "SegformerImageProcessor",
    "do_resize": True,
    "size": {"height": 64, "width": 64},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
}


def save(model: Any, folder: Path, processor: dict[str, Any] | None = PROCESSOR) -> str:
    torch.manual_seed(5)
    for parameter in model.parameters():  # so that the scores differ visibly
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def load(model: str, weights: Path | None = None) -> NetworkSegmenter:
    segmenter = load_segmenter(parse_model(model, weights), CPU)
    assert isinstance(segmenter, NetworkSegmenter)
    return segmenter


def normalised(pixels: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


@pytest.mark.parametrize("make", [segformer, upernet])
def test_semantic_models_give_their_own_logits(tmp_path: Path, pixels: Tensor, make: Callable[[], Any]) -> None:
    model = make()
    segmenter = load(save(model, tmp_path / "model"))
    with torch.no_grad():
        out = model(normalised(pixels)).logits
    torch.testing.assert_close(segmenter.logits(pixels), F.interpolate(out, (50, 70), mode="bilinear"))
    assert segmenter.classes.names == tuple(NAMES)
    assert any("height 64 x width 64" in note and "keep their own size" in note for note in segmenter.notes)
    assert segmenter.identity["path"] == "model"
    assert segmenter.identity["preprocessing"]["mean"] == list(MEAN)


@pytest.mark.parametrize("make", [mask2former, maskformer])
def test_mask_classification_gives_log_probabilities(tmp_path: Path, pixels: Tensor, make: Callable[[], Any]) -> None:
    model = make()
    segmenter = load(save(model, tmp_path / "model"))
    with torch.no_grad():
        out = model(normalised(pixels))
    classes = out.class_queries_logits.softmax(-1)[..., :-1]
    scores = torch.einsum("nqc,nqhw->nchw", classes, out.masks_queries_logits.sigmoid())
    scores = F.interpolate(scores, (50, 70), mode="bilinear")
    logits = segmenter.logits(pixels)
    torch.testing.assert_close(logits, (scores / scores.sum(1, keepdim=True)).log())
    assert torch.equal(logits.argmax(1), scores.argmax(1))
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(2, 50, 70))


def test_oneformer_is_asked_for_its_semantic_task(tmp_path: Path, pixels: Tensor) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 0, "the": 5, "task": 6, "is": 7, "semantic": 8}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model = oneformer()
    folder = save(model, tmp_path / "model")
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    segmenter = load(folder)
    with torch.no_grad():
        out = model(normalised(pixels), task_inputs=torch.tensor([[5, 6, 7, 8, 0, 0, 0]]).expand(2, -1))
    classes = out.class_queries_logits.softmax(-1)[..., :-1]
    scores = torch.einsum("nqc,nqhw->nchw", classes, out.masks_queries_logits.sigmoid())
    scores = F.interpolate(scores, (50, 70), mode="bilinear")
    torch.testing.assert_close(segmenter.logits(pixels), (scores / scores.sum(1, keepdim=True)).log())


def test_whole_patches_are_made_by_padding(tmp_path: Path, pixels: Tensor) -> None:
    model = beit()
    segmenter = load(save(model, tmp_path / "model"))
    with torch.no_grad():
        out = model(F.pad(normalised(pixels), (0, 10, 0, 14))).logits
    expected = F.interpolate(out, (64, 80), mode="bilinear")[..., :50, :70]
    torch.testing.assert_close(segmenter.logits(pixels), expected)


@pytest.mark.parametrize("make", [dpt, eomt])
def test_models_of_one_size_are_met_by_resizing(tmp_path: Path, pixels: Tensor, make: Callable[[], Any]) -> None:
    segmenter = load(save(make(), tmp_path / "model"))
    assert segmenter.logits(pixels).shape == (2, 3, 50, 70)
    assert any("64x64 images only" in note for note in segmenter.notes)


def test_known_class_names_bring_their_palette(tmp_path: Path) -> None:
    cityscapes = preset("cityscapes")
    segmenter = load(save(segformer([f"{name} " for name in cityscapes.names]), tmp_path / "model"))
    assert segmenter.classes == cityscapes


def test_the_description_overrules_the_model(tmp_path: Path, pixels: Tensor) -> None:
    model = segformer()
    save(model, tmp_path / "model")
    (tmp_path / "net.toml").write_text(
        '[segmenter]\nkind = "huggingface"\npath = "model"\n'
        "[preprocessing]\nmean = [1.0, 2.0, 3.0]\nstd = [4.0, 5.0, 6.0]\nscale = 1.0\nsize = [32, 64]\n"
        '[classes]\nnames = ["a", "b", "c"]\n[classes.groups]\nab = ["a", "b"]\nc = ["c"]\n'
    )
    segmenter = load(str(tmp_path / "net.toml"))
    x = F.interpolate(pixels.permute(0, 3, 1, 2).float(), (32, 64), mode="bilinear", antialias=True)
    x = (x - torch.tensor([1.0, 2, 3]).view(3, 1, 1)) / torch.tensor([4.0, 5, 6]).view(3, 1, 1)
    with torch.no_grad():
        out = F.interpolate(model(x).logits, (50, 70), mode="bilinear")
    expected = torch.stack([out[:, :2].logsumexp(1), out[:, 2]], 1)
    torch.testing.assert_close(segmenter.logits(pixels), expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"do_rescale": False}, lambda x: (x - 0.5) / 0.25),
        ({"rescale_factor": 1 / 127.5}, lambda x: (x / 127.5 - 0.5) / 0.25),
        ({"do_normalize": False}, lambda x: x / 255),
    ],
)
def test_any_normalisation_of_the_processor(
    tmp_path: Path, pixels: Tensor, change: dict[str, Any], expected: Callable[[Tensor], Tensor]
) -> None:
    processor = {**PROCESSOR, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, **change}
    segmenter = load(save(segformer(), tmp_path / "model", processor))
    images = pixels.permute(0, 3, 1, 2).float()
    torch.testing.assert_close(segmenter.preprocessor(images), expected(images))


def test_it_can_be_trained_and_the_weights_loaded_again(tmp_path: Path, pixels: Tensor) -> None:
    folder = save(segformer(), tmp_path / "model")
    segmenter = load(folder)
    logits = segmenter.forward_logits(pixels.permute(0, 3, 1, 2).float())
    assert logits.shape == (2, 3, 13, 18)
    logits.sum().backward()
    with torch.no_grad():
        for parameter in segmenter.module.parameters():
            assert parameter.grad is not None
            parameter.add_(0.01)
    torch.save({"state_dict": segmenter.module.state_dict()}, tmp_path / "w.pth")
    again = load(folder, tmp_path / "w.pth")
    torch.testing.assert_close(again.logits(pixels), segmenter.logits(pixels))
    assert again.identity["weights"] != segmenter.identity["weights"]


def test_models_that_will_not_do_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BldaError, match=r"no image processor.*give mean and std"):
        load(save(segformer(), tmp_path / "bare", None))
    classifier = hf.SegformerForImageClassification(segformer().config)
    with pytest.raises(BldaError, match="is a SegformerForImageClassification"):
        load(save(classifier, tmp_path / "classifier"))
    config = json.loads((tmp_path / "classifier" / "config.json").read_text())
    config["architectures"] = ["SegformerForSemanticSegmentation"]
    (tmp_path / "classifier" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BldaError, match=r"lacks weights of the model.*decode_head"):
        load(str(tmp_path / "classifier"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(BldaError, match="transformers cannot load it"):
        load(str(tmp_path / "broken"))


def test_a_hub_name_that_cannot_be_had_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blda_cli.segmenters.huggingface._hub_answers", lambda: True)

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", offline)
    with pytest.raises(BldaError, match="someone/some-model is no folder here and cannot be had") as caught:
        load("hf:someone/some-model")
    assert "\n" not in str(caught.value)


def configured(tmp_path: Path, **change: Any) -> Path:
    """A saved model of three classes whose configuration says something else about them."""
    folder = tmp_path / "model"
    segformer().save_pretrained(folder)
    hf.SegformerImageProcessor().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return folder


@pytest.mark.parametrize(("id2label", "names"), [
    ({"1": "road", "2": "side walk", "3": "sky"}, ("road", "side walk", "sky")),
    ({"2": "sky", "0": "road", "1": "wall"}, ("road", "wall", "sky")),
    ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, ("class 0", "class 1", "class 2")),
    ({"0": "LABEL_0", "1": "road", "2": "sky"}, ("LABEL_0", "road", "sky")),
])  # fmt: skip
def test_names_go_by_their_ids(tmp_path: Path, id2label: dict[str, str], names: tuple[str, ...]) -> None:
    folder = configured(tmp_path, id2label=id2label, label2id={name: int(one) for one, name in id2label.items()})
    assert load_segmenter(parse_model(str(folder)), CPU).classes.names == names


@pytest.mark.parametrize(("id2label", "message"), [
    ({"0": "road", "2": "wall", "5": "sky"}, "id2label in config.json has the ids 0, 2, 5 for 3 channels"),
    ({"2": "road", "3": "wall", "4": "sky"}, "has the ids 2, 3, 4 for 3 channels"),
    ({"0": "other", "1": "road", "2": "other"}, "calls the ids 0, 2 all 'other'"),
    ({"0": "", "1": "road", "2": "sky"}, "no name for the id 0"),
    ({"0": "a", "1": "b", "2": "c", "3": "d"}, r"names 4 classes in id2label, but the weights .* \[3"),
    ({"0": "a", "1": "b"}, r"names 2 classes in id2label, but the weights .* \[3"),
])  # fmt: skip
def test_names_that_do_not_fit_the_head_are_refused_unless_the_description_has_its_own(
    tmp_path: Path, id2label: dict[str, str], message: str
) -> None:
    folder = configured(tmp_path, id2label=id2label, label2id={name: int(one) for one, name in id2label.items()})
    with pytest.raises(BldaError, match=message) as caught:
        load_segmenter(parse_model(str(folder)), CPU)
    assert "\n" not in str(caught.value)
    toml = tmp_path / "model.toml"
    toml.write_text('[segmenter]\nkind = "huggingface"\npath = "model"\n[classes]\nnames = ["a", "b", "c"]')
    segmenter = load_segmenter(parse_model(str(toml)), CPU)
    assert isinstance(segmenter, NetworkSegmenter)
    assert segmenter.logits(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape == (1, 3, 64, 64)


def test_a_processor_that_flips_the_colours_makes_them_bgr(tmp_path: Path) -> None:
    folder = configured(tmp_path)
    path = folder / "preprocessor_config.json"
    said = {**json.loads(path.read_text()), "image_processor_type": "MobileViTImageProcessor"}
    for flips, color in ((True, "bgr"), (False, "rgb")):
        path.write_text(json.dumps({**said, "do_flip_channel_order": flips}))
        segmenter = load_segmenter(parse_model(str(folder)), CPU)
        assert isinstance(segmenter, NetworkSegmenter)
        assert segmenter.preprocessor.section.color == color


def test_a_processor_that_reduces_labels_says_that_they_count_from_1(tmp_path: Path) -> None:
    folder = configured(tmp_path)
    assert load_segmenter(parse_model(str(folder)), CPU).label_encoding is None
    hf.SegformerImageProcessor(do_reduce_labels=True).save_pretrained(folder)
    assert load_segmenter(parse_model(str(folder)), CPU).label_encoding == "ids-from-1"


def test_a_model_without_a_processor_needs_mean_and_std(tmp_path: Path) -> None:
    folder = configured(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BldaError, match=r"has no image processor .* give mean and std under"):
        load_segmenter(parse_model(str(folder)), CPU)
    toml = tmp_path / "model.toml"
    numbers = "[preprocessing]\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]"
    toml.write_text(f'[segmenter]\nkind = "huggingface"\npath = "model"\n{numbers}')
    assert load_segmenter(parse_model(str(toml)), CPU).classes.names == tuple(NAMES)
