from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import studies
import yaml
from script_loading import load_script

from automonai import api, watching
from automonai.cli import main
from automonai.domain.events import RunFinished, StudyEnded
from automonai.errors import AutoMonaiError, DatasetError, StopRequestedError
from automonai.report import Summary, summarise
from automonai.spec import StudySpec
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.local import LocalStore

HELP_LIMIT_SECONDS = 0.5


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Give the folder of a small study that is over."""
    folder = tmp_path / "studies" / "test"
    store = LocalStore(folder)
    spec = studies.make_spec(iterations=1)
    store.put(keys.DATA, studies.make_data(spec).model_dump_json().encode())
    studies.Bench(spec, store=store).run()
    return folder


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    document = {"name": "test", "dataset": "nowhere", "budget": {"iterations": 1}}
    path.write_text(yaml.safe_dump(document | {"store": str(tmp_path / "studies")}))
    return path


def summary_of(*, succeeded: bool | None) -> Summary:
    """Return the summary of a study that ended so, or that was stopped."""
    bench = studies.Bench(studies.make_spec(iterations=1))
    study = bench.run()
    study.ended = None
    if succeeded is not None:
        study.apply(StudyEnded(at=study.last_event_at, succeeded=succeeded, why="that is why"))
    return summarise(study, studies.make_data(bench.spec))


def test_help_answers_in_under_half_a_second() -> None:
    """Of the processor: another process may have it meanwhile."""
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "automonai.cli", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < HELP_LIMIT_SECONDS


@pytest.mark.parametrize("module", ["torch", "monai", "hpbandster", "numpy", "pydantic", "rich", "kubernetes"])
def test_the_command_line_alone_loads_none_of_the_heavy_packages(module: str) -> None:
    code = f"import sys, automonai, automonai.cli; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_study_is_told_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("automonai: error: ")
    assert "nowhere" in output.err
    assert not output.out


def test_every_problem_of_a_dataset_gets_its_line_and_they_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(*_: object, **__: object) -> None:
        raise DatasetError(["case_1: NaN", "case_2: missing"])

    monkeypatch.setattr(api, "check", check)
    assert main(["check", "somewhere"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "case_1: NaN",
        "case_2: missing",
        "automonai: error: 2 problems, listed above",
    ]


@pytest.mark.parametrize(
    "arguments",
    [["frob"], ["phantom"], ["phantom", "x", "--shape", "3,4"], ["phantom", "x", "--shape", "3,4,z"], ["--nope"]],
)
def test_a_wrong_call_is_told_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Error" in capsys.readouterr().err


def test_another_error_of_ours_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def report(*_: object) -> None:
        raise AutoMonaiError("the store did not answer")

    monkeypatch.setattr(api, "report", report)
    assert main(["report", "somewhere"]) == 1
    assert capsys.readouterr().err == "automonai: error: the store did not answer\n"


def test_the_phantoms_arguments_reach_the_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(api, "phantom", lambda folder, **options: seen.update(folder=folder, **options))
    arguments = ["--cases", "3", "--seed", "7", "--shape", "16, 17,18", "--channels", "2"]
    assert main(["phantom", str(tmp_path / "p"), *arguments]) == 0
    assert seen == {"folder": tmp_path / "p", "cases": 3, "seed": 7, "shape": (16, 17, 18), "channels": 2}


def test_runs_as_json_is_a_list_with_the_promised_keys(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(study), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    promised = load_script("reference").RunRow
    assert rows
    for row in rows:
        assert list(row) == list(promised.model_fields)
        promised.model_validate(row)


def test_runs_without_json_is_a_table_with_a_line_per_run(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist states it
    assert main(["runs", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(api.runs(study))
    assert "trial-0000-epochs-0001-fold-0" in lines[1]


def test_status_shows_rungs_the_best_and_what_comes_next(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(study)]) == 0
    shown = capsys.readouterr().out
    for words in ("test: over", "9 epochs", "best", "report", f"automonai predict {study}"):
        assert words in shown


def test_status_of_a_study_that_is_not_over_says_how_old_its_times_are(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    max((study / "journal").iterdir()).unlink()
    assert main(["status", str(study)]) == 0
    assert "as of    the last event, " in capsys.readouterr().out


def test_status_as_json_is_the_summary(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["study"] == "test"


def with_journal_of(study: Path, folder: Path, *, entries: int) -> Path:
    """Return a folder that holds a study as it was after so many entries of its journal."""
    there, here = LocalStore(study), LocalStore(folder)
    here.put(keys.DATA, there.get(keys.DATA))
    for number in range(1, entries + 1):
        here.put(keys.journal_entry(number), there.get(keys.journal_entry(number)))
    return folder


def test_a_watch_shows_what_is_written_meanwhile_and_ends_with_the_summary(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = len(list(LocalStore(study).list(keys.JOURNAL)))
    running = with_journal_of(study, tmp_path / "running", entries=entries - 2)

    def go_on(seconds: float) -> None:
        with_journal_of(study, running, entries=len(list(LocalStore(running).list(keys.JOURNAL))) + 1)

    monkeypatch.setattr(watching, "sleep", go_on)
    assert main(["status", str(running), "--watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("test: choosing and testing the ensemble")
    said = [line.partition("  ")[2] for line in lines if "ensemble of" in line or "study done" in line]
    assert said == ["ensemble of 4 networks chosen", "study done: the ensemble is chosen"]
    assert lines[-1] == f"next     automonai predict {running} IMAGES... --output DIR"


def test_a_watch_of_a_study_that_is_over_shows_it_and_ends(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(study), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("test: over\n")
    assert " d " not in shown  # the days that have passed since then are not spent on it
    assert f"automonai predict {study}" in shown


def test_a_watch_ends_with_1_when_no_configuration_could_be_trained(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "follow", lambda *_, **__: summary_of(succeeded=False))
    assert main(["status", str(study), "--watch"]) == 1
    assert "that is why" in capsys.readouterr().out


def test_ctrl_c_ends_a_watch_with_130_and_one_line(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching, "sleep", interrupt)
    running = with_journal_of(study, tmp_path / "running", entries=3)
    assert main(["status", str(running), "--watch"]) == 130
    assert capsys.readouterr().err == "no longer watching; the study was left as it is\n"


def test_a_watch_of_no_study_is_told_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path), "--watch"]) == 2
    assert "there is no study" in capsys.readouterr().err


def test_watch_and_json_exclude_each_other(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(study), "--watch", "--json"]) == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("call", [["status", "nowhere"], ["status", "a", "--watch", "--json"], ["frob"]])
def test_where_lines_are_json_errors_are_too(
    call: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pythonjsonlogger", reason="needs the extra automonai[cluster]")
    monkeypatch.setenv("AUTOMONAI_LOG_FORMAT", "json")
    assert main(call) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "ERROR"


def test_an_unknown_log_format_is_told_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOMONAI_LOG_FORMAT", "yaml")
    assert main(["status", "nowhere"]) == 2
    assert "AUTOMONAI_LOG_FORMAT is 'yaml'" in capsys.readouterr().err


def test_ctrl_c_in_a_search_says_how_to_go_on(
    spec_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "search", search)
    assert main(["search", str(spec_file), "--set", "search.seed=8"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"go on with: automonai search {spec_file} --set search.seed=8")


def test_ctrl_c_elsewhere_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def check(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "check", check)
    assert main(["check", "somewhere"]) == 130
    assert capsys.readouterr().err.endswith("automonai: interrupted\n")


@pytest.mark.parametrize(("succeeded", "code"), [(True, 0), (False, 1), (None, 143)])
def test_a_search_ends_with_what_became_of_the_study(
    succeeded: bool | None,
    code: int,
    spec_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(api, "search", lambda *_, **__: summary_of(succeeded=succeeded))
    assert main(["search", str(spec_file)]) == code
    assert succeeded is None or "that is why" in capsys.readouterr().out


def test_settings_on_the_command_line_reach_the_search(spec_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[StudySpec] = []

    def search(spec: StudySpec, **_: object) -> Summary:
        seen.append(spec)
        return summary_of(succeeded=True)

    monkeypatch.setattr(api, "search", search)
    assert main(["search", str(spec_file), "--set", "search.seed=8", "--set", "budget.time=1h"]) == 0
    assert (seen[0].search.seed, seen[0].budget.time) == (8, 3600.0)


def test_a_faulty_spec_is_told_by_its_field(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(spec_file), "--set", "budget.eta=1"]) == 2
    assert "budget.eta" in capsys.readouterr().err


def test_a_training_that_failed_ends_with_1(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = [e for e in Journal(LocalStore(study)).read() if isinstance(e, RunFinished)]
    complete = finished[0].result
    failed = complete.model_copy(update={"state": "failed", "loss": None, "message": "why", "curve": ()})
    for result, code in ((complete, 0), (failed, 1)):
        monkeypatch.setattr(api, "train", lambda *_, result=result, **__: result)
        call = ["train", "data", "--configuration", "c.yaml", "--epochs", "3", "--output", str(tmp_path)]
        assert main(call) == code
    assert "why" in capsys.readouterr().out


def test_a_training_that_was_asked_to_leave_ends_with_143(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: object, **__: object) -> None:
        raise StopRequestedError("stopped after step 7; the state is saved")

    monkeypatch.setattr(api, "train", train)
    assert main(["train", "data", "--configuration", "c.yaml", "--epochs", "3", "--output", "out"]) == 143
    assert "the state is saved" in capsys.readouterr().err


def test_a_training_that_ctrl_c_stopped_ends_with_130_and_says_that_its_state_is_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: object, on_interrupt: Callable[[], None], **__: object) -> None:
        with api.stop_on_sigterm(on_interrupt=on_interrupt) as stopped:
            signal.raise_signal(signal.SIGINT)
            assert stopped.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        raise StopRequestedError("stopped after step 7; the state is saved")

    monkeypatch.setattr(api, "train", train)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert main(["train", "data", "--configuration", "c.yaml", "--epochs", "3", "--output", "out"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    told = capsys.readouterr().err
    assert "press Ctrl-C again" in told
    assert "interrupted; stopped after step 7; the state is saved, and the same command goes on" in told


def test_lines_of_a_search_that_nobody_reads_any_more_do_not_end_it() -> None:
    program = "from automonai.cli import _write_if_read as write; write('a'); write('b'); print('on', flush=True)"
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:  # a pipe whose reader leaves
        reader.wait()
        done = subprocess.run([sys.executable, "-c", program], stdout=reader.stdin, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_scored(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folders = ["--predictions", str(study), "--labels", str(study)]
    assert main(["evaluate", *folders, "--output", str(tmp_path / "file" / "out.json")]) == 2
    assert "file: cannot be written to (File exists); name another place" in capsys.readouterr().err


def test_evaluate_refuses_an_output_that_is_neither_json_nor_csv(tmp_path: Path) -> None:
    folders = ["--predictions", str(tmp_path), "--labels", str(tmp_path)]
    assert main(["evaluate", *folders, "--output", "scores.txt"]) == 2
