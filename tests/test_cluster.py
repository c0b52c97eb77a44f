"""A Ray cluster enrolls and answers as one process does, each content once, whatever machine is lost on the way."""

import json
import os
import socket
from pathlib import Path

import cluster_openers
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import LEAF_COLOURS, colour_embedder, eventually, write_leaf

from fewshot import extras
from fewshot.cli import main
from fewshot.cluster import connection
from fewshot.cluster.spreading import Cluster
from fewshot.datasets import class_folders, query_photos
from fewshot.errors import ClusterError, ClusterUnreachableError, MissingExtraError, UsageError
from fewshot.gallery import Gallery
from fewshot.records import NamedBytes
from fewshot.samples import write_samples

HERE = Path(__file__).parent
STORE_BYTES = 80_000_000  # the least that ray takes for a machine's shared memory


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def machines(tmp_path_factory, backbone_cache, notes):
    """A cluster of one machine with one core, in processes of its own; tests may add machines."""
    home = tmp_path_factory.mktemp("cluster-home")
    before = dict(os.environ)
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
        "FEWSHOT_CACHE": str(backbone_cache),
        "HOME": str(home),
        cluster_openers.NOTES: str(notes),
    }
    from ray.cluster_utils import Cluster as Machines

    made = Machines()
    for attempt in (1, 2, 3):
        try:
            made.add_node(num_cpus=1, include_dashboard=False, object_store_memory=STORE_BYTES)
            break
        except Exception as error:  # ray's own, without a type: a busy machine takes longer than it waits
            if "timed out during startup" not in str(error) or attempt == 3:
                raise
            made.shutdown()
            made = Machines()
    try:
        yield made
    finally:
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def connected(machines):
    """One connection for all tests: each new one makes ray start processes anew."""
    with Cluster(machines.address) as opened:
        yield opened


@pytest.fixture
def cluster(connected, notes):
    """Gives the cluster with an opener of embedders; the notes of earlier tests are gone."""
    for note in notes.iterdir():
        note.unlink()

    def opening_with(opener):
        connected._opener = opener
        return connected

    return opening_with


def content(gallery):
    """Label, file and embedding of everything enrolled."""
    _, supports, vectors = gallery.embeddings(10_000)
    return [(each.label, each.file) for each in supports], vectors


def embedded(notes):
    return len(list(notes.glob("embedded-*")))


def pixel_sums(folder):
    """What the engine's notes say of a class's photos, beside the number of threads."""
    embedder = colour_embedder()
    return {f"{np.sum(embedder.prepare(photo, keep=True).pixels, dtype=np.int64)!r}1" for photo in folder.photos}


# ---- the same as one process


def test_a_cluster_enrolls_and_answers_as_one_process_does(tmp_path, leaves, cluster, notes):
    folder = leaves(n=6)
    (folder / "rust" / "empty.jpg").write_bytes(b"")
    (folder / "rust" / "cut.png").write_bytes((folder / "rust" / "rust-00.png").read_bytes()[:900])
    (folder / "rust" / "again.png").write_bytes((folder / "rust" / "rust-01.png").read_bytes())
    (folder / "mildew" / "other.png").write_bytes((folder / "rust" / "rust-02.png").read_bytes())
    asked = query_photos([leaves(n=2, first_seed=900, name="ask")])
    asked += [folder / "rust" / "cut.png", NamedBytes("upload.png", asked[0].read_bytes())]
    spread = cluster(cluster_openers.colours)
    with (
        Gallery(tmp_path / "one", create=True, embedder=colour_embedder()) as one,
        Gallery(tmp_path / "many", create=True, embedder=colour_embedder()) as many,
    ):
        expected = list(one.enroll(class_folders(folder)))
        steps = []
        reports = list(many.enroll(class_folders(folder), cluster=spread, on_photo=lambda: steps.append(1)))
        assert reports == expected
        assert sum(len(report.refused) for report in reports) == 3  # empty, cut, enrolled under another label
        assert len(steps) == sum(len(each.photos) for each in class_folders(folder))
        names, vectors = content(one)
        names_of_many, vectors_of_many = content(many)
        assert names_of_many == names
        np.testing.assert_allclose(vectors_of_many, vectors, atol=1e-6)
        answers = list(many.query(asked, cluster=spread))
        assert [(each.file, each.answer, each.reason) for each in answers] == [
            (each.file, each.answer, each.reason) for each in one.query(asked)
        ]
        (folder / "rust" / "cut.png").unlink()
        # Enrolled again, nothing is even sent.
        again = list(many.enroll(class_folders(folder), cluster=spread))
    assert [report.enrolled for report in again] == [0] * 4
    opened = list(notes.glob("opened-*"))
    assert len(opened) == 2  # one worker for enrolling, one for asking: each opened its embedder once
    assert {note.read_text() for note in opened} == {"1"}  # and computes with one thread


