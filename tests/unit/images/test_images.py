from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "images"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BLOCKED = ("torch", "monai", "hera", "itk")

IMPORT_ALL = """
import importlib, sys

class Blocked:
    def find_spec(name, path=None, target=None):
        if name in {blocked}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked)
for name in {modules}:
    importlib.import_module(name)
"""


def locked(name: str) -> dict[str, str]:
    text = (IMAGES / f"{name}.txt").read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ ]+) \\$", text, re.MULTILINE))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): version for name, version in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(name: str) -> set[str]:
    lines = (IMAGES / f"{name}.in").read_text().splitlines()
    return {canonical(line) for line in lines if line and not line.startswith("#")}


def warmed_modules(target: str) -> list[str]:
    stage = DOCKERFILE.split(f"AS {target}-packages", 1)[1].split("\nFROM ", 1)[0]
    command = stage.rsplit("warm.py", 1)[1]
    return re.findall(r"(?<=\s)(?!torch\b|monai\b)[a-z_]+(?:\.[a-z0-9_]+)*(?=\s|$)", command)


@pytest.mark.parametrize("name", ["controller", "trainer"])
def test_images_have_the_versions_that_the_tests_ran_with(name: str) -> None:
    pinned = constraints()
    assert {package: version for package, version in locked(name).items() if pinned.get(package) != version} == {}


@pytest.mark.parametrize("name", ["controller", "trainer", "build"])
def test_whatever_an_image_asks_for_is_locked(name: str) -> None:
    assert wanted(name) <= set(locked(name)), "run images/lock"


@pytest.mark.parametrize("name", ["controller", "trainer", "build"])
def test_every_package_is_locked_by_hash(name: str) -> None:
    text = (IMAGES / f"{name}.txt").read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    assert [block.split(" ")[0] for block in blocks if block.strip() and "--hash=sha256:" not in block] == []


def test_the_controller_has_no_torch() -> None:
    assert not {"torch", "monai"} & set(locked("controller"))


def test_torch_is_the_trainers_base_images_own() -> None:
    assert "torch" not in locked("trainer")


@pytest.mark.slow
def test_the_controllers_program_imports_what_its_image_has() -> None:
    modules = warmed_modules("controller")
    assert "automonai.cluster_steps" in modules
    code = IMPORT_ALL.format(blocked=BLOCKED, modules=modules)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("target", ["controller", "trainer"])
def test_the_final_stage_runs_as_nobody_and_installs_nothing(target: str) -> None:
    stage = re.split(rf"^FROM \S+ AS {target}$", DOCKERFILE, flags=re.MULTILINE)[1].split("\nFROM ", 1)[0]
    assert "USER 65532:65532" in stage
    assert not re.search(r"^RUN", stage, re.MULTILINE)
    assert "org.opencontainers.image.version" in stage


@pytest.mark.parametrize(("arguments", "words"), [(["--tag"], "usage"), (["--nonsense"], "usage"), (["both"], "usage")])
def test_a_wrong_argument_of_scripts_images_is_told(arguments: list[str], words: str) -> None:
    answer = subprocess.run(
        [str(ROOT / "scripts" / "images"), *arguments], capture_output=True, text=True, timeout=20, check=False
    )
    assert answer.returncode == 2
    assert words in answer.stderr


@pytest.mark.parametrize("builder", ["buildah", "docker"])
def test_scripts_images_names_both_images_by_tag(builder: str, tmp_path: Path) -> None:
    fake = tmp_path / builder
    fake.write_text('#!/bin/sh\necho "$0 $@" >> "$(dirname "$0")/calls"\n')
    fake.chmod(0o755)
    for tool in ("bash", "sed", "git", "dirname"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    environment = {"PATH": str(tmp_path), "BUILD_FLAGS": "--network host --build-arg A=b"}
    subprocess.run([str(ROOT / "scripts" / "images"), "--tag", "T"], env=environment, check=True, capture_output=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2
    for call, target in zip(calls, ("controller", "trainer"), strict=True):
        assert f"--target {target} -t localhost/automonai-{target}:T" in call
        assert "--network host --build-arg A=b" in call


def test_slimming_deletes_tests_and_unused_clients_only(tmp_path: Path) -> None:
    kept = ("package/module.py", "package/testing.py", "kubernetes/client/api/core_v1_api.py", "kubernetes/config/a.py")
    deleted = (
        "package/tests/test_module.py",
        "package/fast.c",
        "package/__pycache__/module.pyc",
        "kubernetes/aio/client/a.py",
        "kubernetes/client/api/storage_v1_api.py",
    )
    for name in (*kept, *deleted):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run([sys.executable, str(IMAGES / "slim.py"), str(tmp_path)], check=True)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(kept)


def test_warming_compiles_what_was_imported_and_refuses_what_must_not_be_there(tmp_path: Path) -> None:
    for name in ("loaded", "unused"):
        (tmp_path / f"{name}_module.py").write_text("VALUE = 1\n")
    command = [sys.executable, str(IMAGES / "warm.py"), str(tmp_path)]
    settings = {"env": {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True, "check": False}
    answer = subprocess.run([*command, "--without", "nowhere", "loaded_module"], **settings)  # type: ignore[call-overload]
    assert answer.returncode == 0, answer.stderr
    assert [path.name.split(".")[0] for path in (tmp_path / "__pycache__").iterdir()] == ["loaded_module"]
    refused = subprocess.run([*command, "--without", "unused_module", "loaded_module"], **settings)  # type: ignore[call-overload]
    assert "unused_module is installed" in refused.stderr
