"""Finding a dataset's cases (MSD or nnU-Net layout), and the images to predict; no image is read here."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeGuard

from automonai.domain.dataset import Case, Dataset, Layout
from automonai.errors import DatasetError
from automonai.imaging.reading import ENDINGS, channel_count, file_ending, stem

_CHANNEL_SUFFIX = re.compile(r"(.+)_(\d{4})")
_MAX_LABEL_VALUE = 65535
_MAX_CLASSES = 255  # class indices are stored as uint8, of which 255 marks an unknown value


@dataclass(frozen=True)
class Survey:
    """What a dataset.json says.

    Attributes:
        dataset: The cases that are listed soundly; None if there is none, or channels or labels are not understood.
        problems: One line per fault.
    """

    dataset: Dataset | None
    problems: tuple[str, ...]


def find_dataset(root: str | Path) -> Dataset:
    """Return the dataset in a folder, its layout told by its dataset.json.

    MSD: `training` lists image and label of each case. nnU-Net: `channel_names` and `file_ending`, the files in
    imagesTr and labelsTr. Whether the files can be read is not looked at: `check_dataset` does that.

    Raises:
        DatasetError: Naming everything that is wrong with dataset.json, and every file without its counterpart.
    """
    survey = survey_dataset(root)
    if survey.problems or survey.dataset is None:
        raise DatasetError(survey.problems)
    return survey.dataset


def survey_dataset(root: str | Path) -> Survey:
    """Return what can be made out of a folder's dataset.json, sound or not.

    Raises:
        DatasetError: If it cannot be read at all.
    """
    folder = Path(root)
    document = _read_document(folder)
    problems: list[str] = []
    channels = _channels(document, problems)
    labels = _labels(document, problems)
    understood = not problems
    is_nnunet = "file_ending" in document or ("training" not in document and "channel_names" in document)
    find_cases = _nnunet_cases if is_nnunet else _msd_cases
    cases = {case.id: case for case in find_cases(folder, document, len(channels), problems)}
    if not cases and not problems:
        problems.append("no training case")
    name = document.get("name")
    dataset = Dataset(
        name=name if _is_text(name) else folder.resolve().name,
        root=str(folder.resolve()),
        layout=Layout.NNUNET if is_nnunet else Layout.MSD,
        channels=channels,
        labels=labels,
        cases=tuple(cases.values()),
    )
    return Survey(
        dataset=dataset if understood and cases else None,
        problems=tuple(f"{folder / 'dataset.json'}: {_printable(problem)}" for problem in problems),
    )


def find_images(paths: Iterable[str | Path], *, layout: Layout, channel_count: int) -> list[Case]:
    """Return the cases to predict, ordered by name, their image paths absolute.

    Args:
        paths: Files, or folders whose images are all taken.
        layout: Of the dataset that was trained on: nnU-Net's CASE_0000, CASE_0001 are the channels of CASE; so they
            are in MSD layout where there are several channels and the files are three-dimensional. Else each file is
            a case.
        channel_count: Of the dataset that was trained on.

    Raises:
        DatasetError: Naming every path without an image, every case that comes twice and every channel that is
            missing.
    """
    problems: list[str] = []
    files = [file for path in paths for file in _image_files(Path(path), problems)]
    groups: dict[str, list[tuple[int | None, Path]]] = defaultdict(list)
    for file in files:
        name, channel = _case_and_channel(file, layout, channel_count, problems)
        groups[name].append((channel, file))
    for name, members in sorted(groups.items()):
        problems.extend(_channel_problems(name, members, channel_count))
    if not files and not problems:
        problems.append("no image was given; name files or folders of images")
    if problems:
        raise DatasetError(problems)
    return [
        Case(id=name, images=tuple(str(file) for _, file in sorted(members, key=lambda m: m[0] or 0)))
        for name, members in sorted(groups.items())
    ]


def _read_document(folder: Path) -> dict[str, object]:
    path = folder / "dataset.json"
    if not folder.is_dir():
        raise DatasetError([f"{folder}: no such folder; expected a dataset in MSD or nnU-Net layout"])
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise DatasetError([f"{folder}: has no dataset.json; expected a dataset in MSD or nnU-Net layout"]) from error
    except OSError as error:
        raise DatasetError([f"{path}: cannot be read: {error.strerror or error}"]) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError([f"{path}: is not valid JSON: {error}"]) from error
    if not isinstance(document, dict):
        raise DatasetError([f"{path}: expected an object with fields, found {_kind(document)}"])
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _is_text(value: object) -> TypeGuard[str]:
    """Whether the value is a text that can be a name or path: not blank, no control character, encodable."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and all(ord(letter) >= 32 and not 0xD800 <= ord(letter) < 0xE000 for letter in value)
    )


