"""Embeddings spread over several PostgreSQL servers, by the very statements that docs/shared-store.md gives."""

import re
from pathlib import Path

import numpy as np
import psycopg
import pytest
from postgres_server import CARELESS, DATABASE
from test_store import add_class, content

from fewshot.errors import DatabaseUnreachableError
from fewshot.store import open_store

PAGE = (Path(__file__).parents[1] / "docs" / "shared-store.md").read_text()
ON_A_SHARD, ON_THE_COORDINATOR = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def shards(postgres):
    """Two more servers."""
    servers = [type(postgres)(*CARELESS) for _ in range(2)]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def spread(postgres, shards):
    """An index with two classes, and the same with its embeddings on the other servers."""
    whole = open_store(postgres.new_place(), create=True)
    place = postgres.new_database()
    store = open_store(place, create=True)
    for each in (whole, store):
        add_class(each, "healthy", *(f"h{i}.png" for i in range(20)))
        add_class(each, "rust", *(f"r{i}.png" for i in range(20)))
    statements = ON_THE_COORDINATOR.replace("'USER'", "'postgres'").replace("dbname 'plants'", f"dbname '{DATABASE}'")
    for number, shard in enumerate(shards):
        shard.execute("DROP TABLE IF EXISTS embeddings_part", database=DATABASE)
        shard.execute(ON_A_SHARD, database=DATABASE)
        statements = statements.replace(f"HOST{number}", shard.host).replace(f"PORT{number}", str(shard.port))
    with psycopg.connect(place, autocommit=True) as connection:
        connection.execute(statements)
    yield whole, store
    whole.close()
    store.close()


def on_shards(shards):
    return [shard.execute("SELECT count(*) FROM embeddings_part", database=DATABASE)[0][0] for shard in shards]


def test_an_index_over_several_servers_answers_changes_and_is_checked_as_one_on_one(spread, shards):
    whole, store = spread
    counts = on_shards(shards)
    assert sum(counts) == 40
    assert min(counts) > 5, "both hold a part"
    with whole.read() as reader, store.read() as other:
        asked = reader.changed_vectors("support", -1)[1][::7]
        for within in (None, [2]):
            expected, found = (each.nearest_supports(asked, 5, within) for each in (reader, other))
            assert np.array_equal(expected[1], found[1])
            assert np.array_equal(expected[0], found[0])
        assert other.problems() == []
    for each in spread:
        add_class(each, "blight", "b0.png", "b1.png", "b2.png")
        with each.write() as writer:
            writer.remove_class(writer.wanted_class_id("healthy"))
            writer.note("remove", "healthy")
    assert sum(on_shards(shards)) == 23, "what is removed is removed on the other servers too"
    found = [content(each) for each in spread]
    for name in ("embeddings", "supports", "prototypes"):
        assert len(found[0][name]) == len(found[1][name])
    assert found[0]["embeddings"] == found[1]["embeddings"]
    with store.read() as reader:
        assert reader.problems() == []


def test_a_change_that_fails_leaves_nothing_on_the_other_servers(spread, shards):
    _, store = spread

    def half_a_change():
        with store.write() as writer:
            writer.remove_class(writer.wanted_class_id("rust"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_a_change()
    assert sum(on_shards(shards)) == 40
    with store.read() as reader:
        assert reader.problems() == []


def test_each_server_sorts_its_own_part(spread):
    """So that only the nearest of each travel, and not all embeddings."""
    _, store = spread
    asked = "[" + ",".join(["0.1"] * 8) + "]"
    with store.read() as reader:
        plan = "\n".join(
            reader.connection.exec_driver_sql(
                f"EXPLAIN (VERBOSE) SELECT support_id FROM embeddings ORDER BY vector <#> '{asked}'::vector LIMIT 5"
            ).scalars()
        )
    assert plan.count("ORDER BY") == 2, plan


def test_a_shard_that_is_away_is_an_error_and_no_wrong_answer(spread, shards):
    _, store = spread
    shards[1].kill()
    try:
        with pytest.raises(DatabaseUnreachableError), store.read() as reader:
            reader.changed_vectors("support", -1)
    finally:
        shards[1].start()
    with store.read() as reader:
        assert len(reader.changed_vectors("support", -1)[0]) == 40
