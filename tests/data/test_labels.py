from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from blda_cli.core import IGNORE_INDEX as NONE
from blda_cli.data.classes import ClassSet, class_set, grouped, preset
from blda_cli.data.encodings import LabelEncoding, custom_encoding
from blda_cli.data.images import find_images
from blda_cli.data.label_files import write_label_png
from blda_cli.data.labels import LabelReader, label_reader
from blda_cli.data.loader import load_batches
from blda_cli.errors import BldaError

WritePng = Callable[..., None]

CITYSCAPES = preset("cityscapes")
CAMVID = preset("camvid")
TRAIN_IDS = np.array([[0, 1, 10, 255], [13, 13, 18, 8]], np.uint8)
LABEL_IDS = np.array([[7, 8, 23, 3], [26, 26, 33, 21]], np.uint8)
SCENE = np.array([[0, 1, 10, NONE], [13, 13, 18, 8]])
GROUPS = {"flat": ["road", "sidewalk"], "vehicle": ["car", "truck", "bicycle"], "sky": ["sky"]}


class Folders:
    """Two folders of images and labels, filled pair by pair."""

    def __init__(self, root: Path) -> None:
        self.images, self.labels = root / "images", root / "labels"
        self.images.mkdir()
        self.labels.mkdir()

    def add(self, image: str, label: str, values: np.ndarray | Image.Image) -> "Folders":
        picture = Image.fromarray(values) if isinstance(values, np.ndarray) else values
        Image.new("RGB", picture.size).save(self.images / image)
        picture.save(self.labels / label)
        return self

    def reader(
        self,
        classes: ClassSet = CITYSCAPES,
        encoding: str | LabelEncoding = "auto",
        groups: Mapping[str, Sequence[str]] | None = None,
        ignore: int | None = None,
    ) -> LabelReader:
        return label_reader(
            find_images(self.images), self.labels, classes, encoding=encoding, groups=groups, ignore=ignore
        )

    def read(self, *args: object, **kwargs: object) -> np.ndarray:
        return self.reader(*args, **kwargs)(find_images(self.images)[0])  # type: ignore[arg-type]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def with_palette(values: np.ndarray, entries: Mapping[int, tuple[int, int, int]]) -> Image.Image:
    palette = np.zeros((256, 3), np.uint8)
    for index, color in entries.items():
        palette[index] = color
    image = Image.fromarray(values)
    image.putpalette(palette.tobytes())
    return image


def painted(scene: np.ndarray, classes: ClassSet) -> np.ndarray:
    colors: np.ndarray = np.array([*classes.palette, (0, 0, 0)], np.uint8)[np.minimum(scene, len(classes))]
    return colors


