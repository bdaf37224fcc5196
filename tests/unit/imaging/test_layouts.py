from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from automonai.domain.dataset import Layout
from automonai.errors import DatasetError
from automonai.imaging.layouts import find_dataset, find_images
from automonai.imaging.nifti import write_nifti


def test_msd_cases_are_named_after_their_images(small_dataset: Callable) -> None:
    dataset = find_dataset(small_dataset().root)
    assert dataset.layout is Layout.MSD
    assert [case.id for case in dataset.cases] == ["case_0", "case_1", "case_2"]
    assert dataset.cases[0].images == ("imagesTr/case_0.nii.gz",)
    assert dataset.cases[0].label == "labelsTr/case_0.nii.gz"
    assert dataset.labels == {0: "background", 1: "organ", 3: "lesion"}
    assert dataset.channels == ("m0",)


def test_labels_may_be_named_the_other_way_round_and_images_listed_alone(small_dataset: Callable) -> None:
    data = small_dataset(cases=1)
    data.document["labels"] = {"background": 0, "organ": 1, "lesion": 3}
    data.document["training"] = ["./imagesTr/case_0.nii.gz"]
    data.save()
    dataset = find_dataset(data.root)
    assert dataset.labels == {0: "background", 1: "organ", 3: "lesion"}
    assert dataset.cases[0].label == "labelsTr/case_0.nii.gz"


def nnunet(root: Path, *, cases: int = 2, channels: int = 2, **fields: object) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(cases):
        (root / "labelsTr" / f"c_{number}.nii.gz").touch()
        for channel in range(channels):
            (root / "imagesTr" / f"c_{number}_{channel:04d}.nii.gz").touch()
    document = {
        "channel_names": {str(n): f"m{n}" for n in range(channels)},
        "labels": {"background": 0, "organ": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(document | fields))
    return root


def test_nnunet_channels_are_grouped_into_cases(tmp_path: Path) -> None:
    (nnunet(tmp_path) / "imagesTr" / "._c_0_0000.nii.gz").touch()
    dataset = find_dataset(tmp_path)
    assert dataset.layout is Layout.NNUNET
    assert [case.id for case in dataset.cases] == ["c_0", "c_1"]
    assert dataset.cases[1].images == ("imagesTr/c_1_0000.nii.gz", "imagesTr/c_1_0001.nii.gz")
    assert dataset.cases[1].label == "labelsTr/c_1.nii.gz"


def test_nnunet_files_without_their_counterpart_are_all_named(tmp_path: Path) -> None:
    nnunet(tmp_path, cases=4, numTraining=7)
    (tmp_path / "imagesTr/c_0_0001.nii.gz").unlink()
    (tmp_path / "labelsTr/c_1.nii.gz").unlink()
    for channel in range(2):
        (tmp_path / f"imagesTr/c_2_000{channel}.nii.gz").unlink()
    (tmp_path / "imagesTr/odd.nii.gz").touch()
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs/c_3_0000.nii.gz").touch()
    with pytest.raises(DatasetError) as caught:
        find_dataset(tmp_path)
    text = str(caught.value)
    for part in (
        "case c_0: wrong number of channels: has 0000; dataset.json names 2",
        "case c_1: its image has no label",
        "case c_2: its label has no image",
        "imagesTr/odd.nii.gz: its name must end with the channel",
        "numTraining: says 7, but imagesTr has 3 cases",
        "case c_3 is listed in both training and test",
    ):
        assert part in text
    assert len(caught.value.problems) == 6


BROKEN_FIELDS = [
    ("modality", None, "neither modality nor channel_names"),
    ("modality", "MRI", "modality: expected an object"),
    ("modality", {"1": "MRI"}, "channels must be numbered 0"),
    ("modality", {"0": 3}, "modality.0: expected a name"),
    ("labels", None, "labels: expected an object"),
    ("labels", ["a"], "labels: expected an object"),
    ("labels", {"background": 0, "whole": [1, 2]}, "region-based labels"),
    ("labels", {"1": "organ"}, "the background \\(value 0\\) is missing"),
    ("labels", {"0": "background"}, "only the background"),
    ("labels", {"0": "background", "1": "a", "2": "a"}, "the name a is used 2 times"),
    ("labels", {"0": "background", "1": "a", "01": "b"}, "value 1 is named 2 times"),
    ("labels", {"0": "background", "1": 1.5}, "labels.'1': expected a value and a name"),
    ("labels", {"background": 0, "a": -1}, "a has value -1"),
    ("labels", {"background": 0, "a": 1, "ignore": 2}, "ignore label is not supported"),
    ("training", None, "training: expected a list of cases, found null"),
    ("training", [], "no training case"),
    ("training", [3], "training.0: expected an object with image and label"),
    ("training", [{"image": 3, "label": "l.nii"}], "training.0.image: expected a path, found 3"),
    ("training", [{"image": "i.nii"}], "training.0.label: expected a path, found null"),
    ("training", [{"image": "../i.nii", "label": "l.nii"}], "not a file inside the dataset"),
    ("training", [{"image": "/i.nii", "label": "l.nii"}], "not a file inside the dataset"),
    ("training", [{"image": "a/../../i.nii", "label": "l.nii"}], "not a file inside the dataset"),
    ("training", [{"image": "i\0.nii", "label": "l.nii"}], "expected a path"),
    ("training", [{"image": "i\ud800.nii", "label": "l.nii"}], "expected a path"),
    ("training", [{"image": "i.png", "label": "l.nii"}], "no known image ending"),
    ("training", [{"image": "i.nii", "label": "l.nii"}] * 2, "case i is listed 2 times"),
    ("training", [{"image": f"{n}.nii", "label": "l.nii"} for n in "ab"], "l.nii is listed for several cases: a, b"),
    ("test", ["./imagesTr/case_1.nii.gz"], "case case_1 is listed in both training and test"),
    ("test", [{"image": "imagesTs/case_1.nii.gz"}], "case case_1 is listed in both training and test"),
    ("test", "x", "test: expected a list"),
]


@pytest.mark.parametrize(("field", "value", "message"), BROKEN_FIELDS)
def test_a_broken_field_of_dataset_json_is_named(
    small_dataset: Callable, field: str, value: object, message: str
) -> None:
    data = small_dataset()
    data.document[field] = value
    data.save()
    with pytest.raises(DatasetError, match=message):
        find_dataset(data.root)


def test_all_problems_of_dataset_json_come_at_once(small_dataset: Callable) -> None:
    data = small_dataset()
    data.document |= {"modality": 1, "labels": 2, "training": 3, "test": 4}
    data.save()
    with pytest.raises(DatasetError) as caught:
        find_dataset(data.root)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b"1" * 5000])
