"""An index in a database: what is refused and how, who waits for whom, and what others hear of a change."""

import contextlib
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from conftest import eventually
from test_store import DIM, add_class, content, photo

from fewshot.errors import (
    DatabaseAccessError,
    DatabaseUnreachableError,
    IndexDamagedError,
    IndexLockedError,
    IndexMissingError,
    IndexProblem,
    MissingExtraError,
    NewerFormatError,
    NotAnIndexError,
    PgvectorMissingError,
    UsageError,
)
from fewshot.store import ServerStore, open_store
from fewshot.store.schema import FORMAT_VERSION, fewshot_format
from fewshot.store.searching import _asked
from fewshot.store.server_errors import translated
from fewshot.store.transactions import Transactions

SECRET = "s3cret-w0rd"


@pytest.fixture
def database(postgres):
    return postgres.new_database()


@pytest.fixture
def schema(postgres):
    return postgres.new_place()


@pytest.fixture
def store(schema):
    with closing(ServerStore(schema, create=True, timeout_s=0.05)) as opened:
        yield opened


def refused(where, kind, **options):
    with pytest.raises(kind) as caught:
        open_store(where, **options)
    assert SECRET not in caught.value.said
    assert SECRET not in str(caught.value.__cause__)
    return caught.value


# ---- what is refused at the door


def test_a_server_that_is_not_there_is_told_with_its_address_and_without_the_password():
    error = refused(f"postgresql://ada:{SECRET}@127.0.0.1:1/plants", DatabaseUnreachableError)
    assert "postgresql://ada@127.0.0.1:1/plants" in error.message
    assert error.status == 503


@pytest.mark.parametrize("word", [SECRET, None])
def test_a_wrong_or_missing_password_says_so_and_shows_none(postgres, store, word):
    with contextlib.suppress(psycopg.errors.DuplicateObject):
        postgres.execute("CREATE ROLE guarded LOGIN PASSWORD 'the right one'")
    error = refused(postgres.url(store.name, "guarded", word), DatabaseAccessError)
    assert "password" in error.message
    assert ".pgpass" in error.hint


def test_a_user_who_may_not_read_the_tables_is_told(postgres, database):
    open_store(database, create=True).close()
    with contextlib.suppress(psycopg.errors.DuplicateObject):
        postgres.execute("CREATE ROLE stranger LOGIN")
    error = refused(database.replace("postgres@", "stranger@"), DatabaseAccessError)
    assert "permission denied" in error.message


def test_schemas_that_do_not_do_are_told(postgres):
    where = f"{postgres.url('plants')}?options=-csearch_path%3Dnowhere"
    refused(where, IndexMissingError)
    error = refused(where, PgvectorMissingError, create=True)
    assert "search_path" in error.message
    assert ",public" in error.hint


def test_unknown_users_and_databases_are_told_apart(postgres, store):
    assert "no such user" in refused(postgres.url(store.name, "nobody-knows"), DatabaseAccessError).message
    assert "no database" in refused(postgres.url("nowhere"), IndexMissingError).message