def _printable(problem: str) -> str:
    """Return the text with what no terminal or file takes (half a surrogate pair) written out."""
    return problem.encode("utf-8", "backslashreplace").decode("utf-8")


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), f"{value!r:.40}")


def _channels(document: dict[str, object], problems: list[str]) -> tuple[str, ...]:
    field = "channel_names" if "channel_names" in document else "modality"
    names = document.get(field)
    if names is None:
        problems.append('neither modality nor channel_names; expected for example {"0": "MRI"}')
        return ()
    if not isinstance(names, dict) or not names:
        problems.append(f'{field}: expected an object such as {{"0": "MRI"}}, found {_kind(names)}')
        return ()
    expected = [str(number) for number in range(len(names))]
    if sorted(names) != sorted(expected):
        problems.append(f"{field}: channels must be numbered {', '.join(expected)}, found {', '.join(names)}")
        return ()
    broken = [number for number in expected if not _is_text(names[number])]
    problems.extend(f"{field}.{n}: expected a name, found {_kind(names[n])}" for n in broken)
    return tuple(str(names[number]) for number in expected)


def _labels(document: dict[str, object], problems: list[str]) -> dict[int, str]:
    """Return value to name; MSD writes {"1": "liver"}, nnU-Net {"liver": 1}."""
    entries = document.get("labels")
    if not isinstance(entries, dict) or not entries:
        problems.append(
            f'labels: expected an object such as {{"0": "background", "1": "liver"}}, found {_kind(entries)}'
        )
        return {}
    before = len(problems)
    pairs = [_label_pair(key, value, problems) for key, value in entries.items()]
    known = [pair for pair in pairs if pair is not None]
    for value, count in Counter(value for value, _ in known).items():
        if count > 1:
            problems.append(f"labels: value {value} is named {count} times")
    for name, count in Counter(name for _, name in known).items():
        if count > 1:
            problems.append(f"labels: the name {name} is used {count} times")
    labels = dict(sorted(known))
    if len(problems) == before:
        problems.extend(_label_set_problems(labels))
    return labels


def _label_pair(key: str, value: object, problems: list[str]) -> tuple[int, str] | None:
    if isinstance(value, list):
        problems.append(
            f"labels.{key}: region-based labels (a list of values) are not supported; give each structure one value"
        )
        return None
    if _is_text(value) and re.fullmatch(r"\d{1,9}", key):
        pair = (int(key), value)
    elif isinstance(value, int) and not isinstance(value, bool) and _is_text(key):
        pair = (value, key)
    else:
        problems.append(f"labels.{key!r:.60}: expected a value and a name, found {_kind(value)}")
        return None
    if not 0 <= pair[0] <= _MAX_LABEL_VALUE:
        problems.append(f"labels: {pair[1]} has value {pair[0]}; expected 0 to {_MAX_LABEL_VALUE}")
        return None
    if pair[1].lower() == "ignore":
        problems.append("labels: an ignore label is not supported; remove it and the voxels that have it")
        return None
    return pair


def _label_set_problems(labels: dict[int, str]) -> list[str]:
    if 0 not in labels:
        return ["labels: the background (value 0) is missing"]
    if len(labels) == 1:
        return ["labels: there is only the background; expected at least one structure"]
    if len(labels) > _MAX_CLASSES:
        return [f"labels: {len(labels)} classes; at most {_MAX_CLASSES} are supported"]
    return []


