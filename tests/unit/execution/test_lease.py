"""A study's Lease over a fake API: one controller at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
from fake_cluster import FakeCluster

from automonai.errors import ClusterError, StopRequestedError, StudyLockedError
from automonai.execution import lease as lease_module
from automonai.execution.lease import _acquire, lease_name, leased, workflow_of


@dataclass
class Clock:
    """Time that passes only while somebody sleeps; meanwhile something may happen."""

    now: float = 0.0
    on_sleep: object = None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if callable(self.on_sleep):
            self.on_sleep()


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.02)


def holder(cluster: FakeCluster) -> str:
    return cluster.objects["leases"][lease_name("brain")]["spec"]["holderIdentity"]


def renew(cluster: FakeCluster) -> None:
    cluster.put("leases", dict(cluster.objects["leases"][lease_name("brain")]))


def acquire(cluster: FakeCluster, clock: Clock, identity: str = "second", workflow: str | None = None) -> None:
    _acquire(cluster.api(), "brain", identity=identity, workflow=workflow, sleep=clock.sleep, clock=clock)


def until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_made_held_and_given_back(cluster: FakeCluster) -> None:
    with leased(cluster.api(), "brain", identity="first", workflow="brain-abc") as lease:
        assert holder(cluster) == "first"
        assert not lease.is_lost()
        assert workflow_of(cluster.api(), "brain") == "brain-abc"
    assert holder(cluster) == ""
    assert workflow_of(cluster.api(), "brain") is None


def test_a_lease_that_was_given_back_is_taken_at_once(cluster: FakeCluster) -> None:
    with leased(cluster.api(), "brain", identity="first"):
        pass
    clock = Clock()
    acquire(cluster, clock)
    assert clock.now == 0
    assert holder(cluster) == "second"


def test_a_controller_waits_for_its_own_workflows_earlier_one_to_end(cluster: FakeCluster) -> None:
    with leased(cluster.api(), "brain", identity="first", workflow="brain-abc"):
        pass
    cluster.objects["leases"][lease_name("brain")]["spec"]["holderIdentity"] = "first"
    clock = Clock()
    clock.on_sleep = lambda: renew(cluster) if clock.now < 30 else None
    acquire(cluster, clock, workflow="brain-abc")
    assert 28 <= clock.now - lease_module.LEASE_SECONDS <= 31
    assert holder(cluster) == "second"


def test_a_second_controller_is_told_who_has_the_study(cluster: FakeCluster) -> None:
    with leased(cluster.api(), "brain", identity="first", workflow="brain-abc"):
        clock = Clock(on_sleep=lambda: renew(cluster))
        with pytest.raises(StudyLockedError, match="controller first of workflow brain-abc"):
            acquire(cluster, clock)
        assert clock.now <= 5


def test_a_dead_holders_lease_is_taken_after_its_length(cluster: FakeCluster) -> None:
    acquire(cluster, Clock(), identity="dead")
    clock = Clock()
    acquire(cluster, clock)
    assert 15 <= clock.now <= 17
    assert holder(cluster) == "second"


def test_an_api_that_is_away_at_the_start_is_waited_for(cluster: FakeCluster) -> None:
    clock = Clock()
    api = cluster.api()
    cluster.stop()
    clock.on_sleep = lambda: cluster.start() if clock.now == 3 else None
    _acquire(api, "brain", identity="first", workflow=None, sleep=clock.sleep, clock=clock)
    assert holder(cluster) == "first"


def test_of_two_that_wait_for_a_dead_holder_one_gets_it(cluster: FakeCluster) -> None:
    acquire(cluster, Clock(), identity="dead")
    clock = Clock()

    def third_is_faster() -> None:
        if clock.now == 15:
            taken = dict(cluster.objects["leases"][lease_name("brain")])
            taken["spec"] = {**taken["spec"], "holderIdentity": "third"}
            cluster.put("leases", taken)

    clock.on_sleep = third_is_faster
    with pytest.raises(StudyLockedError, match="controller third"):
        acquire(cluster, clock)


@pytest.mark.usefixtures("quick")
def test_a_held_lease_is_renewed(cluster: FakeCluster) -> None:
    with leased(cluster.api(), "brain", identity="first") as lease:
        until(lambda: cluster.count("PUT", "leases") >= 3)
        assert not lease.is_lost()


@pytest.mark.usefixtures("quick")
def test_a_lease_that_another_took_is_lost_and_not_given_back(cluster: FakeCluster) -> None:
    with leased(cluster.api(), "brain", identity="first") as lease:
        taken = dict(cluster.objects["leases"][lease_name("brain")])
        taken["spec"] = {**taken["spec"], "holderIdentity": "second"}
        cluster.put("leases", taken)
        until(lease.is_lost)
    assert holder(cluster) == "second"


@pytest.mark.usefixtures("quick")
def test_an_api_that_is_away_for_a_while_does_not_lose_a_lease(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leased(cluster.api(), "brain", identity="first") as lease:
        assert lease.is_sure()
        cluster.stop()
        monkeypatch.setattr(lease_module, "SURE_SECONDS", 0.05)
        time.sleep(0.2)
        assert not lease.is_lost()
        assert not lease.is_sure(), "another controller may take it while only this one does not reach the API"
        monkeypatch.setattr(lease_module, "SURE_SECONDS", 0.15)
        cluster.start()
        before = cluster.count("PUT", "leases")
        until(lambda: cluster.count("PUT", "leases") > before)
        assert not lease.is_lost()
        until(lease.is_sure)


def test_a_lease_counts_from_when_it_was_asked_for_however_late_the_answer(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "SURE_SECONDS", 0.2)
    api = cluster.api()
    create = api.create_lease

    def answer_late(manifest: dict[str, object]) -> object:
        made = create(manifest)
        time.sleep(0.3)
        return made

    monkeypatch.setattr(api, "create_lease", answer_late)
    with leased(api, "brain", identity="first") as lease:
        assert not lease.is_sure()
        assert not lease.is_lost()


@pytest.mark.usefixtures("quick")
def test_a_write_whose_answer_was_lost_is_no_renewal_of_now(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = cluster.api()
    replace, versions = api.replace_lease, list[str]()

    def lose_first_answer(name: str, manifest: dict[str, object]) -> object:
        made = replace(name, manifest)
        versions.append(made.metadata.resource_version)
        if len(versions) == 1:
            raise ClusterError("no answer", status=0)
        return made

    monkeypatch.setattr(api, "replace_lease", lose_first_answer)
    with leased(api, "brain", identity="first") as lease:
        until(lambda: len(versions) >= 3)
        assert not lease.is_lost()
    conflicts = cluster.count("PUT", "leases") - len(versions)
    assert conflicts == 1


@pytest.mark.usefixtures("quick")
def test_what_is_tried_again_waits_until_the_lease_is_surely_held(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leased(cluster.api(), "brain", identity="first") as lease:
        lease.pause(0.0)
        cluster.stop()
        monkeypatch.setattr(lease_module, "SURE_SECONDS", 0.1)
        until(lambda: not lease.is_sure())
        went_on: list[bool] = []

        def pause() -> None:
            lease.pause(0.0)
            went_on.append(lease.is_sure())

        thread = threading.Thread(target=pause)
        thread.start()
        time.sleep(0.3)
        assert went_on == []
        cluster.start()
        thread.join(60)
        assert went_on == [True]
        monkeypatch.setattr(lease_module, "UNREACHABLE_SECONDS", 0.05)
        cluster.stop()
        until(lease.is_lost)
        with pytest.raises(StopRequestedError, match="another controller's"):
            lease.pause(0.0)


@pytest.mark.usefixtures("quick")
def test_an_api_that_is_away_for_long_loses_it(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "UNREACHABLE_SECONDS", 0.1)
    with leased(cluster.api(), "brain", identity="first") as lease:
        cluster.stop()
        until(lease.is_lost)


@pytest.mark.usefixtures("quick")
def test_a_lease_that_nothing_renews_any_more_is_lost(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with leased(cluster.api(), "brain", identity="first") as lease:
        monkeypatch.setattr(lease, "_renew", lambda: 1 / 0)
        monkeypatch.setattr("threading.excepthook", lambda arguments: None)
        until(lease.is_lost)
        assert not lease.is_sure()