class TestCityscapes:
    @pytest.mark.parametrize("encoding", ["auto", "cityscapes", "cityscapes-ids", "gta5"])
    def test_label_ids(self, folders: Folders, encoding: str) -> None:
        folders.add("a_leftImg8bit.png", "a_gtFine_labelIds.png", LABEL_IDS)
        reader = folders.reader(encoding=encoding)
        labels = reader(find_images(folders.images)[0])
        np.testing.assert_array_equal(labels, SCENE)
        assert labels.dtype == np.int16
        assert reader.ignored_share == 1 / 8
        assert reader.unmatched == ()

    @pytest.mark.parametrize("encoding", ["auto", "acdc", "cityscapes-train-ids", "ids"])
    @pytest.mark.parametrize("name", ["a_gt_labelTrainIds.png", "a.png"])
    def test_train_ids(self, folders: Folders, encoding: str, name: str) -> None:
        folders.add("a_rgb_anon.png", name, TRAIN_IDS)
        np.testing.assert_array_equal(folders.read(encoding=encoding), SCENE)

    @pytest.mark.parametrize("encoding", ["auto", "cityscapes", "dark-zurich"])
    def test_label_ids_of_unmarked_files_are_told_by_content(self, folders: Folders, encoding: str) -> None:
        folders.add("a.png", "a.png", LABEL_IDS)
        assert folders.reader(encoding=encoding).encoding == "cityscapes-ids"

    def test_train_ids_named_label_ids_are_refused(self, folders: Folders) -> None:
        folders.add("a_leftImg8bit.png", "a_gtFine_labelIds.png", TRAIN_IDS)
        with pytest.raises(BldaError, match=r"read as Cityscapes label ids but holds train ids.*cityscapes-train-ids"):
            folders.reader()

    @pytest.mark.parametrize("encoding", ["ids", "cityscapes-train-ids", "bdd100k"])
    def test_label_ids_read_as_train_ids_are_refused(self, folders: Folders, encoding: str) -> None:
        folders.add("a.png", "a.png", LABEL_IDS)
        with pytest.raises(BldaError, match=r"a\.png holds the values 21, 23, 26, 33.*cityscapes-ids"):
            folders.read(encoding=encoding)

    def test_explicit_beats_the_name_where_the_contents_agree(self, folders: Folders) -> None:
        folders.add("a_leftImg8bit.png", "a_gtFine_labelIds.png", TRAIN_IDS)
        np.testing.assert_array_equal(folders.read(encoding="cityscapes-train-ids"), SCENE)

    def test_the_files_of_the_encoding_are_chosen_among_several(self, folders: Folders) -> None:
        folders.add("a_leftImg8bit.png", "a_gtFine_labelTrainIds.png", TRAIN_IDS)
        folders.add("a_leftImg8bit.png", "a_gtFine_color.png", painted(SCENE, CITYSCAPES))
        folders.add("a_leftImg8bit.png", "a_gtFine_labelIds.png", LABEL_IDS)
        folders.add("a_leftImg8bit.png", "a_gtFine_instanceIds.png", LABEL_IDS.astype(np.uint16) * 1000)
        for encoding in ("auto", "cityscapes-ids", "cityscapes-train-ids"):
            np.testing.assert_array_equal(folders.read(encoding=encoding), SCENE)

    def test_only_colours_there(self, folders: Folders) -> None:
        folders.add("a_leftImg8bit.png", "a_gtFine_color.png", painted(SCENE, CITYSCAPES))
        with pytest.raises(BldaError, match=r"a_gtFine_color\.png is not a file of class ids.*cityscapes-colors"):
            folders.reader()
        np.testing.assert_array_equal(folders.read(encoding="cityscapes-colors"), SCENE)

    def test_a_road_alone_may_be_read_when_said_so(self, folders: Folders) -> None:
        folders.add("a.png", "a_labelIds.png", np.full((2, 2), 7, np.uint8))
        np.testing.assert_array_equal(folders.read(), np.zeros((2, 2)))

    def test_one_wrong_file_among_many_is_found_when_read(self, folders: Folders) -> None:
        for index in range(9):
            folders.add(f"{index}.png", f"{index}.png", TRAIN_IDS)
        folders.add("4.png", "4.png", LABEL_IDS)
        reader = folders.reader()
        with pytest.raises(BldaError, match=r"4\.png holds the values 21"):
            [reader(image) for image in find_images(folders.images)]