def test_photos_whose_names_are_no_text_are_embedded_and_refused_on_a_cluster_too(tmp_path, cluster):
    sound, cut = (tmp_path / os.fsdecode(name) for name in (b"caf\xe9.png", b"cut-\xff.png"))
    sound.write_bytes(write_leaf(tmp_path / "leaf.png", LEAF_COLOURS["rust"], 1).read_bytes())
    cut.write_bytes(sound.read_bytes()[:900])
    photos, embedder = [sound, cut, tmp_path / os.fsdecode(b"gone-\xfe.png")], colour_embedder()
    alone = list(embedder.embed_photos(photos, n_photos=3))
    spread = list(cluster(cluster_openers.colours).embed_photos(embedder, photos))
    assert [each.file for each in spread] == [str(photo) for photo in photos]
    assert spread[1:] == alone[1:]


def test_each_copy_of_a_refused_photo_is_told_of_by_its_own_name(tmp_path, cluster, recwarn):
    cut = write_leaf(tmp_path / "leaf.png", LEAF_COLOURS["rust"], 1).read_bytes()[:900]
    photos = [NamedBytes(name, cut) for name in ("b-first.png", "c-copy.png", "folder/d-copy.png")]
    outcomes = list(
        cluster(cluster_openers.colours).embed_photos(colour_embedder(), photos, is_known=lambda _sha256: False)
    )
    assert outcomes == list(colour_embedder().embed_photos(photos, n_photos=3))
    assert [each.message.split()[0] for each in outcomes] == ["b-first.png", "c-copy.png", "d-copy.png"]
    assert not [each for each in recwarn if "concurrent tasks" in str(each.message)]  # of a single block


def test_the_limit_of_megapixels_where_the_command_runs_holds_on_a_cluster_too(tmp_path, cluster, monkeypatch):
    photo = write_leaf(tmp_path / "leaf.png", LEAF_COLOURS["rust"], 1, size=(120, 100))
    spread, embedder = cluster(cluster_openers.colours), colour_embedder()
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", "0.01")
    (refused,) = spread.embed_photos(embedder, [photo])
    assert [refused] == list(embedder.embed_photos([photo], n_photos=1))
    assert refused.code == "too_large"
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", "many")
    with pytest.raises(UsageError, match="wanted a number of megapixels"):
        spread.embed_photos(embedder, [photo])


# ---- interrupted, and machines lost


def test_an_interrupted_enrolment_goes_on_where_it_stopped(tmp_path, leaves, cluster, notes):
    folders = class_folders(leaves(n=20))
    spread = cluster(cluster_openers.slow)
    n_seen = 0

    def stop():
        nonlocal n_seen
        n_seen += 1
        if n_seen == 25:
            raise KeyboardInterrupt

    with Gallery(tmp_path / "index", create=True, embedder=colour_embedder()) as gallery:
        with pytest.raises(KeyboardInterrupt):
            list(gallery.enroll(folders, cluster=spread, on_photo=stop))
        assert [each.supports for each in gallery.classes()] == [20]  # the class that was whole
        # These may go on until they are gone; what they still embed is not the second try's.
        of_first_try = cluster_openers.at_work(notes)
        reports = list(gallery.enroll(folders, cluster=spread))
        assert [report.enrolled for report in reports] == [0, 20, 20, 20]
    again = [note for note in notes.glob("embedded-*") if note.name.split("-")[1] not in of_first_try]
    # What was whole is not embedded again; each worker may have finished the photo that it had in hand.
    assert 60 <= len(again) <= 60 + spread.n_cores()
    assert {note.read_text() for note in again} == set().union(*map(pixel_sums, folders[1:]))
    assert len(set().union(*map(pixel_sums, folders))) == 80, "sums tell photos apart"