def _msd_cases(folder: Path, document: dict[str, object], channels: int, problems: list[str]) -> list[Case]:
    entries = document.get("training")
    if not isinstance(entries, list):
        problems.append(f"training: expected a list of cases, found {_kind(entries)}")
        return []
    found = [_msd_case(entry, f"training.{n}", problems) for n, entry in enumerate(entries)]
    cases = [case for case in found if case is not None]
    for case_id, count in Counter(case.id for case in cases).items():
        if count > 1:
            problems.append(f"training: case {case_id} is listed {count} times")
    problems.extend(_shared_files(cases))
    tests = document.get("test", [])
    if not isinstance(tests, list):
        problems.append(f"test: expected a list of images, found {_kind(tests)}")
        return cases
    problems.extend(_test_problems(_test_images(tests, problems), cases))
    return cases


def _shared_files(cases: list[Case]) -> list[str]:
    """Return a line for each file that two cases of different names share."""
    owners: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        for path in (*case.images, *([case.label] if case.label else [])):
            owners[path].add(case.id)
    return [
        f"training: {path} is listed for several cases: {', '.join(sorted(ids))}"
        for path, ids in owners.items()
        if len(ids) > 1
    ]


def _msd_case(entry: object, where: str, problems: list[str]) -> Case | None:
    if isinstance(entry, str) and "imagesTr/" in entry:  # an image alone, its label under the same name
        entry = {"image": entry, "label": entry.replace("imagesTr/", "labelsTr/", 1)}
    if not isinstance(entry, dict):
        problems.append(f"{where}: expected an object with image and label, found {_kind(entry)}")
        return None
    image = entry.get("image")
    images = image if isinstance(image, list) and image else [image]
    paths = [_inside(path, f"{where}.image", problems) for path in images]
    label = _inside(entry.get("label"), f"{where}.label", problems)
    inside = [path for path in paths if path is not None]
    if label is None or len(inside) < len(paths):
        return None
    return Case(id=_case_name(inside[0], several=len(inside) > 1), images=tuple(inside), label=label)


def _case_name(image: str, *, several: bool) -> str:
    name = stem(Path(image))
    match = _CHANNEL_SUFFIX.fullmatch(name)
    return match.group(1) if several and match else name


def _inside(path: object, where: str, problems: list[str]) -> str | None:
    """Return a file's path relative to the dataset in plain form, None with a problem if it is none."""
    if not _is_text(path):
        problems.append(f"{where}: expected a path, found {_kind(path)}")
        return None
    plain = os.path.normpath(path)
    if Path(plain).is_absolute() or plain.split("/")[0] in ("..", "."):
        problems.append(f"{where}: {path:.200} is not a file inside the dataset's folder")
        return None
    if "\\" in plain:
        problems.append(f"{where}: {path:.200} has a backslash in its name; rename the file")
        return None
    if file_ending(Path(plain)) is None:
        problems.append(f"{where}: {path:.200} has no known image ending; expected {', '.join(ENDINGS)}")
        return None
    return plain


def _test_images(entries: list[object], problems: list[str]) -> list[str]:
    """Return the paths of the test list, whose entries are texts or objects with an image."""
    paths = []
    for number, entry in enumerate(entries):
        image = entry.get("image") if isinstance(entry, dict) else entry
        for part in image if isinstance(image, list) else [image]:
            path = _inside(part, f"test.{number}", problems)
            paths += [path] if path else []
    return paths


def _test_problems(images: list[str], cases: list[Case]) -> list[str]:
    training = {case.id for case in cases}
    files = {image: case.id for case in cases for image in case.images}
    both = {files[image] if image in files else stem(Path(image)) for image in images}
    return [f"case {case} is listed in both training and test" for case in sorted(both & training)]