class TestOtherDataSets:
    def test_gta5_palette_and_colours(self, folders: Folders) -> None:
        ids = dict(zip(CITYSCAPES.ids, CITYSCAPES.palette, strict=True))
        values = np.where(LABEL_IDS == 3, 34, LABEL_IDS).astype(np.uint8)
        folders.add("00001.png", "00001.png", with_palette(values, ids))
        np.testing.assert_array_equal(folders.read(encoding="gta5"), SCENE)
        assert folders.reader().encoding == "cityscapes-ids"
        np.testing.assert_array_equal(folders.read(), SCENE)
        folders.add("00001.png", "00001.png", painted(SCENE, CITYSCAPES))
        np.testing.assert_array_equal(folders.read(encoding="gta5"), SCENE)

    def test_a_palette_tells_train_ids(self, folders: Folders) -> None:
        values = np.array([[0, 1, 10]], np.uint8)
        folders.add("a.png", "a.png", with_palette(values, dict(enumerate(CITYSCAPES.palette))))
        np.testing.assert_array_equal(folders.read(encoding="cityscapes"), values)

    @pytest.mark.parametrize("encoding", ["auto", "synthia"])
    def test_synthia(self, folders: Folders, write_png: WritePng, encoding: str) -> None:
        values = np.zeros((1, 6, 3), np.int64)
        values[0, :, 0] = [3, 8, 1, 13, 0, 21]
        values[0, :, 1] = 513
        folders.add("a.png", "a.png", np.zeros((1, 6), np.uint8))
        write_png(folders.labels / "a.png", values, color_type=2, bits=16)
        np.testing.assert_array_equal(folders.read(encoding=encoding), [[0, 13, 10, NONE, NONE, 3]])
        synthia = class_set("synthia")
        assert folders.read(synthia, encoding)[0, 1] == synthia.names.index("car")

    def test_bdd100k_masks_and_colour_maps(self, folders: Folders) -> None:
        folders.add("x.jpg", "x_train_id.png", TRAIN_IDS)
        np.testing.assert_array_equal(folders.read(encoding="bdd100k"), SCENE)
        np.testing.assert_array_equal(folders.read(), SCENE)
        (folders.labels / "x_train_id.png").unlink()
        folders.add("x.jpg", "x.png", painted(SCENE, CITYSCAPES))
        for encoding in ("bdd100k", "auto"):
            with pytest.raises(BldaError, match=r"x\.png is a colour picture, not a mask.* folder of masks.*colors"):
                folders.reader(encoding=encoding)
        np.testing.assert_array_equal(folders.read(encoding="colors"), SCENE)

    def test_mapillary(self, folders: Folders) -> None:
        mapillary = class_set("mapillary")
        values = np.array([[13, 64, 65, 0]], np.uint8)
        folders.add("x.jpg", "x.png", with_palette(values, dict(enumerate(mapillary.palette))))
        for encoding in ("auto", "mapillary"):
            np.testing.assert_array_equal(folders.read(mapillary, encoding), [[13, 64, NONE, 0]])

    def test_idd_takes_the_file_that_has_the_segmenters_classes(self, folders: Folders) -> None:
        folders.add("9_leftImg8bit.png", "9_gtFine_labellevel3Ids.png", np.array([[0, 9, 25, 8]], np.uint8))
        folders.add("9_leftImg8bit.png", "9_gtFine_labelcsTrainIds.png", np.array([[0, 13, 10, 255]], np.uint8))
        for encoding in ("auto", "idd"):
            np.testing.assert_array_equal(folders.read(class_set("idd"), encoding), [[0, 9, 25, 8]])
            np.testing.assert_array_equal(folders.read(CITYSCAPES, encoding), [[0, 13, 10, NONE]])

    def test_ade20k(self, folders: Folders) -> None:
        ade, values = class_set("ade20k"), np.array([[0, 1, 149]], np.uint8)
        folders.add("ADE_val_00000001.jpg", "ADE_val_00000001.png", values)
        np.testing.assert_array_equal(folders.read(ade), [[NONE, 0, 148]])
        np.testing.assert_array_equal(folders.read(ade, "ids"), values)

    def test_ade20k_by_content_asks_where_it_cannot_tell(self, folders: Folders) -> None:
        ade = class_set("ade20k")
        folders.add("a.jpg", "a.png", np.array([[0, 1, 149]], np.uint8))
        with pytest.raises(BldaError, match=r"could be ids or ade20k"):
            folders.reader(ade)
        folders.add("a.jpg", "a.png", np.array([[0, 1, 150]], np.uint8))
        np.testing.assert_array_equal(folders.read(ade), [[NONE, 0, 149]])
        with pytest.raises(BldaError, match="ADE20K counts from 1"):
            folders.read(ade, "ids")
        folders.add("a.jpg", "a.png", np.array([[0, 1, 255]], np.uint8))
        np.testing.assert_array_equal(folders.read(ade), [[0, 1, NONE]])

    def test_camvid_ids_and_colours(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[0, 10, 11]], np.uint8))
        for encoding in ("auto", "camvid"):
            np.testing.assert_array_equal(folders.read(CAMVID, encoding), [[0, 10, NONE]])
        (folders.labels / "a.png").unlink()
        colors = np.array([[(128, 128, 128), (192, 0, 192), (0, 0, 0), (128, 0, 192)]], np.uint8)
        folders.add("a.png", "a_L.png", colors)
        np.testing.assert_array_equal(folders.read(CAMVID), [[0, 10, NONE, 3]])

    def test_voc(self, folders: Folders) -> None:
        voc = class_set("voc")
        values = np.array([[0, 15, 255, 20]], np.uint8)
        folders.add("a.jpg", "a.png", with_palette(values, dict(enumerate(voc.palette))))
        np.testing.assert_array_equal(folders.read(voc), [[0, 15, NONE, 20]])
        reader = folders.reader()  # another data set's classes: those of the same name are scored
        assert reader.encoding == "voc"
        assert "sheep" in reader.unmatched
        np.testing.assert_array_equal(reader(find_images(folders.images)[0]), [[NONE, 11, NONE, NONE]])


