"""Accuracy by the protocol, against peers, and what an index knows of itself."""

from typing import Any

from page.parts import peer_tables, result, stamp, stamps, table


def accuracy() -> str:
    """The protocol's section."""
    shipped, best, plain, frozen = (
        result(f"protocol-{name}-f32") for name in ("plants-lite0", "plants-lite0-best", "plants-lite0-plain", "lite0")
    )
    rows = [
        [name, str(row["n"]), *(f"{row[key]:.1f}" for key in ("top1", "top3", "within", "unknown"))]
        + [f"{other['sets'][name]['top1']:.1f}" for other in (best, plain, frozen)]
        for name, row in shipped["sets"].items()
    ]
    share, n = _overall(shipped["sets"])
    headings = ["queries", "photos", "top-1", "top-3", "within the crop", "called unknown"]
    headings += ["best", "not whitened", "ImageNet"]
    return f"""## Accuracy

`python benchmarks/protocol.py`: through the command line alone, with the shipped backbone plants-lite0 (whitened,
several prototypes where a class's photos form groups, in the index's own metric). *Best* (`--quality best`) looks at
every photo in five views, at five times the computing. *Not whitened* (`--plain`) is the same without the backbone's
statistics, *ImageNet* (`--backbone lite0`) the network it started from. The gallery has 50 classes; every query is
answered among all of them, in percent. The 15 novel classes were never trained on. Hard cases, x: photos from another
source than any enrolled; y: photos that other networks found hardest in their class. "+ field": after enrolling 10
field photos into each of six classes; nothing is trained between the two. Top-1 counts the first match, whether or not
the answer is `unknown`.

{table(headings, rows)}

All {n:,} queries (base, novel, hard) together: {share:.2f} %. One mean prototype a class, by cosine and whitened, is in
[the backbone's card](../fewshot/weights/plants-lite0/README.md).

{stamps({"Shipped": shipped, "Best": best, "Not whitened": plain, "ImageNet": frozen})}
"""


def _overall(sets: dict[str, Any]) -> tuple[float, int]:
    """Top-1 over base, novel and hard together, in percent, and of how many photos."""
    rows = [sets[name] for name in ("base", "novel", "hard")]
    n = sum(row["n"] for row in rows)
    return sum(row["top1"] * row["n"] for row in rows) / n, n


def peers() -> str:
    """The section on peers."""
    facts = result("hard-cases")
    return f"""## Against peers, on the same embeddings

`python benchmarks/hard_cases.py`: the same gallery and queries. `fewshot` rows go through an index; the others get the
same photos' embeddings, whitened where the backbone brings statistics, in the same run: easyfsl's prototypical networks
and SimpleShot, pytorch-metric-learning's nearest neighbour, scikit-learn's nearest centroid and logistic regression
(with its own C of 1, and with 100), and the plant-disease study's way, two linear layers trained by cross-entropy on
the enrolled photos. The head and the regressions are trained anew for every photo that is added or taken out;
everything else answers at once. "More photos": ten field photos into each of six classes; strata x and y as above.

{peer_tables(facts["table"])}
![Accuracy against the number of photos enrolled](../benchmarks/results/hard-cases.png)

Accuracy against the number of photos enrolled of each class, with {next(iter(facts["table"])).split(", ")[1]}.
Enrolling ten photos into a class of this index and asking one takes {facts["seconds_beyond_embedding"]:.2f} s beyond
embedding them (median of six classes{f"; {apart}" if (apart := facts.get("seconds_apart")) else ""}).

{stamp(facts)}
"""


def honesty() -> str:
    """The section on what an index knows of itself."""
    facts = result("honesty")
    told, streets = facts["rejection"], facts["no_plant"]["unknown"]
    rows = [
        [name, str(row["n"]), f"{row['calibration_error']:.3f}", f"{row['set_size']:.2f}"]
        + [f"{row['covered']['share']:.3f} ({row['covered']['low']:.3f} to {row['covered']['high']:.3f})"]
        for name, row in facts["promises"].items()
    ]
    return f"""## Does it know what it does not know?

`python benchmarks/honesty.py`. *Unknown*: only the base classes are enrolled; queries of the novel classes are
strangers. Familiarity tells them from queries of the base classes with an area under the ROC curve of
{told["auroc"]:.3f}; at the threshold that lets 95 % of the known in, {100 * told["fpr95"]:.1f} % of the strangers come
in. The index's own threshold rejects {100 * told["strangers_rejected"]:.1f} % of the strangers and
{100 * told["known_rejected"]:.1f} % of the known.

*No plant*: of {streets["n"]} video frames of streets and fires, asked of all 50 classes, {100 * streets["share"]:.1f} %
are called unknown ({100 * streets["low"]:.0f} to {100 * streets["high"]:.0f}); familiarity tells them from queries of
the novel classes with an area of {facts["no_plant"]["auroc"]:.3f}.

*Probability and sets*: all 50 classes enrolled, `--coverage {facts["coverage"]}`. Base queries are asked beside photos
that the backbone was trained on, whose leave-one-out flatters it: their sets are too small. A user's own classes are
like the novel ones.

{table(["queries", "photos", "expected calibration error", "labels a set", "covered (95 %)"], rows)}

{stamp(facts)}
"""