def test_a_machine_killed_in_the_middle_costs_no_photo(tmp_path, leaves, cluster, machines, notes, capfd):
    folders = class_folders(leaves(n=30))
    second = machines.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    spread = cluster(cluster_openers.slow_pair)
    eventually(lambda: spread.n_cores() == 2, 60)
    n_before = 0

    def kill():
        nonlocal second, n_before
        if second is not None:
            assert len(cluster_openers.at_work(notes)) == 2
            n_before = embedded(notes)
            machines.remove_node(second, allow_graceful=False)
            second = None

    with Gallery(tmp_path / "index", create=True, embedder=colour_embedder()) as gallery:
        reports = list(gallery.enroll(folders, cluster=spread, on_photo=kill))
        assert [(report.label, report.enrolled, report.refused) for report in reports] == [
            (label, 30, ()) for label in sorted(LEAF_COLOURS)
        ]
        assert gallery.problems() == []
    assert 0 < n_before < 120  # it was in the middle
    assert capfd.readouterr().out == ""  # ray's words on it would stand between the answers


# ---- what cannot work is told


def test_a_machine_that_cannot_embed_is_named(tmp_path, leaves, cluster):
    folders = class_folders(leaves(n=1, labels=["rust"]))
    with Gallery(tmp_path / "index", create=True, embedder=colour_embedder()) as gallery:
        spread = cluster(cluster_openers.broken)
        with pytest.raises(ClusterError, match=r"of the cluster cannot embed: there is no engine here") as caught:
            list(gallery.enroll(folders, cluster=spread))
        assert caught.value.hint == "Put one in."
        assert socket.gethostname() in caught.value.message
        assert gallery.size() == (0, 0)


def test_a_machine_with_another_embedder_is_refused(tmp_path, leaves, cluster):
    photo = write_leaf(tmp_path / "a.png", (1, 2, 3), 0)
    spread = cluster(cluster_openers.other)
    with pytest.raises(ClusterError, match=r"it has colours@\w+, and the index wants colours@"):
        list(spread.embed_photos(colour_embedder(), [photo]))


@pytest.mark.weights
def test_the_command_line_spreads_the_real_backbone(tmp_path, machines, connected):
    connected.close()  # a process has one connection, and the command line makes its own
    write_samples(tmp_path / "leaves", n_support=3, n_query=1)
    support, query = tmp_path / "leaves" / "support", tmp_path / "leaves" / "query"

    def said(*words):
        result = CliRunner().invoke(main, [*map(str, words), "--json"])
        assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
        return [json.loads(line) for line in result.stdout.splitlines()]

    ray = ("--ray", machines.address)
    assert said("enroll", "--each", support, "--index", "./many", *ray) == said(
        "enroll", "--each", support, "--index", "./one"
    )
    with Gallery(Path("one")) as one, Gallery(Path("many")) as many:
        assert many.about().fingerprint == one.about().fingerprint
        names, vectors = content(one)
        names_of_many, vectors_of_many = content(many)
        assert names_of_many == names
        assert (vectors_of_many * vectors).sum(axis=1).min() > 0.999  # bf16 sums in another order round otherwise
    spread, alone = (said("query", query, "--index", "./many", *words) for words in (ray, ()))
    assert [(each["file"], each["answer"]) for each in spread] == [(each["file"], each["answer"]) for each in alone]


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "http://127.0.0.1:80", ":6379", "host:"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match="is no address of a cluster"):
        Cluster(address)


def test_where_nothing_listens_the_error_says_so(tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ClusterUnreachableError, match=f"nothing answers at {address}"):
            Cluster(address)
        result = CliRunner().invoke(main, ["enroll", "--each", str(tmp_path), "--ray", address, "--index", "./new"])
        assert result.exit_code != 0


def test_what_listens_and_is_no_cluster_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT_S", 1.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ClusterUnreachableError, match=r"did not answer as a cluster within 1 s"),
    ):
        Cluster(f"127.0.0.1:{server.getsockname()[1]}")


def test_without_the_extra_the_error_names_it(leaves, monkeypatch):
    monkeypatch.setattr(extras, "_is_installed", lambda library: library != "ray")
    with pytest.raises(MissingExtraError, match="a Ray cluster needs the extra 'ray': ray is not installed"):
        Cluster("auto")
    folder = leaves(n=1)
    result = CliRunner().invoke(main, ["enroll", "--each", str(folder), "--ray", "auto", "--index", "./new"])
    assert result.exit_code == 1
    assert "pip install 'fewshot[ray]'" in result.stderr
    assert not Path("new").exists()
