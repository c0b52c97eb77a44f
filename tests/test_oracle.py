"""An index against a plain dictionary, in sequences that hypothesis chooses; `make soak` makes long ones."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from oracle import EMBEDDERS, LABELS, N_PHOTOS, Op, World

N_SEQUENCES, N_STEPS = 200, 5
CHECK_EVERY = 20  # sequences: at the end of these an index is also made anew from the dictionary

labels = st.sampled_from(LABELS)
photos = st.lists(st.integers(0, N_PHOTOS - 1), min_size=1, max_size=4).map(tuple)


@pytest.fixture(scope="module")
def pools():
    """The photos as each embedder makes them, made once."""
    world = World(Path(tempfile.mkdtemp()))
    world.close()
    shutil.rmtree(world.folder)
    return world.pools, world.kept_pools


class Index(RuleBasedStateMachine):
    """What can be done to an index; each step goes to the dictionary too."""

    pools = None
    n_sequences = 0

    @initialize(first=photos, label=labels)
    def open(self, first, label):
        self.world = World(Path(tempfile.mkdtemp()), pools=self.pools[0], kept_pools=self.pools[1])
        self.world.change(Op("enroll", label, first))

    @rule(label=labels, chosen=photos)
    def enroll(self, label, chosen):
        self.world.change(Op("enroll", label, chosen))

    @rule(label=labels, chosen=photos)
    def replace(self, label, chosen):
        self.world.change(Op("replace", label, chosen))

    @rule(old=labels, new=labels)
    def rename(self, old, new):
        self.world.change(Op("rename", old, (), new))

    @rule(label=labels)
    def remove(self, label):
        self.world.change(Op("remove", label))

    @precondition(lambda self: self.world.content)
    @rule(data=st.data())
    def remove_one_photo(self, data):
        label = data.draw(st.sampled_from(sorted(self.world.content)))
        sha256 = data.draw(st.sampled_from(sorted(self.world.content[label])))
        self.world.change(Op("remove_photo", label, (self.world.number(sha256),)))

    @rule(chosen=photos)
    def ask(self, chosen):
        self.world.ask(chosen)

    @rule()
    def reopen(self):
        self.world.reopen()

    @rule()
    def lose_caches(self):
        self.world.lose_caches()

    @rule()
    def reindex(self):
        self.world.reindex()

    @rule()
    def back_up(self):
        self.world.back_up()

    @rule(which=st.integers(0, 4), anew=st.booleans())
    def restore(self, which, anew):
        self.world.go_back(which, anew)

    @invariant()
    def the_two_agree(self):
        assert self.world.problems == []

    @rule()
    def look(self):
        self.world.look()

    def teardown(self):
        world = getattr(self, "world", None)
        if world is None:
            return
        Index.n_sequences += 1
        try:
            world.look()
            if Index.n_sequences % CHECK_EVERY == 0:
                world.check_all()
            assert world.problems == []
        finally:
            world.close()
            shutil.rmtree(world.folder)


def test_an_index_agrees_with_a_dictionary_whatever_is_done_to_it(pools):
    Index.pools = pools
    quick = settings(
        max_examples=N_SEQUENCES,
        stateful_step_count=N_STEPS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Index, settings=quick)


def test_a_second_process_changes_the_same_index_and_is_killed_in_changes(pools, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    world = World(tmp_path, pools=pools[0], kept_pools=pools[1])
    rng = np.random.default_rng(3)
    try:
        for number in range(6):
            world.change_elsewhere(Op("enroll", LABELS[number % 3], (2 * number, 2 * number + 1)))
        both = Op("enroll", LABELS[3], (30, 31)), Op("enroll", LABELS[4], (32, 33))
        world.change_elsewhere(*both)
        world.change_elsewhere(Op("remove", LABELS[0]), Op("rename", LABELS[1], (), LABELS[5]))
        for number in range(2):
            world.kill_meanwhile(Op("enroll", LABELS[0], (40 + number, 44 + number)), float(rng.uniform(0, 0.01)))
            world.ask([number, 40 + number])
        world.check_all()
    finally:
        world.close()
    assert world.problems == []
    assert world.n_kills == 2


def test_seeded_steps_reach_every_kind_of_operation(pools, tmp_path):
    """What `make soak` runs for long; here so short that kinds which come once in hundreds are called by name."""
    world = World(tmp_path, pools=pools[0], kept_pools=pools[1])
    rng = np.random.default_rng(5)
    try:
        for _ in range(15):
            oracle.seeded_step(world, rng)
        for step in (world.back_up, world.reindex, world.lose_caches, world.reopen, world.check_all):
            step()
        world.go_back(0, anew=False)
        world.go_back(0, anew=True)
        world.check_all()
    finally:
        world.close()
    assert world.problems == []
    assert {"question", "enroll", "backup", "restore", "reindex", "check of everything"} <= set(world.counts)


def test_the_oracle_notices_what_it_is_there_to_notice(pools, tmp_path):
    """Without this the others could pass by seeing nothing."""
    world = World(tmp_path, pools=pools[0], kept_pools=pools[1])
    try:
        world.change(Op("enroll", "rust", (0, 1, 2)))
        world.change(Op("enroll", "blight", (4, 5)))
        world.look()
        assert world.problems == []
        world.gallery.remove_support(next(iter(world.content["rust"].values())))
        world.ask([0])
        assert world.problems, "a lost photo is not found among the nearest"
        world.problems.clear()
        world.look()
        assert "content" in world.problems[0]
        world.problems.clear()
        world.gallery.rename("blight", "leaf blight")
        world.ask([4])
        assert world.problems
        world.problems.clear()
        world.change(Op("remove", "blight"))
        assert "UnknownLabelError" in world.problems[0]
    finally:
        world.close()


def test_the_embedders_of_the_oracle_differ():
    assert len({size for _, size in EMBEDDERS}) == len(EMBEDDERS)
