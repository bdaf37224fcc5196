"""The steps of a study's workflow over a fake cluster and a store in a folder; nothing is trained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
from fake_cluster import FakeCluster
from scraping import free_port, scrape, value
from studies import choose, make_data, train

from automonai import cluster_steps, cluster_studies, starting
from automonai.cluster_steps import Surroundings
from automonai.domain.events import Event, StudyStarted
from automonai.domain.progress import refit_done_and_planned, runs_done_and_planned, search_done_and_planned
from automonai.domain.request import TrainRequest, request_adapter
from automonai.domain.study import Study
from automonai.errors import ClusterError, SpecError, StudyLockedError, StudyNotFoundError, UserError
from automonai.execution import watcher
from automonai.execution.cluster_api import ClusterApi
from automonai.execution.lease import HeldLease, lease_name
from automonai.parameters import StudyParameters, study_spec
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.local import LocalStore
from automonai.storage.retrying import Retrying

WORKFLOW = "brain-abc"
FORM = StudyParameters(
    dataset="s3://b/datasets/brain", name="brain", budget="1h", sampler="bohb", parallel_runs="2", gpus_per_run="1"
)


def form(**changed: str) -> StudyParameters:
    return FORM.model_copy(update=changed)


def test_a_faulty_number_of_gpus_is_told_by_the_first_step(tmp_path: Path) -> None:
    here = Surroundings(store="s3://b", job_template=template_file(tmp_path))
    with pytest.raises(SpecError, match="parameter gpus-per-run is '-1'"):
        cluster_steps.check(form(gpus_per_run="-1"), surroundings=here)


def test_surroundings_come_from_the_environment() -> None:
    here = Surroundings.from_environment(
        {
            "AUTOMONAI_STORE": "s3://b",
            "AUTOMONAI_NAMESPACE": "n",
            "AUTOMONAI_WORKFLOW_NAME": "w",
            "AUTOMONAI_WORKFLOW_UID": "u",
            "AUTOMONAI_JOB_TEMPLATE": "/etc/job.yaml",
            "ARGO_PROGRESS_FILE": "/tmp/progress",
            "AUTOMONAI_METRICS_PORT": "9109",
        }
    )
    assert here.metrics_port == 9109
    assert (here.store, here.namespace, here.workflow, here.workflow_uid) == ("s3://b", "n", "w", "u")
    assert (here.job_template, here.progress_file) == (Path("/etc/job.yaml"), Path("/tmp/progress"))
    assert Surroundings.from_environment({}).namespace == "automonai"


def test_no_metrics_are_shown_where_the_port_is_not_set_or_empty() -> None:
    assert Surroundings.from_environment({}).metrics_port is None
    assert Surroundings.from_environment({"AUTOMONAI_METRICS_PORT": ""}).metrics_port is None


@pytest.mark.parametrize("text", ["metrics", "0", "65536", "-1"])
def test_a_faulty_port_of_metrics_is_told(text: str) -> None:
    with pytest.raises(SpecError, match="AUTOMONAI_METRICS_PORT is"):
        Surroundings.from_environment({"AUTOMONAI_METRICS_PORT": text})


def loaded_by(modules: str) -> set[str]:
    code = f"import sys, {modules}; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_parameters_are_checked_before_anything_heavy_is_loaded() -> None:
    assert not loaded_by("automonai.cluster_steps") & {"torch", "kubernetes", "hpbandster", "automonai.api"}


def test_the_controller_runs_without_torch() -> None:
    parts = "automonai.cluster_steps, automonai.api, automonai.controller, automonai.report, automonai.search"
    parts += ", automonai.imaging.checking, automonai.execution.kubernetes, automonai.execution.lease"
    assert not loaded_by(parts) & {"torch", "monai"}


# The controller


def template_file(folder: Path) -> Path:
    path = folder / "job.yaml"
    path.write_text("image: trainer:1\n")
    return path


@dataclass
class Watching:
    """Calls back once so many runs have ended."""

    after: int = 10**9
    act: Any = None
    events: list[Event] = field(default_factory=list)

    def on_event(self, event: Event, study: Study) -> None:
        self.events.append(event)
        if len(study.finished) >= self.after and self.act is not None:
            act, self.act = self.act, None
            act()

    def on_tick(self, study: Study, now: float) -> None: ...


@dataclass
class Bench:
    """A study that `check` has written, and a cluster whose pods answer at once unless they are held."""

    folder: Path
    cluster: FakeCluster
    parameters: StudyParameters
    are_held: bool = False

    @property
    def location(self) -> str:
        return str(self.folder / "studies" / "brain")

    @property
    def store(self) -> LocalStore:
        return LocalStore(Path(self.location))

    @property
    def here(self) -> Surroundings:
        return Surroundings(
            store=str(self.folder),
            workflow=WORKFLOW,
            workflow_uid="u-1",
            job_template=template_file(self.folder),
            progress_file=self.folder / "progress",
            identity="pod-1",
        )

    def start(self) -> None:
        spec = study_spec(self.parameters, str(self.folder))
        self.store.put(keys.DATA, make_data(spec).model_dump_json().encode())
        Journal(self.store).append(StudyStarted(at=time.time(), spec=spec))

    def search(self, watch: Watching | None = None) -> int:
        return cluster_steps.search(self.parameters, watch=watch, surroundings=self.here, api=self.cluster.api())

    def refit(self, watch: Watching | None = None) -> int:
        return cluster_steps.refit(self.parameters, watch=watch, surroundings=self.here, api=self.cluster.api())

    def progress(self) -> str:
        return (self.folder / "progress").read_text()

    def study(self) -> Study:
        return Study.replay(Journal(self.store).read())

    def play(self, job: dict[str, Any]) -> None:
        pod = self.cluster.start_pod(job)
        if self.are_held:
            return
        run_id = job["metadata"]["labels"]["automonai/run"]
        request = request_adapter.validate_json(self.store.get(keys.request(run_id)))
        answer = train(request) if isinstance(request, TrainRequest) else choose(request)
        self.store.put(keys.answer(run_id), answer.model_dump_json().encode())
        self.cluster.end_pod(pod, 0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    cluster = FakeCluster()
    whole = "budget: {iterations: 1, min_epochs: 1, max_epochs: 3}\nsplit: {folds: 2}\n"
    bench = Bench(tmp_path, cluster, form(spec=whole, dataset="nowhere", sampler="random"))
    cluster.on_job = bench.play
    cluster.put("workflows", workflow(WORKFLOW, "Running"))
    cluster.start()
    yield bench
    cluster.stop()


def workflow(name: str, phase: str, study: str = "", spec: str = "") -> dict[str, Any]:
    parameters = [{"name": "name", "value": study}, {"name": "spec", "value": spec}]
    asked = {"arguments": {"parameters": parameters}}
    return {"metadata": {"name": name}, "spec": asked, "status": {"phase": phase}}


def hold(bench: Bench) -> None:
    bench.are_held = True


def terminate_later(bench: Bench) -> None:
    """Send SIGTERM once a Job runs whose pod does not end."""

    def wait_and_send() -> None:
        while not any(pod["status"]["phase"] == "Running" for pod in bench.cluster.objects["pods"].values()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    hold(bench)
    threading.Thread(target=wait_and_send, daemon=True).start()


def test_search_and_refit_end_with_an_ensemble_its_report_and_their_progress(bench: Bench) -> None:
    bench.start()
    assert bench.search() == 0
    searched = bench.study()
    assert searched.search_ended is not None
    assert searched.refit is None
    assert bench.progress() == f"{len(searched.runs)}/{len(searched.runs)}"
    assert bench.refit() == 0
    study = bench.study()
    assert study.ended is not None
    assert study.ended.succeeded
    assert study.resumes == 0
    assert bench.store.exists(keys.REPORT_HTML)
    assert bench.progress() == f"{study.folds + 1}/{study.folds + 1}"
    assert bench.cluster.objects["leases"][lease_name("brain")]["spec"]["holderIdentity"] == ""
    output = cluster_steps.report(bench.parameters, output=bench.folder / "page.html", surroundings=bench.here)
    assert output.read_bytes() == bench.store.get(keys.REPORT_HTML)


def test_a_search_shows_its_metrics_while_it_runs(bench: Bench) -> None:
    bench.start()
    port, seen = free_port(), []
    here = bench.here.model_copy(update={"metrics_port": port})
    watch = Watching(after=1, act=lambda: seen.append(scrape(port)))
    assert cluster_steps.search(bench.parameters, watch=watch, surroundings=here, api=bench.cluster.api()) == 0
    assert value(seen[0], "automonai_study_info", study="brain") == 1
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_the_specs_threads_are_the_jobs(bench: Bench) -> None:
    threads = yaml.safe_load(bench.parameters.spec) | {"execution": {"threads": 3}}
    bench.parameters = bench.parameters.model_copy(update={"spec": yaml.safe_dump(threads)})
    jobs: list[dict[str, Any]] = []
    bench.cluster.on_job = lambda job: (jobs.append(job), bench.play(job))
    bench.start()
    assert bench.search() == 0
    for job in jobs:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert (env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("3", "3")


def test_a_search_before_its_check_says_so(bench: Bench) -> None:
    with pytest.raises(StudyNotFoundError):
        bench.search()


@pytest.mark.parametrize("step", ["search", "refit"])
def test_an_eviction_leaves_the_jobs_to_a_successor_that_ends_what_the_step_began(bench: Bench, step: str) -> None:
    bench.start()
    if step == "refit":
        assert bench.search() == 0
    control = getattr(bench, step)
    terminate_later(bench)
    assert control() == 143
    running = [pod for pod, found in bench.cluster.objects["pods"].items() if found["status"]["phase"] == "Running"]
    assert running
    bench.are_held = False
    for name in running:
        job = bench.cluster._job_of(name)
        request = request_adapter.validate_json(
            bench.store.get(keys.request(job["metadata"]["labels"]["automonai/run"]))
        )
        bench.store.put(keys.answer(request.run_id), train(request).model_dump_json().encode())
        bench.cluster.end_pod(name, 0)
    assert control() == 0
    assert bench.study().resumes == 1
    assert bench.refit() == 0
    study = bench.study()
    assert study.is_over
    assert len(bench.cluster.objects["jobs"]) == len(study.runs) + 1
    assert not study.notes


@pytest.mark.parametrize("step", ["search", "refit"])
def test_the_users_stop_deletes_the_jobs_and_keeps_the_results(bench: Bench, step: str) -> None:
    bench.start()
    if step == "refit":
        assert bench.search() == 0
    results = len(bench.study().finished)
    stopped = workflow(WORKFLOW, "Running")
    stopped["spec"]["shutdown"] = "Stop"
    bench.cluster.put("workflows", stopped)
    terminate_later(bench)
    assert getattr(bench, step)() == 0
    assert not [job for job in bench.cluster.objects["jobs"].values() if not job.get("status")]
    assert not bench.study().is_over
    assert len(bench.study().finished) == results
    bench.are_held = False
    assert bench.search() == bench.refit() == 0
    assert bench.study().is_over


def test_a_step_whose_part_is_over_leaves_the_study_as_it_is(bench: Bench) -> None:
    bench.start()
    bench.refit()
    journal, jobs = Journal(bench.store).read(), dict(bench.cluster.objects["jobs"])
    assert bench.study().is_over, "the refit's step goes on with a search that has not ended"
    assert bench.search() == bench.refit() == 0
    assert (Journal(bench.store).read(), bench.cluster.objects["jobs"]) == (journal, jobs)


def test_the_controllers_store_tries_again_only_while_the_lease_is_held(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.start()
    pauses: list[object] = []

    def opened(location: str, *, retrying: Retrying) -> LocalStore:
        pauses.append(retrying.sleep)
        return LocalStore(Path(location))

    monkeypatch.setattr(cluster_steps, "open_store", opened)
    assert bench.search() == 0
    assert [getattr(pause, "__func__", None) for pause in pauses] == [HeldLease.pause]


def test_a_second_controller_is_refused(bench: Bench) -> None:
    bench.start()
    refused: list[Exception] = []

    def second() -> None:
        there = bench.here.model_copy(update={"identity": "pod-2", "workflow": "brain-next"})
        try:
            cluster_steps.search(bench.parameters, surroundings=there, api=bench.cluster.api())
        except StudyLockedError as error:
            refused.append(error)

    from automonai.execution import lease

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "RENEW_SECONDS", 0.05)
        patch.setattr(lease, "LOOK_SECONDS", 0.2)
        assert bench.search(Watching(after=1, act=second)) == 0
    assert "controller pod-1 of workflow brain-abc" in str(refused[0])


def test_without_a_network_to_show_the_exit_code_is_1_and_there_is_a_report(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("automonai.execution.kubernetes.pause_before", lambda strikes: 0.0)
    bench.start()
    bench.cluster.on_job = lambda job: bench.cluster.end_pod(bench.cluster.start_pod(job), 137, "OOMKilled")
    assert bench.search() == 1
    study = bench.study()
    assert "out of memory" in study.notes[0][1]
    assert bench.store.exists(keys.REPORT_HTML)


def test_progress_never_says_done_before_the_end(bench: Bench) -> None:
    bench.start()
    bench.search()
    searched = len(Journal(bench.store).read())
    bench.refit()
    events = Journal(bench.store).read()
    for count in range(1, len(events)):
        study, now = Study.replay(events[:count]), events[count - 1].at
        done, planned = search_done_and_planned(study, now)
        assert 0 <= done < planned or (count >= searched and done == planned)
        done, planned = refit_done_and_planned(study)
        assert 0 <= done < planned
        assert done == 0 or count > searched
        done, planned = runs_done_and_planned(study, now)
        assert 0 <= done < planned


# What cleans up


def put_job(cluster: FakeCluster, name: str, of: str, *, ended: bool = False) -> None:
    labels = {"app.kubernetes.io/part-of": "automonai", "workflows.argoproj.io/workflow": of}
    status = {"conditions": [{"type": "Complete", "status": "True"}]} if ended else {}
    cluster.put("jobs", {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": status})


def test_finish_deletes_what_still_runs_of_its_own_workflow(bench: Bench) -> None:
    put_job(bench.cluster, "running", WORKFLOW)
    put_job(bench.cluster, "ended", WORKFLOW, ended=True)
    put_job(bench.cluster, "anothers", "other-xyz")
    assert cluster_steps.finish(surroundings=bench.here, api=bench.cluster.api()) == 1
    assert set(bench.cluster.objects["jobs"]) == {"ended", "anothers"}
    with pytest.raises(UserError, match="AUTOMONAI_WORKFLOW_NAME"):
        cluster_steps.finish(surroundings=Surroundings(), api=bench.cluster.api())


class OverburdenedApi(ClusterApi):
    """Refuses the first deletions."""

    refusals = 2

    def delete_job(self, name: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ClusterError("too many requests", status=429)
        super().delete_job(name)


def test_finish_and_janitor_do_not_give_up_while_the_api_is_overburdened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "pause_seconds", lambda failures: 0.0)
    api = bench.cluster.api()
    api.__class__ = OverburdenedApi
    for name in ("a", "b"):
        put_job(bench.cluster, name, WORKFLOW)
    assert cluster_steps.finish(surroundings=bench.here, api=api) == 2
    put_job(bench.cluster, "c", "gone-abc")
    api.refusals = 2
    assert cluster_steps.delete_orphans("test", api=api) == 1
    put_job(bench.cluster, "d", "gone-abc")
    api.refusals = 2
    monkeypatch.setattr(cluster_steps, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(ClusterError) as caught:
        cluster_steps.delete_orphans("test", api=api)
    assert caught.value.exit_code == 75


def test_the_janitor_deletes_jobs_whose_workflow_is_over_or_gone(bench: Bench) -> None:
    bench.cluster.put("workflows", workflow("failed-abc", "Failed"))
    bench.cluster.put("workflows", workflow("waiting-abc", ""))
    for name, of in (("a", WORKFLOW), ("b", "failed-abc"), ("c", "gone-abc"), ("d", "waiting-abc")):
        put_job(bench.cluster, name, of)
    bench.cluster.put("jobs", {"metadata": {"name": "foreign", "labels": {}}, "spec": {}})
    assert cluster_steps.delete_orphans("test", api=bench.cluster.api()) == 2
    assert set(bench.cluster.objects["jobs"]) == {"a", "d", "foreign"}


# What a user does


def test_stop_ends_the_workflow_that_holds_a_study_and_those_that_wait_for_it(bench: Bench) -> None:
    bench.start()
    bench.cluster.put("workflows", workflow("brain-next", "Pending", study="brain"))
    bench.cluster.put("workflows", workflow("brain-too", "Pending", spec="name: brain"))
    bench.cluster.put("workflows", workflow("liver-next", "Pending", study="brain", spec="name: liver"))
    bench.cluster.put("workflows", workflow("faulty-abc", "Running", spec="name: ["))
    bench.cluster.put("workflows", workflow("brain-past", "Succeeded", study="brain"))
    bench.cluster.put("workflows", workflow("liver-abc", "Running", study="liver"))
    stopped: list[tuple[str, ...]] = []

    def stop() -> None:
        stopped.append(cluster_studies.stop("s3://b/studies/brain", namespace="test", api=bench.cluster.api()))

    bench.search(Watching(after=1, act=stop))
    assert stopped == [(WORKFLOW, "brain-next", "brain-too")]
    ended = {name for name, found in bench.cluster.objects["workflows"].items() if found["spec"].get("shutdown")}
    assert ended == {WORKFLOW, "brain-next", "brain-too"}
    with pytest.raises(UserError, match="nothing to stop"):
        cluster_studies.stop("s3://b/studies/heart", namespace="test", api=bench.cluster.api())


def test_the_first_step_writes_a_new_study_and_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        starting, "prepare_data", lambda dataset, **options: make_data(study_spec(bench.parameters, "x"))
    )
    cluster_steps.check(bench.parameters, surroundings=bench.here)
    cluster_steps.check(bench.parameters, surroundings=bench.here)
    assert len(Journal(bench.store).read()) == 1
    more = bench.parameters.model_copy(update={"parallel_runs": "3"})
    assert cluster_steps.check(more, surroundings=bench.here).execution.max_parallel_runs == 3
    assert len(Journal(bench.store).read()) == 1, "a started study's journal is its controller's, who may be at work"
    other = bench.parameters.model_copy(update={"sampler": "bohb"})
    with pytest.raises(SpecError, match="another 'search'"):
        cluster_steps.check(other, surroundings=bench.here)