class TestIdsAndMappings:
    def test_a_value_outside_the_classes_is_named(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[0, 2, 9]], np.uint8))
        with pytest.raises(BldaError, match=r"a\.png holds the value 9, .* ids \(0\.\.2\) .*--ignore-label 9"):
            folders.read(class_set(["a", "b", "c"]), "ids")
        with pytest.raises(BldaError, match=r"values 0, 2, 9 .* no class ids of 3 classes"):
            folders.read(class_set(["a", "b", "c"]))
        np.testing.assert_array_equal(folders.read(class_set(["a", "b", "c"]), ignore=9), [[0, 2, NONE]])

    def test_an_ignored_value_within_the_classes(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[0, 2, 255]], np.uint8))
        np.testing.assert_array_equal(folders.read(class_set(["a", "b", "c"]), "ids", ignore=0), [[NONE, 2, NONE]])

    def test_a_mapping_of_values_ignores_the_rest(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[7, 8, 9, 77]], np.uint16) * 100)
        encoding = custom_encoding({"700": "road", "800": "Side_Walk"})
        reader = folders.reader(class_set(["sky", "side walk", "road"]), encoding)
        np.testing.assert_array_equal(reader(find_images(folders.images)[0]), [[2, 1, NONE, NONE]])
        assert reader.ignored_share == 0.5

    def test_a_mapping_of_colours(self, folders: Folders) -> None:
        encoding = custom_encoding({"128,64,128": "road", "0, 0, 1": "sky"})
        classes = class_set(["sky", "road"])
        folders.add("a.png", "a.png", np.array([[(0, 0, 1), (128, 64, 128), (1, 0, 0)]], np.uint8))
        np.testing.assert_array_equal(folders.read(classes, encoding), [[0, 1, NONE]])
        paletted = with_palette(np.array([[4, 5]], np.uint8), {4: (128, 64, 128), 5: (0, 0, 1)})
        folders.add("a.png", "a.png", paletted)
        np.testing.assert_array_equal(folders.read(classes, encoding), [[1, 0]])
        folders.add("a.png", "a.png", np.zeros((1, 2), np.uint8))
        with pytest.raises(BldaError, match=r"a\.png holds single values, not colours"):
            folders.read(classes, encoding)

    @pytest.mark.parametrize(
        "mapping", [{}, {"road": "7"}, {"1,2": "road"}, {"7": "road", "1,2,3": "sky"}, {"-1": "a"}]
    )
    def test_bad_mappings(self, mapping: dict[str, str]) -> None:
        with pytest.raises(BldaError, match="labels: "):
            custom_encoding(mapping)

    def test_a_mapping_to_no_class_suggests_one(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[7, 8]], np.uint8))
        with pytest.raises(BldaError, match=r"names 'raod'.*nearest is 'road'"):
            folders.reader(encoding=custom_encoding({"7": "raod", "8": "sky"}))

    def test_nothing_has_a_class(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[40, 41]], np.uint8))
        with pytest.raises(BldaError, match=r"no pixel of .*a\.png has a class under .* mapping \(it holds 40, 41\)"):
            folders.reader(encoding=custom_encoding({"7": "road"}))

    def test_unnamed_classes_go_by_their_order(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", LABEL_IDS)
        classes = class_set([f"LABEL_{index}" for index in range(19)])
        np.testing.assert_array_equal(folders.read(classes), SCENE)

    def test_labels_without_any_class_are_read_and_counted(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.full((2, 2), 255, np.uint8))
        reader = folders.reader()
        assert (reader(find_images(folders.images)[0]) == NONE).all()
        assert reader.ignored_share == 1

    def test_an_unknown_encoding_lists_the_known(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", LABEL_IDS)
        with pytest.raises(
            BldaError, match=r"no label encoding 'citiscapes'; do you mean cityscapes\? \(one of auto, "
        ):
            folders.reader(encoding="citiscapes")

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(count=st.integers(2, 300), seed=st.integers(0, 2**32))
    def test_our_own_predictions_are_read_as_they_are(self, tmp_path: Path, count: int, seed: int) -> None:
        classes = class_set([f"thing {chr(97 + index % 26)} {index}x" for index in range(count)])
        labels = np.random.default_rng(seed).integers(NONE, count, (5, 4))
        (tmp_path / "i").mkdir(exist_ok=True)
        Image.new("RGB", (4, 5)).save(tmp_path / "i" / "a.png")
        write_label_png(tmp_path / "l" / "a.png", labels, classes)
        images = find_images(tmp_path / "i")
        read = label_reader(images, tmp_path / "l", classes)(images[0])
        np.testing.assert_array_equal(read, labels)
        assert read.dtype == np.int16

    def test_our_own_predictions_of_one_class_and_none_are_no_masks(self, folders: Folders) -> None:
        classes = class_set(["ground", "crop"])
        ids = np.array([[0, NONE], [0, 0]])
        folders.add("a.png", "a.png", np.zeros((2, 2), np.uint8))
        write_label_png(folders.labels / "a.png", ids, classes)
        np.testing.assert_array_equal(folders.read(classes), ids)

    def test_of_more_than_255_classes_255_is_one(self, folders: Folders) -> None:
        classes = class_set([f"class {index}" for index in range(300)])
        folders.add("a.png", "a.png", np.array([[255, 299, 65535, 0]], np.uint16))
        for encoding in ("auto", "ids"):
            np.testing.assert_array_equal(folders.read(classes, encoding), [[255, 299, NONE, 0]])
        table = folders.labels / "table.csv"
        table.write_text("a,255\n")
        images = find_images(folders.images)
        assert label_reader(images, table, classes)(images[0]) == 255
        table.write_text("a,65535\n")
        assert label_reader(images, table, classes)(images[0]) == NONE


THREE = class_set(["red", "green", "blue"])


class TestWhatFitsByAccident:
    """Values that could be read in more than one way are asked about."""

    @pytest.mark.parametrize("classes", [class_set(["background", "crack"]), THREE])
    def test_masks_of_0_and_255(self, folders: Folders, classes: ClassSet) -> None:
        folders.add("a.png", "a.png", np.array([[0, 255, 255]], np.uint8))
        with pytest.raises(BldaError, match=r"hold 0 and 255 alone: give the label encoding mask if 255 .* or ids"):
            folders.reader(classes)
        np.testing.assert_array_equal(folders.read(classes, "ids"), [[0, NONE, NONE]])
        if len(classes) == 2:
            np.testing.assert_array_equal(folders.read(classes, "mask"), [[0, 1, 1]])
        else:
            with pytest.raises(BldaError, match="mask is of two classes, the model has 3"):
                folders.read(classes, "mask")

    def test_a_mask_of_one_bit_is_of_ids(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", Image.fromarray(np.array([[False, True]])))
        np.testing.assert_array_equal(folders.read(class_set(["background", "crack"])), [[0, 1]])

    def test_ids_from_1(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[0, 1, 2, 3]], np.uint8))
        with pytest.raises(BldaError, match=r"ids-from-1 if they count from 1 and 0 has no class, or --ignore-label 3"):
            folders.reader(THREE)
        np.testing.assert_array_equal(folders.read(THREE, "ids-from-1"), [[NONE, 0, 1, 2]])
        np.testing.assert_array_equal(folders.read(THREE, ignore=0), [[NONE, 0, 1, 2]])
        np.testing.assert_array_equal(folders.read(THREE, ignore=3), [[0, 1, 2, NONE]])

    def test_ids_from_1_of_which_the_last_is_absent(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[0, 1, 2]], np.uint8))
        with pytest.raises(
            BldaError, match=r"--ignore-label 0 leaves no label of class 0, 'red': .* ids-from-1 .* ids"
        ):
            folders.reader(THREE, ignore=0)
        np.testing.assert_array_equal(folders.read(THREE, "ids-from-1"), [[NONE, 0, 1]])

    def test_many_ids_from_1(self, folders: Folders) -> None:
        classes = class_set([f"thing {index}" for index in range(300)])
        folders.add("a.png", "a.png", np.array([[0, 1, 255, 300, 65535]], np.uint16))
        np.testing.assert_array_equal(folders.read(classes, "ids-from-1"), [[NONE, 0, 254, 299, NONE]])

    def test_label_ids_that_are_train_ids_too(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[7, 8, 11, 17]], np.uint8))
        with pytest.raises(BldaError, match="could be ids or cityscapes-ids or cityscapes-train-ids:"):
            folders.reader()
        np.testing.assert_array_equal(folders.read(encoding="cityscapes-ids"), [[0, 1, 2, 5]])

    def test_a_folder_called_after_a_data_set(self, tmp_path: Path) -> None:
        (tmp_path / "CamVid").mkdir()
        folders = Folders(tmp_path / "CamVid")
        folders.add("a.png", "a.png", np.array([[0, 3, 8]], np.uint8))
        with pytest.raises(BldaError, match=r"called after a data set .* camvid or ids"):
            folders.reader()
        np.testing.assert_array_equal(folders.read(encoding="cityscapes-train-ids"), [[0, 3, 8]])
        np.testing.assert_array_equal(folders.read(CAMVID), [[0, 3, 8]])

    def test_palettes_that_differ_are_no_ids(self, folders: Folders) -> None:
        red, green = (255, 0, 0), (0, 255, 0)
        folders.add("a.png", "a.png", with_palette(np.array([[0, 1]], np.uint8), {0: red, 1: green}))
        folders.add("b.png", "b.png", with_palette(np.array([[0, 1]], np.uint8), {0: green, 1: red}))
        with pytest.raises(
            BldaError, match=r"value 0 is of the colour 255,0,0 in .* 0,255,0 in .*own palette, not ids"
        ):
            folders.reader(THREE)
        np.testing.assert_array_equal(folders.read(THREE, "ids"), [[0, 1]])
        mapping = custom_encoding({"255,0,0": "red", "0,255,0": "green"})
        reader = folders.reader(THREE, mapping)
        second = find_images(folders.images)[1]
        np.testing.assert_array_equal(reader(second), [[1, 0]])

    def test_a_palette_of_the_classes_colours_in_another_order(self, folders: Folders) -> None:
        colors = dict(enumerate([CITYSCAPES.palette[13], CITYSCAPES.palette[0]]))
        folders.add("a.png", "a.png", with_palette(np.array([[0, 1]], np.uint8), colors))
        with pytest.raises(BldaError, match=r"value 0 in .* has the colour of 'car' in its palette"):
            folders.reader()
        np.testing.assert_array_equal(folders.read(encoding="colors"), [[13, 0]])

    def test_a_mapping_with_a_slip_is_not_matched_by_its_order(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[0, 1, 2]], np.uint8))
        mapping = custom_encoding({"0": "red", "1": "gren", "2": "blue"})
        with pytest.raises(BldaError, match=r"names 'gren'.*nearest is 'green'.*they are red, green, blue"):
            folders.reader(THREE, mapping)

    def test_colours_that_are_mostly_unknown_are_refused(self, folders: Folders) -> None:
        classes = class_set(["road", "rest"], [(255, 0, 255), (255, 0, 0)])
        colors = np.full((2, 3, 3), (0, 0, 9), np.uint8)
        colors[0, 0] = (255, 0, 0)
        folders.add("a.png", "a.png", colors)
        with pytest.raises(BldaError, match=r"most pixels .* colours .* colors does not have, as 0,0,9"):
            folders.reader(classes, "colors")
        colors[:, 1:] = (255, 0, 255)
        folders.add("a.png", "a.png", colors)
        np.testing.assert_array_equal(folders.read(classes, "colors"), [[1, 0, 0], [NONE, 0, 0]])

    def test_grey_pictures_of_three_channels(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[0, 5, 10]], np.uint8)[..., None].repeat(3, axis=-1))
        np.testing.assert_array_equal(folders.read(CAMVID, "camvid"), [[0, 5, 10]])
        folders.add("a.png", "a.png", np.array([[0, 128, 128]], np.uint8)[..., None].repeat(3, axis=-1))
        np.testing.assert_array_equal(folders.read(CAMVID, "camvid"), [[NONE, 0, 0]])

    def test_ids_that_are_in_alpha_alone(self, folders: Folders) -> None:
        ids = np.array([[0, 1, 2]], np.uint8)
        for color in (np.zeros((1, 3, 3), np.uint8), np.full((1, 3, 3), 200, np.uint8)):
            folders.add("a.png", "a.png", np.concatenate([color, ids[..., None]], axis=-1))
            np.testing.assert_array_equal(folders.read(THREE), ids)
        folders.add("a.png", "a.png", np.stack([ids * 0, ids], axis=-1))
        np.testing.assert_array_equal(folders.read(THREE), ids)
        folders.add("a.png", "a.png", np.stack([ids, ids, ids, 255 - 100 * ids], axis=-1))
        np.testing.assert_array_equal(folders.read(THREE), ids)

    def test_a_value_to_ignore_is_counted_and_no_colour(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", np.array([[0, 1, 2, 2, 255]], np.uint8))
        reader = folders.reader(THREE, ignore=2)
        reader(find_images(folders.images)[0])
        assert reader.left_out_share == 2 / 5
        assert reader.ignored_share == 3 / 5
        folders.add("a.png", "a.png", painted(np.array([[0, 1]]), THREE))
        with pytest.raises(BldaError, match="--ignore-label 2 is a pixel value, but the label encoding colors"):
            folders.reader(THREE, "colors", ignore=2)


class TestImagesThatExifTurns:
    SCENE = np.arange(6, dtype=np.uint8).reshape(2, 3)

    def pair(self, root: Path, number: int, stored: np.ndarray, label: np.ndarray) -> Callable[..., np.ndarray]:
        (root / "images").mkdir(exist_ok=True)
        (root / "labels").mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = number
        Image.fromarray(np.stack([stored * 40] * 3, axis=-1)).save(root / "images" / "a.png", exif=exif)
        Image.fromarray(label).save(root / "labels" / "a.png")
        images = find_images(root / "images")
        classes = class_set([f"thing {index}" for index in range(6)])

        def read(orientation: str | None = None) -> np.ndarray:
            reader = label_reader(images, root / "labels", classes, orientation=orientation)  # type: ignore[arg-type]
            labels = reader(images[0])
            shown = images[0].read()[..., 0] // 40
            if orientation != "as it is":
                np.testing.assert_array_equal(labels, shown)
            return labels

        return read

    @pytest.mark.parametrize("number", range(1, 9))
    def test_labels_as_stored_are_turned_with_their_image(self, tmp_path: Path, number: int) -> None:
        read = self.pair(tmp_path, number, self.SCENE, self.SCENE)
        if number in (2, 3, 4):
            with pytest.raises(BldaError, match=rf"orientation {number}\).* orientation = \"shown\" or \"stored\""):
                read()
        else:
            read()  # the sizes tell
        read("stored")

    @pytest.mark.parametrize("number", range(2, 9))
    def test_labels_as_shown_stay(self, tmp_path: Path, number: int) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = number
        Image.fromarray(self.SCENE).save(tmp_path / "turned.png", exif=exif)
        with Image.open(tmp_path / "turned.png") as image:
            shown = np.asarray(ImageOps.exif_transpose(image))
        read = self.pair(tmp_path, number, self.SCENE, shown)
        if number not in (2, 3, 4):
            read()
        read("shown")

    @pytest.mark.parametrize("number", [3, 6])
    def test_square_images_are_asked_about(self, tmp_path: Path, number: int) -> None:
        square = self.SCENE[:, :2].copy()
        with pytest.raises(BldaError, match="nothing says whether its label"):
            self.pair(tmp_path, number, square, square)()

    def test_a_label_that_says_itself_how_it_is_turned(self, tmp_path: Path) -> None:
        read = self.pair(tmp_path, 3, self.SCENE, self.SCENE)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 3
        Image.fromarray(self.SCENE).save(tmp_path / "labels" / "a.png", exif=exif)
        read()


class TestGroups:
    def test_labels_of_the_ungrouped_classes(self, folders: Folders) -> None:
        folders.add("a.png", "a_labelIds.png", LABEL_IDS)
        classes = grouped(CITYSCAPES, GROUPS)
        reader = folders.reader(classes, groups=GROUPS)
        labels = reader(find_images(folders.images)[0])
        np.testing.assert_array_equal(labels, [[0, 0, 2, NONE], [1, 1, 1, NONE]])
        assert "vegetation" in reader.unmatched

    def test_a_name_that_is_a_group_and_another_s_member(self, folders: Folders) -> None:
        groups = {"pole": ["traffic sign"], "sign": ["pole"]}
        folders.add("a.png", "a_labelTrainIds.png", np.array([[5, 7]], np.uint8))
        np.testing.assert_array_equal(folders.read(grouped(CITYSCAPES, groups), groups=groups), [[1, 0]])


class TestFiles:
    def test_another_size_names_both(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", TRAIN_IDS)
        Image.new("RGB", (9, 5)).save(folders.images / "a.png")
        with pytest.raises(BldaError, match=r"labels/a\.png is 4x2 but its image .*images/a\.png is 9x5"):
            folders.read()

    def test_a_turned_photo_and_its_label(self, folders: Folders) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        folders.add("a.jpg", "a.png", TRAIN_IDS.T.copy())
        Image.new("RGB", (4, 2)).save(folders.images / "a.jpg", exif=exif)
        np.testing.assert_array_equal(folders.read(), SCENE.T)

    def test_a_torn_label_is_skipped_where_that_is_asked(self, folders: Folders) -> None:
        for name in ("a", "b", "c"):
            folders.add(f"{name}.png", f"{name}.png", TRAIN_IDS)
        (folders.labels / "b.png").write_bytes(b"torn")
        images = find_images(folders.images)
        skipped: list[object] = []
        batches = list(
            load_batches(
                images,
                lambda file: np.zeros(1),
                folders.reader(),
                batch_size=3,
                on_error="skip",
                skipped=skipped,  # type: ignore[arg-type]
            )
        )
        assert [[file.key for file in batch.files] for batch in batches] == [["a", "c"]]
        assert "b.png is not an image" in str(skipped[0])

    def test_every_label_torn(self, folders: Folders) -> None:
        folders.add("a.png", "a.png", TRAIN_IDS)
        (folders.labels / "a.png").write_bytes(b"torn")
        with pytest.raises(BldaError, match=r"a\.png is not an image"):
            folders.reader()


class TestClassifiers:
    def test_a_table_of_ids_and_names(self, folders: Folders) -> None:
        for name in ("a", "b", "c", "d"):
            folders.add(f"{name}.png", "unused.png", TRAIN_IDS)
        table = folders.labels / "classes.csv"
        table.write_text("image,class\na,13\nb.png,Traffic_Light\nc,255\nd,road\n")
        images = find_images(folders.images)
        reader = label_reader(images, table, CITYSCAPES)
        assert [int(reader(image)) for image in images] == [13, 6, NONE, 0]
        assert reader.ignored_share == 0.25
        assert reader(images[0]).shape == ()
        batches = list(load_batches(images, lambda file: np.zeros(3), reader, batch_size=4))
        assert batches[0].labels is not None
        assert batches[0].labels.shape == (4,)
        table.with_suffix(".txt").write_text("a,person\nb,bicycle\nc,1\nd,0\n")
        classes = grouped(CITYSCAPES, {"rest": ["sky"], "people": ["person", "rider"]})
        with pytest.raises(BldaError, match=r"classes\.txt: 'bicycle', the class of b, is none of the 2 classes"):
            label_reader(images, table.with_suffix(".txt"), classes, groups={"people": ["person", "rider"]})

    def test_an_image_without_a_line(self, folders: Folders) -> None:
        folders.add("a.png", "unused.png", TRAIN_IDS)
        (folders.labels / "t.csv").write_text("b,1\n")
        with pytest.raises(BldaError, match=r"no label found for .*a\.png in .*t\.csv: add a line a,CLASS"):
            label_reader(find_images(folders.images), folders.labels / "t.csv", CITYSCAPES)


class TestRealFrames:
    def test_dusk(self, shared_data: Path) -> None:
        dusk = shared_data / "camvid" / "dusk"
        images = find_images(dusk / "images")[:8]
        reader = label_reader(images, dusk / "labels", CAMVID)
        assert reader.encoding == "camvid"
        values = [np.asarray(Image.open(dusk / "labels" / f"{image.key}.png")) for image in images]
        for image, raw in zip(images, values, strict=True):
            np.testing.assert_array_equal(reader(image), np.where(raw == 11, NONE, raw.astype(int)))
        assert reader.ignored_share == pytest.approx(np.mean(np.stack(values) == 11))

    def test_ids_with_a_declared_ignore_agree(self, shared_data: Path) -> None:
        day = shared_data / "camvid" / "day"
        images = find_images(day / "images")[:4]
        named = label_reader(images, day / "labels", CAMVID)
        plain = label_reader(images, day / "labels", class_set([f"{i}" for i in range(11)]), encoding="ids", ignore=11)
        for image in images:
            np.testing.assert_array_equal(named(image), plain(image))
        with pytest.raises(BldaError, match="holds the value 11"):
            label_reader(images, day / "labels", CAMVID, encoding="ids")(images[0])


def test_each_encoding_that_fits_is_named_once(folders: Folders) -> None:
    groups = {
        **{name: [name] for name in ("sky", "pole", "road", "fence")},
        "building": ["building", "wall"],
        "pavement": ["sidewalk"],
        "tree": ["vegetation", "terrain"],
        "sign": ["traffic light", "traffic sign"],
        "car": ["car", "truck", "bus", "train"],
        "pedestrian": ["person"],
        "bicyclist": ["rider", "motorcycle", "bicycle"],
    }
    folders.add("a.png", "a.png", np.arange(12, dtype=np.uint8).reshape(3, 4))
    with pytest.raises(BldaError, match="could be") as caught:
        folders.read(CAMVID, groups={name: groups[name] for name in CAMVID.names})
    named = str(caught.value).split("could be ")[1].split(":")[0].split(" or ")
    assert sorted(named) == ["camvid", "cityscapes-train-ids"]