def _nnunet_cases(folder: Path, document: dict[str, object], channels: int, problems: list[str]) -> list[Case]:
    ending = document.get("file_ending")
    if not _is_text(ending) or ending not in ENDINGS:
        problems.append(f"file_ending: expected one of {', '.join(ENDINGS)}, found {ending!r:.40}")
        return []
    images: dict[str, dict[int, str]] = defaultdict(dict)
    for name in _names(folder, "imagesTr", ending, problems):
        match = _CHANNEL_SUFFIX.fullmatch(name)
        if match is None:
            problems.append(f"imagesTr/{name}{ending}: its name must end with the channel, such as _0000{ending}")
            continue
        images[match.group(1)][int(match.group(2))] = f"imagesTr/{name}{ending}"
    labels = set(_names(folder, "labelsTr", ending, problems))
    problems.extend(f"case {case}: its label has no image in imagesTr" for case in sorted(labels - set(images)))
    problems.extend(_nnunet_problems(images, labels, channels))
    problems.extend(_count_problems(document, len(images)))
    problems.extend(_nnunet_test_problems(folder, ending, set(images)))
    return [
        Case(id=case, images=tuple(files[n] for n in sorted(files)), label=f"labelsTr/{case}{ending}")
        for case, files in sorted(images.items())
        if case in labels and (not channels or sorted(files) == list(range(channels)))
    ]


def _names(folder: Path, part: str, ending: str, problems: list[str]) -> list[str]:
    """Return the names of a folder's images without their ending; hidden files are nobody's images."""
    try:
        entries = sorted((folder / part).iterdir())
    except OSError as error:
        problems.append(f"{part}: cannot be listed: {error.strerror or error}")
        return []
    return [
        path.name[: -len(ending)] for path in entries if path.name.endswith(ending) and not path.name.startswith(".")
    ]


def _nnunet_problems(images: dict[str, dict[int, str]], labels: set[str], channels: int) -> list[str]:
    problems = []
    for case, files in sorted(images.items()):
        if case not in labels:
            problems.append(f"case {case}: its image has no label in labelsTr")
        if channels and sorted(files) != list(range(channels)):
            found = ", ".join(f"{number:04d}" for number in sorted(files))
            problems.append(
                f"case {case}: wrong number of channels: has {found}; dataset.json names {channels} channels"
            )
    return problems


def _count_problems(document: dict[str, object], found: int) -> list[str]:
    """Compare with numTraining: in this layout nothing else tells of a case that is gone altogether."""
    claimed = document.get("numTraining")
    if claimed is None or claimed == found:
        return []
    return [f"numTraining: says {claimed!r:.40}, but imagesTr has {found} cases"]


def _nnunet_test_problems(folder: Path, ending: str, training: set[str]) -> list[str]:
    if not (folder / "imagesTs").is_dir():
        return []
    names = _names(folder, "imagesTs", ending, [])
    tests = {match.group(1) for match in map(_CHANNEL_SUFFIX.fullmatch, names) if match}
    return [f"case {case} is listed in both training and test" for case in sorted(tests & training)]


def _image_files(path: Path, problems: list[str]) -> list[Path]:
    """Return the absolute path of a file, or of every image in a folder."""
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file_ending(file) and file.name[0] != "."]
        if not found:
            problems.append(f"{path}: has no image; expected files ending in {', '.join(ENDINGS)}")
        return [file.absolute() for file in found]
    if not path.is_file():
        problems.append(f"{path}: no such file or folder")
        return []
    if file_ending(path) is None:
        problems.append(f"{path}: unknown file ending; expected one of {', '.join(ENDINGS)}")
        return []
    return [path.absolute()]


def _case_and_channel(file: Path, layout: Layout, channels: int, problems: list[str]) -> tuple[str, int | None]:
    """Return the case's name, and which of its channels the file is; None: all of them."""
    match = _CHANNEL_SUFFIX.fullmatch(stem(file))
    if match is None or (layout is Layout.MSD and channels == 1):
        return stem(file), None
    if layout is Layout.MSD:
        try:
            if channel_count(file) > 1:
                return stem(file), None
        except DatasetError as error:
            problems.extend(error.problems)
    return match.group(1), int(match.group(2))


def _channel_problems(name: str, members: Sequence[tuple[int | None, Path]], channels: int) -> list[str]:
    found = sorted((channel for channel, _ in members if channel is not None))
    if len(set(found)) < len(found) or (len(found) < len(members) and len(members) > 1):
        files = ", ".join(str(file) for _, file in members)
        return [f"case {name}: comes more than once: {files}; every case needs a name of its own"]
    if found and found != list(range(channels)):
        listed = ", ".join(f"{channel:04d}" for channel in found)
        return [f"case {name}: has the channels {listed}; expected {channels}, numbered from 0000"]
    return []