@pytest.mark.parametrize("create", [False, True])
def test_a_server_without_pgvector_is_told(database, create):
    """The server here has it, so the list of what it could have is hidden behind an empty view of the same name."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP EXTENSION vector")
        connection.execute(
            "CREATE VIEW pg_available_extensions AS SELECT '' AS name, '' AS installed_version WHERE false"
        )
    where = f"{database}?options=-csearch_path%3Dpublic,pg_catalog"
    if create:
        error = refused(where, PgvectorMissingError, create=True)
        assert "has no pgvector" in error.message
    else:
        refused(where, IndexMissingError)


def test_a_user_who_may_not_add_pgvector_is_told_whom_to_ask(postgres, database):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP EXTENSION vector")
        with contextlib.suppress(psycopg.errors.DuplicateObject):
            connection.execute("CREATE ROLE modest LOGIN")
        connection.execute("GRANT CREATE ON SCHEMA public TO modest")
    error = refused(database.replace("postgres@", "modest@"), PgvectorMissingError, create=True)
    assert "CREATE EXTENSION vector" in error.hint


def test_a_database_without_tables_is_told_with_the_way_to_make_them_and_gets_none(postgres, database):
    error = refused(database, IndexMissingError)
    assert "enroll" in error.hint
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


@pytest.mark.parametrize("create", [False, True])
def test_tables_of_another_program_are_left_as_they_are(database, create):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE classes (teacher text)")
    assert "another program" in refused(database, NotAnIndexError, create=create).message
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall() == [
            ("classes",)
        ]


def test_two_indexes_live_in_two_schemas_of_one_database(database):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA maize")
    other = f"{database}?options=-csearch_path%3Dmaize,public"
    with closing(open_store(database, create=True)) as second, closing(open_store(other, create=True)) as first:
        add_class(first, "rust", "a.png")
        add_class(second, "blight", "b.png")
        assert first.cache_name != second.cache_name
        for each, label in ((first, "rust"), (second, "blight")):
            with each.read() as reader:
                assert reader.labels() == [label]


def schemas_with_an_index(database):
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT table_schema FROM information_schema.tables WHERE table_name = 'about'")
        return {row[0] for row in rows}


def test_a_schema_that_is_not_there_is_made_with_the_index_and_never_becomes_another(database):
    maize, wheat = (f"{database}?options=-csearch_path%3D{name},public" for name in ("Maize", "wheat"))
    for where, label in ((maize, "rust"), (wheat, "blight")):
        with closing(open_store(where, create=True)) as store:
            add_class(store, label, f"{label}.png")
    assert schemas_with_an_index(database) == {"maize", "wheat"}
    for where, label in ((maize, "rust"), (wheat, "blight")):
        with closing(open_store(where)) as store, store.read() as reader:
            assert reader.labels() == [label]


def test_a_mistyped_schema_is_told_where_the_next_one_holds_an_index(database):
    open_store(database, create=True).close()
    error = refused(f"{database}?options=-csearch_path%3Dmaiz,public", IndexMissingError)
    assert "'maiz'" in error.message
    assert "search_path" in error.hint
    assert schemas_with_an_index(database) == {"public"}


def test_pgvector_does_not_go_into_a_schema_that_is_made_with_the_index(database):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP EXTENSION vector")
    for name in ("maize", "wheat"):
        open_store(f"{database}?options=-csearch_path%3D{name},public", create=True).close()
    assert schemas_with_an_index(database) == {"maize", "wheat"}


def test_two_processes_may_make_the_same_schema_at_once(database):
    where, errors = f"{database}?options=-csearch_path%3Dmaize,public", []
    together = threading.Barrier(4)

    def make():
        together.wait()
        try:
            open_store(where, create=True).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert schemas_with_an_index(database) == {"maize"}


@pytest.mark.parametrize("exists", [False, True])
def test_a_user_who_may_not_make_or_use_the_schema_is_told_whom_to_ask(postgres, database, exists):
    with psycopg.connect(database, autocommit=True) as connection:
        with contextlib.suppress(psycopg.errors.DuplicateObject):
            connection.execute("CREATE ROLE modest LOGIN")
        if exists:
            connection.execute("CREATE SCHEMA maize")
            connection.execute(f"GRANT CREATE ON DATABASE {database.rpartition('/')[2]} TO modest")
    where = f"{database.replace('postgres@', 'modest@')}?options=-csearch_path%3Dmaize,public"
    error = refused(where, DatabaseAccessError, create=True)
    assert "'maize'" in error.message
    assert 'CREATE SCHEMA "maize"' in error.hint


def test_the_users_own_schema_is_used_where_there_is_one_and_not_missed_where_there_is_none(database):
    open_store(database, create=True).close()
    assert schemas_with_an_index(database) == {"public"}
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA postgres")
    open_store(database, create=True).close()
    assert schemas_with_an_index(database) == {"postgres", "public"}


def test_newer_format_is_refused_with_both_version_numbers(store, schema):
    with store.write() as writer:
        writer.connection.execute(fewshot_format.update().values(version=97))
    message = refused(schema, NewerFormatError).message
    assert "97" in message
    assert f"up to {FORMAT_VERSION}" in message


def test_tables_without_the_index_s_own_facts_are_damage(store, schema):
    with store.write() as writer:
        writer.connection.execute(sa.text("DELETE FROM about"))
    assert "facts are missing" in refused(schema, IndexDamagedError).message


@pytest.mark.parametrize(
    "where",
    [
        f"postgresql://ada:{SECRET}@host:port/plants",
        f"postgresql://ada:{SECRET}@host",
        "mysql://host/plants",
        f"postgresql://ada:{SECRET}@127.0.0.1:1/caf\udce9",
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_showing_it(where):
    refused(where, NotAnIndexError)


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr("fewshot.extras._is_installed", lambda name: name != "psycopg")
    error = refused(f"postgresql://ada:{SECRET}@host/plants", MissingExtraError)
    assert "psycopg" in error.message
    assert "fewshot[postgres]" in error.hint


# ---- one writer at a time, and nobody waits for the dead


def test_a_change_waits_for_another_and_then_says_so(store, schema):
    with closing(ServerStore(schema)) as other, other.write(), pytest.raises(IndexLockedError, match="is locked"):
        add_class(store, "rust", "a.png")
    add_class(store, "rust", "a.png")


def test_readers_do_not_wait_for_a_writer(store, schema):
    with closing(ServerStore(schema)) as other, other.write() as writer:
        writer.add_class("rust")
        with store.read() as reader:
            assert reader.labels() == []


def test_a_writer_that_is_killed_leaves_nothing_and_blocks_nobody(store, schema):
    script = (
        "import sys\nfrom fewshot.store import open_store\n"
        "with open_store(sys.argv[1]).write() as writer:\n"
        "    writer.add_class('half')\n    print('writing', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, schema], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.communicate()
    eventually(lambda: _writes(store))
    with store.read() as reader:
        assert reader.labels() == ["rust"]


def _writes(store):
    try:
        add_class(store, "rust", "a.png")
    except IndexLockedError:
        return False
    return True


def test_two_writers_of_the_same_and_of_different_classes_lose_nothing_and_double_nothing(schema):
    """Each thread has its own connections, as processes have; the photos of `shared` come from both."""
    open_store(schema, create=True).close()
    names = [f"{i:02}.png" for i in range(12)]
    errors = []

    def enroll(own):
        with closing(open_store(schema)) as store:
            for name in names:
                for label, file in ((own, f"{own}-{name}"), ("shared", f"{own}-shared-{name}"), ("shared", name)):
                    try:
                        _enroll_new(store, label, file)
                    except Exception as error:
                        errors.append(error)

    threads = [threading.Thread(target=enroll, args=[own]) for own in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with closing(open_store(schema)) as store, store.read() as reader:
        counts = {each.label: (each.supports, each.prototypes) for each in reader.classes()}
        assert counts == {"first": (12, 1), "second": (12, 1), "shared": (36, 1)}
        assert reader.problems() == []
        generations = [line["generation"] for line in reader.history(1000)]
        assert generations == list(range(reader.about().generation, 0, -1))
        assert reader.about().generation == 60


def _enroll_new(store: Transactions, label, file):
    """What the gallery does: look, inside the change, at what is there; add what is not."""
    with store.write() as writer:
        new = photo(file)
        if writer.labels_of_photos([new.sha256]):
            return
        if writer.about().fingerprint is None:
            facts = {"fingerprint": "colours@0", "precision": "f32", "dim": DIM, "source": {}, "backbone": {}}
            writer.pin_embedder(facts)
        class_id = writer.add_class(label)
        writer.add_supports(class_id, [new])
        _, vectors = writer.class_vectors(class_id)
        mean = vectors.sum(axis=0)
        writer.set_prototypes(class_id, (mean / np.linalg.norm(mean))[None])
        writer.note("enroll", label, n_supports=1)


# ---- a server that goes away and comes back


def test_connections_that_died_with_the_server_are_replaced_and_nothing_acknowledged_is_lost(own_server):
    database = own_server.new_place()
    with closing(open_store(database, create=True)) as store:
        add_class(store, "rust", "a.png")
        before = content(store)
        own_server.kill()
        with pytest.raises(DatabaseUnreachableError), store.read():
            pass
        own_server.start()
        assert content(store) == before
        add_class(store, "blight", "b.png")


def test_a_change_during_which_the_server_dies_is_refused_as_such(own_server):
    database = own_server.new_place()
    with closing(open_store(database, create=True)) as store:

        def interrupted():
            with store.write() as writer:
                writer.add_class("half")
                own_server.kill()
                writer.labels()

        with pytest.raises(DatabaseUnreachableError):
            interrupted()
        own_server.start()
        with store.read() as reader:
            assert reader.labels() == []


@pytest.fixture(scope="module")
def own_server(postgres):
    """A server that may be killed; durable, so that what it acknowledged must be there again."""
    server = type(postgres)()
    yield server
    server.stop()


def test_a_change_is_heard_of_at_once_and_looked_for_where_nothing_is_heard(store, schema):
    stop, looks = threading.Event(), []

    def follow():
        looks.extend(time.monotonic() for _ in store.changes(stop, poll_s=30.0))

    thread = threading.Thread(target=follow)
    thread.start()
    eventually(lambda: len(looks) == 1)  # when it began to listen
    with closing(open_store(schema)) as other:
        add_class(other, "rust", "a.png")
        changed = time.monotonic()
        eventually(lambda: len(looks) == 2)
    stop.set()
    thread.join()
    assert looks[1] - changed < 15, "by polling alone it would have taken 30 s"


def test_without_a_word_from_the_server_a_follower_looks_by_itself(store):
    stop, looks = threading.Event(), []
    for _ in store.changes(stop, poll_s=0.02):
        looks.append(1)
        if len(looks) == 4:
            stop.set()
    assert len(looks) == 4


def test_a_follower_goes_on_behind_a_restart_of_the_server(own_server):
    database = own_server.new_place()
    with closing(open_store(database, create=True)) as store:
        stop, heard = threading.Event(), []

        def follow():
            for _ in store.changes(stop, poll_s=0.1):
                with contextlib.suppress(DatabaseUnreachableError), store.read() as reader:
                    heard.append(reader.labels())

        thread = threading.Thread(target=follow)
        thread.start()
        eventually(lambda: heard)
        own_server.kill()
        own_server.start()
        add_class(store, "rust", "a.png")
        eventually(lambda: ["rust"] in heard)
        stop.set()
        thread.join()


# ---- search in the database


def test_the_exact_scan_finds_what_brute_force_finds(store):
    ids = np.array(add_class(store, "rust", *(f"{i}.png" for i in range(40))))
    others = np.array(add_class(store, "blight", *(f"b{i}.png" for i in range(40))))
    with store.read() as reader:
        vectors = reader.support_vectors(np.concatenate([ids, others]))
        asked = vectors[::9]
        similarities, found = reader.nearest_supports(asked, 5, None)
        within = reader.nearest_supports(asked, 5, [reader.wanted_class_id("blight")])[1]
    cosines = asked @ vectors.T
    order = np.argsort(-cosines, axis=1)[:, :5]
    assert np.array_equal(found, np.concatenate([ids, others])[order])
    assert np.allclose(similarities, np.take_along_axis(cosines, order, axis=1), atol=1e-6)
    assert set(within.ravel().tolist()) <= set(others.tolist())


@pytest.mark.parametrize("hnsw", [False, True])
def test_as_many_classes_may_be_asked_as_there_are(store, hnsw):
    ids = add_class(store, "rust", *(f"{i}.png" for i in range(5)))
    if hnsw:
        with store.write() as writer:
            writer.build_search_index(0.9, 3, 5, lambda _: None)
    with store.read() as reader:
        vectors = reader.support_vectors(np.array(ids))
        class_ids = [reader.wanted_class_id("rust"), *range(1000, 71_000)]
        assert reader.nearest_supports(vectors, 1, class_ids)[1].ravel().tolist() == ids
        assert reader.nearest_supports(vectors, 1, class_ids[1:])[1].ravel().tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (psycopg.OperationalError("the connection is lost"), DatabaseUnreachableError),
        (psycopg.InterfaceError("the connection is closed"), DatabaseUnreachableError),
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), IndexProblem),
        (psycopg.ProgrammingError("cannot adapt type 'object'"), IndexProblem),
    ],
)
def test_only_what_the_connection_says_is_told_as_a_database_that_is_away(error, kind):
    told = translated(error, "plants", "postgresql://db/plants")
    assert type(told) is kind
    assert str(error) in told.message


def test_hnsw_is_measured_against_the_exact_scan_and_kept_at_what_reached_the_recall(store):
    add_class(store, "rust", *(f"{i}.png" for i in range(300)))
    steps = []
    with store.write() as writer:
        measured = writer.build_search_index(0.95, 5, 50, steps.append)
    assert measured[-1].recall >= 0.95
    assert all(each.recall < 0.95 for each in measured[:-1])
    assert steps[0].startswith("building")
    with store.read() as reader:
        connection = reader.connection
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        plan = "\n".join(
            connection.exec_driver_sql(
                f"EXPLAIN SELECT support_id FROM embeddings ORDER BY (vector::halfvec({DIM})) <#> "
                f"'[{','.join(['0.1'] * DIM)}]'::halfvec({DIM}) LIMIT 5"
            ).scalars()
        )
        assert "embeddings_hnsw" in plan
        vectors = reader.support_vectors(np.arange(1, 11, dtype=np.int64))
        _, found = reader.nearest_supports(vectors, 1, None)
        assert found.ravel().tolist() == list(range(1, 11))
    with store.write() as writer:
        writer.drop_search_index()
    with store.read() as reader:
        assert reader.connection.execute(sa.text("SELECT to_regclass('embeddings_hnsw')")).scalar() is None


def test_the_recall_is_that_of_photos_from_everywhere(store):
    """Classes are enrolled in turn: the first photos would be those of the first classes only."""
    ids = add_class(store, "rust", *(f"{i}.png" for i in range(99)))
    with store.read() as reader:
        asked, vectors = _asked(reader.connection, 50)
        assert np.array_equal(vectors, reader.support_vectors(asked))
    assert abs(len(asked) - 50) <= 2
    assert abs(np.isin(asked, ids[50:]).sum() - 25) <= 2


@pytest.mark.parametrize("dim", [DIM, DIM + 3])
def test_embeddings_of_another_length_replace_those_that_an_hnsw_index_was_built_for(store, dim):
    ids = add_class(store, "rust", *(f"{i}.png" for i in range(20)))
    with store.write() as writer:
        writer.build_search_index(0.9, 3, 10, lambda _: None)
    vectors = np.eye(len(ids), dim, dtype=np.float32) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with store.write() as writer:
        writer.stage("others@0", dict(zip(ids, vectors, strict=True)))
    with store.write() as writer:
        writer.pin_embedder({"fingerprint": "others@0", "precision": "f32", "dim": dim, "source": {}, "backbone": {}})
        writer.adopt_staged("others@0")
        writer.note("reindex", None)
    with store.read() as reader:
        assert reader.has_search_index() == (dim == DIM)
        assert reader.nearest_supports(vectors[:2], 1, None)[1].ravel().tolist() == ids[:2]


def test_embeddings_too_long_for_an_index_are_refused_with_what_remains(store):
    with store.write() as writer:
        writer.pin_embedder({"fingerprint": "long@0", "precision": "f32", "dim": 5000, "source": {}, "backbone": {}})
        with pytest.raises(UsageError, match="5,000") as caught:
            writer.build_search_index(0.9, 5, 10, lambda _: None)
    assert "exact scan" in caught.value.hint


@pytest.mark.parametrize("dim", [1280, 2048, 4096])
def test_vectors_of_every_length_come_back_bit_for_bit(store, dim):
    rng = np.random.default_rng(dim)
    vector = rng.normal(size=dim).astype(np.float32)
    vector[:4] = [np.float32(1e-38), np.float32(-0.0), np.nextafter(np.float32(1), np.float32(2)), 3.4e38]
    made = photo("long.png")
    with store.write() as writer:
        writer.pin_embedder({"fingerprint": "long@0", "precision": "f32", "dim": dim, "source": {}, "backbone": {}})
        object.__setattr__(made, "embedding", vector)
        (support_id,) = writer.add_supports(writer.add_class("rust"), [made])
        writer.note("enroll", "rust")
    with store.read() as reader:
        found = reader.support_vectors(np.array([support_id]))[0]
    assert found.tobytes() == vector.tobytes()
