"""How far it goes: a plan to a billion photos and 10,000 questions a second, reckoned from what was measured."""

from statistics import median

from page.parts import result, stamp, table, unquiet

N_SUPPORTS, N_CLASSES, QUESTIONS_PER_S = 1_000_000_000, 100_000, 10_000
DIM, FLOAT = 1280, 4
CORES, MEMORY_GB, BUSY = 16, 128, 0.6
FOR_HNSW = 0.8  # of a shard's memory
CORE_HOUR = 0.04  # in dollars: an assumption, to be replaced by one's own
PROTOTYPES_A_CLASS = 1.5  # an assumption: most classes have one, some have groups
SCAN_GB_PER_S = 10  # of one machine's memory: an assumption
BATCH = 16
CALIBRATED = 4000  # photos asked behind a change


def scale() -> str:
    """The whole page."""
    serving, store, replicas = result("service"), result("shared-store"), result("replicas")
    answers, searched = store["answers"], store["search"]["rows"][-1]
    photo_ms = median(row["service_cpu_ms_an_image"] for row in serving["load"]["rounds"])
    database_ms = answers["database_cpu_ms_a_question"]
    service_cores = QUESTIONS_PER_S * photo_ms / 1000
    service_machines = _machines(service_cores)
    database_cores = QUESTIONS_PER_S * database_ms / 1000
    readers = _machines(database_cores)
    prototypes = N_CLASSES * PROTOTYPES_A_CLASS
    prototypes_gb = prototypes * DIM * FLOAT / 1e9
    row_kb, index_kb = (searched[key] / searched["vectors"] / 1000 for key in ("table_bytes", "index_bytes"))
    rows_tb, index_tb = ((kb * 1000 * N_SUPPORTS) / 1e12 for kb in (row_kb, index_kb))
    shards = -(-int(index_tb * 1000) // int(MEMORY_GB * FOR_HNSW))
    exact_s = searched["exact_ms"] / searched["vectors"] * N_SUPPORTS / 1000
    copy_rate = answers["copy_rows"] / answers["copy_there_s"]
    cores = service_machines * CORES + readers * CORES + shards * CORES
    recall = ", ".join(f"{ef}: {share:.2f}" for ef, share in searched["recall"].items())
    measured = [
        ["a question over HTTP, decoded and embedded", f"{photo_ms:.1f} ms of CPU", "service.json"],
        ["a question, in the database's processes", f"{database_ms:.2f} ms of CPU, 7 statements", "shared-store.json"],
        ["an embedding in the database, its indexes with it", f"{row_kb:.1f} kB", "shared-store.json"],
        ["its HNSW entry, of that", f"{index_kb:.1f} kB", "shared-store.json"],
        [f"recall of 5 by ef_search, {searched['vectors']:,} vectors hardly in classes", recall, "shared-store.json"],
        ["one search among them: exact, HNSW", f"{searched['exact_ms']:.0f} ms, {searched['hnsw_ms']:.0f} ms"]
        + ["shared-store.json"],
        ["copied into a database and compared", f"{copy_rate:,.0f} rows a second", "shared-store.json"],
        ["a dead connection is given up, services answer again", _outage(replicas), "replicas.json"],
    ]
    scan_ms = 1000 * prototypes_gb / SCAN_GB_PER_S / BATCH
    calibrating_gb = service_machines * CALIBRATED * DIM * FLOAT / 1e9
    a_class = N_SUPPORTS // N_CLASSES
    dollars = 1e6 * cores * CORE_HOUR / 3600 / QUESTIONS_PER_S
    plan = [
        ["services", f"{service_cores:,.0f} cores busy", f"{service_machines} machines"]
        + [f"{prototypes_gb:.1f} GB each for {prototypes:,.0f} prototypes, beside 0.3 GB"],
        ["database, questions", f"{database_cores:,.0f} cores busy", f"{readers} machines: a primary and standbys"]
        + [f"{MEMORY_GB} GB each"],
        ["database, embeddings", "little", f"{shards} shards"]
        + [f"{index_tb:.1f} TB of HNSW in memory, {rows_tb:.1f} TB on disk"],
    ]
    noise = unquiet(serving["load"], answers, store["search"], replicas)
    return f"""# How far it goes

Written by `make bench` from `benchmarks/results/`; do not edit by hand. A plan for {N_SUPPORTS:,} enrolled photos in
{N_CLASSES:,} classes and {QUESTIONS_PER_S:,} questions a second. Nothing of that size was built: these are measured
figures of small machines, multiplied. What is assumed and not measured is said.{noise}

## What was measured

{table(["what", "figure", "in benchmarks/results/"], measured)}

## The plan

Machines of {CORES} cores and {MEMORY_GB} GB, kept {BUSY:.0%} busy.

{table(["part", "work", "how many", "memory"], plan)}

**Cost per question**: {1000 * cores / QUESTIONS_PER_S:.0f} ms of a rented core, of which {photo_ms:.0f} ms embed. At
{CORE_HOUR} dollars a core-hour (an assumption) that is {dollars:.2f} dollars a million questions; storage of
{rows_tb:.0f} TB comes on top. Embedding on GPUs would change the first line most; none was measured.

**Services** hold nothing of their own, so they are counted by load alone. Each question compares with every prototype:
{prototypes_gb:.1f} GB read once a batch of {BATCH}, at {SCAN_GB_PER_S} GB/s (an assumption) {scan_ms:.0f} ms of one
machine's memory a question. Above 200,000 prototypes faiss keeps one byte a number, a quarter of that.

**Questions to the database** are reads of one view. Services that only answer can name a standby in `--index`: changes
are then noticed by looking every half second, since a standby passes no notices on, and are seen as late as the standby
is behind (reasoned, not tried). The promise that a next question sees every acknowledged enrolment holds on the primary
alone.

**Embeddings** are searched only to show the nearest photos; labels and probabilities come from prototypes. A service
that asks with `--nearest 0` (`nearest=0` over HTTP) needs no shard in memory at all: the third line of the plan is the
price of showing neighbours. The exact scan, {exact_s:,.0f} s of one core over all of them, is no way at this size. HNSW
must fit into memory, and its `ef_search` must be measured on one's own photos: recall falls as the number grows, and
the figures above are of {searched["vectors"]:,}. That a search over {N_SUPPORTS:,} costs what one over
{N_SUPPORTS // max(1, shards):,} on each of {shards} shards does is arithmetic, not measurement.

## What breaks first

In this order, as an index grows:

1. **Many changes times many services.** Behind each change every service catches up and calibrates anew, from up to
   {CALIBRATED:,} photos. {service_machines} services read up to {calibrating_gb:.1f} GB behind every change: beyond one
   in several seconds that is most of what the database does. Enroll in large changes (`fewshot enroll --each`), or a
   few times an hour. Above 2,000 prototypes fewer are asked, 500 at the least.
2. **Large classes.** A change to a class reads all of its photos to make its prototypes: with {a_class:,} photos
   {a_class * DIM * FLOAT / 1e6:.0f} MB a change, inside the one lock for writing.
3. **One writer.** Changes wait for one another, whatever the number of services: that is what makes generations, and
   the sameness of all answers, simple. Photos a second grow with photos a change, not with machines.
4. **Starting.** Below $FEWSHOT_SUPPORTS_IN_MEMORY a service without its cache reads every embedding once:
   {1_000_000 * DIM * FLOAT / 1e9:.0f} GB at a million. Keep the cache folder on a disk that outlives the service.
5. **Counting.** `fewshot classes` and health count photos, once a change; over {N_SUPPORTS:,} rows that is minutes of
   one server. `fewshot doctor` reads everything, and `fewshot copy` twice: at the measured rate
   {3 * N_SUPPORTS / copy_rate / 86400:,.0f} days. Move such an index with PostgreSQL's own tools.
6. **A shard.** Any of {shards} that is away makes questions with neighbours fail. Each wants a standby, which doubles
   that line.

{stamp(answers)}
"""


def _machines(cores: float) -> int:
    return max(2, -(-int(cores) // int(CORES * BUSY)))  # one may fail


def _outage(replicas: dict) -> str:
    cut, down = replicas.get("replica cut off"), replicas["database killed"]
    said = ""
    if cut is not None and cut["until_it_says_503_s"] is not None:
        said = f"{cut['until_it_says_503_s']:.1f} s, "
    return f"{said}{max(down['from_start_to_first_answer_s'].values()):.1f} s behind the database's start"
