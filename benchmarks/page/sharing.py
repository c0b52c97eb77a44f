"""One index for many machines: equal answers, replicas that die, search in the database."""

from page.parts import result, stamp, stamps, table, unquiet


def shared_store() -> str:
    """The section on PostgreSQL: the protocol's answers, and what search there finds."""
    facts = result("shared-store")
    found = facts["answers"]
    counts = ("asked", "same_label", "same_matches", "identical")
    rows = [[name, *(str(row[key]) for key in counts)] for name, row in found["sets"].items()]
    searched = []
    for row in facts["search"]["rows"]:
        recall = ", ".join(f"{ef}: {share:.3f}" for ef, share in row["recall"].items())
        searched.append(
            [f"{row['vectors']:,} vectors, spread {row['spread']}", recall]
            + [f"{row[key]:.1f}" for key in ("exact_ms", "hnsw_ms", "build_s")]
            + [f"{row[key] / row['vectors'] / 1000:.1f}" for key in ("table_bytes", "index_bytes")]
        )
    headings = ["made-up embeddings", "recall of 5 by ef_search", "exact scan, ms", "HNSW, ms", "building, s"]
    headings += ["on disk, kB a vector", "HNSW of that, kB"]
    ms = found["question_ms"]
    noise = unquiet(found, facts["search"])
    return f"""## One index in PostgreSQL

`python benchmarks/shared_store.py`: the protocol's gallery ({found["supports"]} photos) in a folder, copied into a
PostgreSQL and back ({found["copy_rows"]:,} rows, each compared: {found["copy_there_s"]:.1f} s there,
{found["copy_back_s"]:.1f} s back, where it is {"the same" if found["back_is_the_same"] else "NOT the same"}). The same
embeddings are asked of both. *Identical*: every label, probability, similarity and nearest photo, to the last digit.

{table(["query set", "asked", "same label", "same matches", "identical"], rows)}

A question alone, beyond its embedding: {ms["folder"]:.1f} ms from the folder, {ms["postgresql"]:.1f} ms from the
database on the same machine, whose processes spend {found["database_cpu_ms_a_question"]:.2f} ms of CPU on it.{noise}

Search in the database, for more photos than memory holds. *Spread* is how far photos lie from their class's mean, in
parts of the distance between classes: the larger, the less one photo's nearest stand out.

{table(headings, searched)}

{stamps({"Answers": found, "Search": facts["search"]})}
"""


def replicas() -> str:
    """The section on three services over one database."""
    facts = result("replicas")
    spread = facts["spread_s"]
    rows = []
    for name in ("replica killed", "database killed", "replica cut off"):
        if name not in facts:
            continue
        row = facts[name]
        answers = ", ".join(f"{what}: {n}" for what, n in row["answers"].items())
        rows.append(
            [name, answers]
            + [f"{row[key]:.1f}" for key in ("longest_without_an_enrolment_s", "longest_without_an_answer_s")]
            + [f"{row['slowest_request_s']:.1f}", _recovery(row)]
        )
    headings = ["", "what clients met", "longest without an enrolment, s", "without an answer, s"]
    headings += ["slowest request, s", "recovery"]
    operations = ", ".join(f"{name}: {n}" for name, n in facts["operations"].items())
    noise = unquiet(facts)
    return f"""## Three services over one database

`python benchmarks/replicas.py`: three `fewshot serve` over one PostgreSQL, on the same cores as two clients that enroll
and three that ask, each through whichever service it comes to. Told 503, or refused a connection, a client goes to the
next. One service is killed (SIGKILL); the database is killed (SIGKILL, all its processes) and started again; one
service is cut off from the database ({facts["cut"]}), so that packets vanish and nobody is told.

{table(headings, rows)}

Acknowledged enrolments: {facts["acknowledged"]}; lost: {facts["lost"]}; doubled: {facts["doubled"]}. Afterwards all
services {"give" if facts["replicas_agree"] else "do NOT give"} the same answers, and `fewshot doctor` finds
{len(facts["problems"])} problems. Statuses other than 200, 201 and 503: {len(facts["other_statuses"])}. Operations:
{operations}.

An enrolment through one service was found by the first question to another in {spread["by_the_first_question"]} of
{spread["n"]} cases (a question took {spread["median"]:.2f} s in the middle, {spread["longest"]:.2f} s at most).{noise}

{stamp(facts)}
"""


def _recovery(row: dict) -> str:
    if "until_it_says_503_s" in row:
        first = row["until_it_says_503_s"]
        said = "never 503" if first is None else f"503 after {first:.1f} s"
        return f"cut for {row['cut_s']:.0f} s, {said}; answers {row['from_link_to_first_answer_s']:.1f} s behind it"
    back = row["from_start_to_first_answer_s"]
    if isinstance(back, dict):
        return f"down {row['down_s']:.1f} s, answers {min(back.values()):.1f} to {max(back.values()):.1f} s behind it"
    return f"answers {back:.1f} s after its start"