def test_a_dataset_json_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        find_dataset(tmp_path)


def test_a_folder_without_dataset_json_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DatasetError, match="expected a dataset in MSD or nnU-Net layout"):
            find_dataset(folder)


def images(folder: Path, *names: str, channels: int = 1) -> Path:
    shape = (3, 4, 5) if channels == 1 else (3, 4, 5, channels)
    for name in names:
        write_nifti(folder / f"{name}.nii.gz", np.ones(shape, np.int16), np.eye(4))
    return folder


def test_nnunet_channels_are_grouped_for_prediction(tmp_path: Path) -> None:
    images(tmp_path, "a_0000", "a_0001", "b_0001", "b_0000")
    found = find_images([tmp_path], layout=Layout.NNUNET, channel_count=2)
    assert [case.id for case in found] == ["a", "b"]
    assert found[1].images == tuple(str(tmp_path / f"b_000{n}.nii.gz") for n in range(2))


def test_msd_images_are_cases_of_their_own(tmp_path: Path) -> None:
    images(tmp_path, "a_0000", "a_0001")
    found = find_images([tmp_path], layout=Layout.MSD, channel_count=1)
    assert [case.id for case in found] == ["a_0000", "a_0001"]


def test_msd_channels_in_files_of_three_dimensions_are_grouped_and_those_of_four_are_not(tmp_path: Path) -> None:
    three, four = images(tmp_path / "3", "a_0000", "a_0001"), images(tmp_path / "4", "a_0000", "a_0001", channels=2)
    assert [c.id for c in find_images([three], layout=Layout.MSD, channel_count=2)] == ["a"]
    assert [c.id for c in find_images([four], layout=Layout.MSD, channel_count=2)] == ["a_0000", "a_0001"]


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, "a")
    monkeypatch.chdir(tmp_path)
    assert find_images(["a.nii.gz"], layout=Layout.MSD, channel_count=1)[0].images == (str(tmp_path / "a.nii.gz"),)


def test_every_problem_of_the_images_to_predict_is_named(tmp_path: Path) -> None:
    images(tmp_path / "one", "a_0000", "b_0000", "b_0001")
    images(tmp_path / "two", "b_0000")
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").touch()
    paths = [tmp_path / name for name in ("one", "two", "empty", "note.txt", "none.nii")]
    with pytest.raises(DatasetError) as caught:
        find_images(paths, layout=Layout.NNUNET, channel_count=2)
    text = str(caught.value)
    for part in (
        "case a: has the channels 0000; expected 2",
        "case b: comes more than once",
        "empty: has no image",
        "note.txt: unknown file ending",
        "none.nii: no such file",
    ):
        assert part in text


def test_naming_no_image_at_all_is_refused() -> None:
    with pytest.raises(DatasetError, match="no image was given"):
        find_images([], layout=Layout.MSD, channel_count=1)
