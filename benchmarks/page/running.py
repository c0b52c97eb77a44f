"""Speed, safety, and the numbers in the code."""

from page.parts import kept, result, stamp, table

WANTED_BULK = 8  # times the plain script's photos a second


def speed() -> str:
    """The section on speed."""
    facts = result("speed")
    bulk, enrol = facts["bulk"], facts["enrolment"]
    rows = [
        [f"`fewshot query` of {bulk['n_photos']} photos, whole process", f"{bulk['ours_images_per_s']:.0f} images/s"]
        + ["plain script", f"{bulk['plain_images_per_s']:.1f} images/s", f"{bulk['ratio']:.1f} x the images/s"],
        ["the same without start-up", f"{bulk['ours_steady_images_per_s']:.0f} images/s", "plain script"]
        + [f"{bulk['plain_steady_images_per_s']:.1f} images/s", f"{bulk['steady_ratio']:.1f} x the images/s"],
        ["enrolling 20 photos, index of 10,000 classes", f"{enrol['into_10000_classes_s']:.2f} s"]
        + ["index of 10 classes", f"{enrol['into_10_classes_s']:.2f} s", f"{enrol['ratio']:.2f} x the time"],
    ]
    # Before it was noted, the benchmark ran where bfloat16 is native.
    precision = {"bf16": "bfloat16", "f32": "float32"}[bulk.get("precision", "bf16")]
    limit = ""
    if bulk["ratio"] < WANTED_BULK and (embedding := kept("embedding")):
        alone = max(max(row["engine_alone"].values()) for row in embedding["many"])
        limit = f"""
The engine alone makes {alone:.0f} photos/s here from pixels in memory (below, in another run), which is
{alone / bulk["plain_steady_images_per_s"]:.1f} x the plain script. {WANTED_BULK} x was wanted of the whole program.
"""
    return f"""## Speed

`python benchmarks/speed.py`: whole processes, each pair run in turn, medians of {facts["n_runs"]}. The plain script is
what a user would write without this project (PIL, timm in float32 with batches of 32, scikit-learn's nearest
centroid; `benchmarks/plain_script.py`); the time it needs to enroll is taken off, as the index is there already for
ours. fewshot computes in {precision}, which a new index takes by itself on this processor. The index of 10,000 classes
holds {enrol["supports_a_class"]} photos a class.

{table(["", "fewshot", "against", "", "ratio"], rows)}

The most memory that the query of {bulk["n_photos"]} photos held was {bulk["ours_peak_mb"]:.0f} MB (plain script:
{bulk["plain_peak_mb"]:.0f} MB). Top-1 among the 15 novel classes on these photos: {bulk["ours_top1"]:.1f} % (plain
script: {bulk["plain_top1"]:.1f} %).
{limit}
{stamp(facts)}
"""


def safety() -> str:
    """The section on kills."""
    facts = result("kills")
    return f"""## Killed while enrolling

`python benchmarks/kills.py`: SIGKILL at random moments of `fewshot enroll --each`, {facts["kills"]} times;
{facts["kills_between_two_classes"]} of them left some classes in and some out. After each, the index was opened and
checked whole: {facts["indexes_damaged"]} indexes damaged, {facts["half_classes"]} classes half there.

{stamp(facts)}
"""


def constants() -> str:
    """The section on the numbers in the code."""
    facts = result("constants")
    bits = list(next(iter(facts["near_copies"].values())))
    found = [[name, *(f"{row[n]:.0f}" for n in bits)] for name, row in facts["near_copies"].items()]
    false = [f"different photos, pairs of {facts['n_pairs']:,}", *(str(facts["false_pairs"][n]) for n in bits)]
    return f"""## How a number in the code was chosen

`python benchmarks/constants.py`, on the protocol's `base/train` photos alone. Near-copies: photos whose 128-bit
difference hashes differ in at most 10 bits. Percent of copies found:

{table(["copy", *(f"{n} bits" for n in bits)], [*found, false])}

{stamp(facts)}
"""
