# SPDX-License-Identifier: Apache-2.0
"""The queue: affinity to loaded motions, bounded by fairness."""

from hypothesis import given
from hypothesis import strategies as st

from lamp_trt.serving.jobs.waiting import MAX_SKIPPED, Waiting
from lamp_trt.serving.pools.pool import Slot


def queue(*motions: str) -> Waiting:
    waiting = Waiting()
    for index, motion in enumerate(motions):
        waiting.add(str(index), motion)
    return waiting


def test_a_job_goes_to_the_engine_with_its_motion() -> None:
    waiting = queue("a", "b")
    slots = [Slot("0", "b"), Slot("1", "a")]
    assert waiting.take(slots) == ("0", slots[1])
    assert waiting.take(slots[:1]) == ("1", slots[0])
    assert waiting.take(slots) is None


def test_the_first_is_overtaken_a_bounded_number_of_times() -> None:
    waiting = queue("a", *"bbbbbbbb")
    taken = [waiting.take([Slot("0", "b")]) for _ in range(MAX_SKIPPED + 1)]
    assert [each[0] for each in taken if each] == ["1", "2", "3", "4", "0"]


def test_ten_jobs_of_two_motions_switch_less_than_in_order() -> None:
    waiting, loaded, switches = queue(*"ababababab"), "a", 0
    while taken := waiting.take([Slot("0", loaded)]):
        motion = "ab"[int(taken[0]) % 2]
        switches += motion != loaded
        loaded = motion
    assert switches <= 2  # in order: 9


def test_a_lost_job_is_first_and_a_deleted_one_is_gone() -> None:
    waiting = queue("a", "a")
    waiting.add("lost", "b", first=True)
    assert waiting.position("lost") == 0
    assert waiting.remove("0")
    assert not waiting.remove("0")
    assert waiting.jobs() == ["lost", "1"]


@given(
    st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abc"), min_size=1, max_size=3)
)
def test_every_job_starts_once_and_none_is_overtaken_too_often(motions: list[str], loaded: list[str]) -> None:
    waiting = queue(*motions)
    slots = [Slot(str(index), motion) for index, motion in enumerate(loaded)]
    order = []
    while taken := waiting.take(slots):
        order.append(int(taken[0]))
        place = slots.index(taken[1])
        slots[place] = Slot(taken[1].engine, motions[order[-1]])
    assert sorted(order) == [*range(len(motions))]
    for place, job in enumerate(order):
        assert sum(other > job for other in order[:place]) <= MAX_SKIPPED
