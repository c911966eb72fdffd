import json
import math
from pathlib import Path

import pytest

from blda_cli.errors import BldaError
from blda_cli.files import claim, replacing, to_json, without_nan


def test_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with replacing(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_what_was_there_stays_when_writing_fails(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_errors_of_the_disk_name_the_file(tmp_path: Path) -> None:
    def fill() -> None:
        with replacing(tmp_path / "file.txt"):
            Path("/dev/full").write_text("x")

    with pytest.raises(BldaError, match=r"file\.txt cannot be written: No space left on device"):
        fill()
    (tmp_path / "plain").write_text("")
    with pytest.raises(BldaError, match="cannot be written"), replacing(tmp_path / "plain" / "file.txt"):
        pass


def test_claim_refuses_what_could_not_be_written_later(tmp_path: Path) -> None:
    claim(tmp_path / "deep" / "file.h5", overwrite=False)
    assert list((tmp_path / "deep").iterdir()) == []
    old = b"\x89HDF\r\n\x1a\n and more"
    (tmp_path / "file.h5").write_bytes(old)
    with pytest.raises(BldaError, match=r"file\.h5 exists already: --overwrite replaces it"):
        claim(tmp_path / "file.h5", overwrite=False)
    claim(tmp_path / "file.h5", overwrite=True)
    assert (tmp_path / "file.h5").read_bytes() == old
    (tmp_path / "notes.h5").write_text("another's")
    with pytest.raises(BldaError, match="is no statistics file, and --overwrite replaces no other"):
        claim(tmp_path / "notes.h5", overwrite=True)
    for place in (tmp_path, Path(), Path("/dev/null")):
        with pytest.raises(BldaError, match="give the name of a file to write"):
            claim(place, overwrite=True)
    with pytest.raises(BldaError, match=r"below cannot be written"):
        claim(tmp_path / "file.h5" / "below", overwrite=False)
    with pytest.raises(BldaError, match="cannot be written"):
        claim(Path("/proc/nothing/file.h5"), overwrite=False)


def test_json_has_null_for_numbers_it_cannot_hold() -> None:
    value = {"a": [math.nan, 1.5, (math.inf, 2)], 3: {"b": -math.inf}, "c": "NaN", "d": True}
    expected = {"a": [None, 1.5, [None, 2]], "3": {"b": None}, "c": "NaN", "d": True}
    assert without_nan(value) == expected
    assert json.loads(to_json(value), parse_constant=pytest.fail) == expected
