"""What every sampler promises, whatever its method."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from automonai.domain.configuration import Configuration
from automonai.domain.run import Origin
from automonai.search import History, Observation, Proposal, Sampler, make_sampler, search_space
from automonai.spec import Choice, IntegerRange, SamplerName, SearchSpec

NAMES = list(SamplerName)
SMALL = {
    "depth": IntegerRange(type="integer", low=2, high=4),
    "flips": Choice(type="categorical", values=("none", "left_right", "all")),
}


def loss_of(configuration: Configuration) -> float:
    digest = hashlib.sha256(configuration.model_dump_json().encode()).digest()
    return digest[0] / 256


def observe(*proposals: Proposal, budget_epochs: int = 7) -> History:
    return History(
        observations=tuple(
            Observation(
                trial=number,
                configuration=proposal.configuration,
                budget_epochs=budget_epochs,
                loss=loss_of(proposal.configuration),
            )
            for number, proposal in enumerate(proposals)
        )
    )


def walk(sampler: Sampler, count: int) -> list[Proposal]:
    proposals: list[Proposal] = []
    for index in range(count):
        proposal = sampler.propose(observe(*proposals), index=index, budget_epochs=7)
        if proposal is None:
            break
        proposals.append(proposal)
    return proposals


def fingerprint(name: str) -> str:
    """Return what a sampler proposes in its first 28 trials, a BOHB model's proposals among them."""
    proposals = walk(make_sampler(SearchSpec(sampler=SamplerName(name), seed=5)), 28)
    return json.dumps([proposal.model_dump(mode="json") for proposal in proposals])


@pytest.fixture(params=NAMES, scope="module")
def name(request: pytest.FixtureRequest) -> SamplerName:
    return SamplerName(request.param)


@pytest.fixture(scope="module")
def proposals(name: SamplerName) -> list[Proposal]:
    return walk(make_sampler(SearchSpec(sampler=name, seed=5)), 28)


def test_the_standard_configuration_comes_first(proposals: list[Proposal]) -> None:
    assert proposals[0] == Proposal(configuration=Configuration(), origin=Origin.STANDARD)
    assert all(proposal.origin is not Origin.STANDARD for proposal in proposals[1:])


def test_trial_0_is_another_one_if_the_history_has_the_standard(name: SamplerName) -> None:
    known = History(pending=(Configuration(),))
    proposal = make_sampler(SearchSpec(sampler=name)).propose(known, index=0, budget_epochs=7)
    assert proposal is not None
    assert proposal.configuration != Configuration()


def test_the_same_history_index_and_seed_give_the_same_answer(name: SamplerName, proposals: list[Proposal]) -> None:
    sampler = make_sampler(SearchSpec(sampler=name, seed=5))
    again = sampler.propose(observe(*proposals[:24]), index=24, budget_epochs=7)
    assert again == proposals[24]


def test_another_process_gives_the_same_answers(name: SamplerName) -> None:
    script = "import sys; from test_sampler_contract import fingerprint; print(fingerprint(sys.argv[1]))"
    finished = subprocess.run(
        [sys.executable, "-c", script, name.value],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "7"},
    )
    assert finished.stdout.strip() == fingerprint(name.value)


def test_another_seed_gives_other_answers(name: SamplerName, proposals: list[Proposal]) -> None:
    other = walk(make_sampler(SearchSpec(sampler=name, seed=6)), 5)
    assert [p.configuration for p in other[1:]] != [p.configuration for p in proposals[1:5]]


def test_proposals_are_plain_values_that_survive_json(proposals: list[Proposal]) -> None:
    for proposal in proposals:
        assert Proposal.model_validate_json(proposal.model_dump_json()) == proposal
        for value in dict(proposal.configuration).values():
            assert type(value).__module__ in ("builtins", "automonai.domain.configuration")


def test_proposals_stay_in_the_space(proposals: list[Proposal]) -> None:
    space = search_space(SearchSpec())
    assert all(space.contains(proposal.configuration) for proposal in proposals)


def test_nothing_is_proposed_twice(proposals: list[Proposal]) -> None:
    assert len({proposal.configuration for proposal in proposals}) == len(proposals)


def test_pending_configurations_are_not_proposed_again(name: SamplerName) -> None:
    sampler = make_sampler(SearchSpec(sampler=name))
    pending: tuple[Configuration, ...] = ()
    for index in range(8):
        proposal = sampler.propose(History(pending=pending), index=index, budget_epochs=7)
        assert proposal is not None
        assert proposal.configuration not in pending
        pending = (*pending, proposal.configuration)


def test_none_comes_when_every_point_was_proposed_and_not_before(name: SamplerName) -> None:
    sampler = make_sampler(SearchSpec(sampler=name, space=SMALL))
    proposals = walk(sampler, 50)
    assert len({proposal.configuration for proposal in proposals}) == len(proposals) == 9
    assert sampler.propose(observe(*proposals), index=len(proposals), budget_epochs=7) is None


def test_the_history_is_not_changed(name: SamplerName, proposals: list[Proposal]) -> None:
    known = observe(*proposals[:24])
    before = known.model_dump_json()
    make_sampler(SearchSpec(sampler=name)).propose(known, index=24, budget_epochs=7)
    assert known.model_dump_json() == before
