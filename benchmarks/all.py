"""Every benchmark in turn, then docs/benchmarks.md from their results (`make bench`).

python benchmarks/all.py [--only-page]
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
COMMANDS = (
    ["protocol.py"],
    ["protocol.py", "--plain"],
    ["protocol.py", "--backbone", "lite0"],
    ["hard_cases.py"],
    ["honesty.py"],
    ["speed.py"],
    ["kills.py"],
    ["constants.py"],
    ["losses.py"],
    ["epoch_times.py"],
    ["studies.py"],
    ["spaces.py"],
    ["service.py"],
    ["watch_demo.py"],
    ["watch_demo.py", "--backbone", "lite0"],
)


def result(name: str) -> dict[str, Any]:
    """A kept result."""
    return dict(json.loads((HERE / "results" / f"{name}.json").read_text()))


def stamp(facts: dict[str, Any]) -> str:
    """Where and when a result was measured."""
    machine = facts["machine"]
    features = ", ".join(machine["features"]) or "no vector extensions known"
    return f"{machine['cores']} cores of {machine['cpu']} ({features}); commit {facts['commit']}, {facts['date']}."


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers right-aligned."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def accuracy() -> str:
    """The protocol's section."""
    shipped, plain, frozen = (
        result(f"protocol-{name}-f32") for name in ("plants-lite0", "plants-lite0-plain", "lite0")
    )
    rows = [
        [name, str(row["n"]), *(f"{row[key]:.1f}" for key in ("top1", "top3", "within", "unknown"))]
        + [f"{other['sets'][name]['top1']:.1f}" for other in (plain, frozen)]
        for name, row in shipped["sets"].items()
    ]
    share, n = _overall(shipped["sets"])
    headings = ["queries", "photos", "top-1", "top-3", "within the crop", "called unknown", "not whitened", "ImageNet"]
    return f"""## Accuracy

`python benchmarks/protocol.py`: through the command line alone, with the shipped backbone plants-lite0 (whitened,
several prototypes where a class's photos form groups, in the index's own metric). *Not whitened* (`--plain`) is the
same without the backbone's statistics, *ImageNet* (`--backbone lite0`) the network it started from. The gallery has 50
classes; every query is answered among all of them, in percent. The 15 novel classes were never trained on. Hard cases,
x: photos from another source than any enrolled; y: photos that other networks found hardest in their class. "+ field":
after enrolling 10 field photos into each of six classes; nothing is trained between the two. Top-1 counts the first
match, whether or not the answer is `unknown`.

{table(headings, rows)}

All {n:,} queries (base, novel, hard) together: {share:.2f} %. docs/log.md has the steps apart: one mean prototype a
class, whitened, has base 94.8, novel 80.9, hard 36.7 and hard + field 43.3; a peer library's cosine to the mean
prototype of the ImageNet network 80.8, 70.5, 16.0 and 28.0.

{stamp(shipped)}
"""


def peers() -> str:
    """The section on peers."""
    facts = result("hard-cases")
    names = list(next(iter(facts["table"].values())))
    rows = [
        [
            method,
            *(
                f"{row[n]['top1']['share']:.1f} ({row[n]['top1']['low']:.0f}-{row[n]['top1']['high']:.0f}), "
                f"{row[n]['top3']['share']:.0f}, {row[n]['within']['share']:.0f}"
                for n in names
            ),
        ]
        for method, row in facts["table"].items()
    ]
    return f"""## Against peers, on the same embeddings

`python benchmarks/hard_cases.py`: the same gallery and queries. `fewshot` rows go through an index; the others get the
same photos' embeddings, whitened where the backbone brings statistics, in the same run: easyfsl's prototypical networks
and SimpleShot, pytorch-metric-learning's nearest neighbour, scikit-learn's nearest centroid and logistic regression,
and the plant-disease study's way, two linear layers trained by cross-entropy on the enrolled photos. Each cell: top-1
with its 95 % interval, top-3, top-1 within the crop.

{table(["method, backbone", *names], rows)}

![Accuracy against the number of photos enrolled](../benchmarks/results/hard-cases.png)

Accuracy against the number of photos enrolled of each class, with {next(iter(facts["table"])).split(", ")[1]}.
Enrolling ten photos into a class of this index and asking one takes {facts["seconds_beyond_embedding"]:.2f} s beyond
embedding them (median of six classes).

{stamp(facts)}
"""


def _overall(sets: dict[str, Any]) -> tuple[float, int]:
    """Top-1 over base, novel and hard together, in percent, and of how many photos."""
    rows = [sets[name] for name in ("base", "novel", "hard")]
    n = sum(row["n"] for row in rows)
    return sum(row["top1"] * row["n"] for row in rows) / n, n


def speed() -> str:
    """The section on speed."""
    facts = result("speed")
    cold, bulk, enrol = facts["cold_start"], facts["bulk"], facts["enrolment"]
    rows = [
        ["cold `fewshot query` of one photo", f"{cold['query_one_photo_s']:.2f} s", "`import torch, timm`"]
        + [f"{cold['import_torch_timm_s']:.2f} s", f"{cold['ratio']:.2f} x the time"],
        [f"`fewshot query` of {bulk['n_photos']} photos, whole process", f"{bulk['ours_images_per_s']:.0f} images/s"]
        + ["plain script", f"{bulk['plain_images_per_s']:.1f} images/s", f"{bulk['ratio']:.1f} x the images/s"],
        ["the same without start-up", f"{bulk['ours_steady_images_per_s']:.0f} images/s", "plain script"]
        + [f"{bulk['plain_steady_images_per_s']:.1f} images/s", f"{bulk['steady_ratio']:.1f} x the images/s"],
        ["enrolling 20 photos, index of 10,000 classes", f"{enrol['into_10000_classes_s']:.2f} s"]
        + ["index of 10 classes", f"{enrol['into_10_classes_s']:.2f} s", f"{enrol['ratio']:.2f} x the time"],
    ]
    return f"""## Speed

`python benchmarks/speed.py`: whole processes, each pair run in turn, medians of {facts["n_runs"]}. The plain script is
what a user would write without this project (PIL, timm in float32 with batches of 32, scikit-learn's nearest
centroid; `benchmarks/plain_script.py`); the time it needs to enroll is taken off, as the index is there already for
ours. The index of 10,000 classes holds {enrol["supports_a_class"]} photos a class.

{table(["", "fewshot", "against", "", "ratio"], rows)}

`fewshot --help` answers in {cold["help_s"]:.2f} s. The most memory that the query of one photo held was
{cold["query_one_photo_peak_mb"]:.0f} MB; that of {bulk["n_photos"]} photos {bulk["ours_peak_mb"]:.0f} MB (plain script:
{bulk["plain_peak_mb"]:.0f} MB). Top-1 among the 15 novel classes on these photos: {bulk["ours_top1"]:.1f} % (plain
script: {bulk["plain_top1"]:.1f} %).

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


def losses() -> str:
    """The section on the six losses."""
    facts = result("losses")
    rows = [
        [f"{row['loss']}, {row['normalisation']}", f"{row['head']:.1f}", f"{median(row['epoch_seconds']):.1f}"]
        + [f"{row[name]:.1f}" for name in ("base", "novel", "hard")]
        for row in facts["cells"]
    ]
    headings = ["loss, normalisation", "head", "epoch, s", "base", "novel", "hard"]
    size = ", ".join(f"{key} {value}" for key, value in facts["size"].items())
    return f"""## Six losses, two normalisations

`python benchmarks/losses.py`: the plant-disease study's table on an installed backbone, at a size that fits an hour
({size};
the rest as in configs/doctorp-stage2.yaml, every layer trained). *Head*: accuracy of the two linear layers on
base/test, among 35 classes. *Base*, *novel*, *hard*: the backbone in an index of 50 classes, plain cosine, top-1.
Epoch times are of a machine that other work shared, and cannot be compared with each other. So small a training shows
how the losses start, not where they end.

{table(headings, rows)}

{stamp(facts)}
"""


def honesty() -> str:
    """The section on what an index knows of itself."""
    facts = result("honesty")
    told = facts["rejection"]
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

*Probability and sets*: all 50 classes enrolled, `--coverage {facts["coverage"]}`. Base queries are asked beside photos
that the backbone was trained on, whose leave-one-out flatters it: their sets are too small. A user's own classes are
like the novel ones.

{table(["queries", "photos", "expected calibration error", "labels a set", "covered (95 %)"], rows)}

{stamp(facts)}
"""


def epoch_times() -> str:
    """The section on what an epoch costs."""
    facts = result("epoch-times")
    rows = [[row["loss"], f"{row['epoch_s']:.1f}", f"{row['ratio']:.2f} x"] for row in facts["cells"]]
    size = facts["size"]
    return f"""## What an epoch costs

`python benchmarks/epoch_times.py`: {facts["n_photos"]} photos at {size["image_size_px"]} px with {size["backbone"]},
every layer trained, batches of {size["batch_size"]} ({size["photos_per_class"]} photos a class where the loss compares
photos). One batch of each loss in turn, {facts["rounds"]} rounds; the ratio is the median over the rounds. The
plant-disease study had 1.7 to 3.2 times for losses that compare photos, whose pairs and triplets it embedded apart.

{table(["loss", "epoch, s", "against cross-entropy"], rows)}

{stamp(facts)}
"""


def studies() -> str:
    """The section on the other three studies."""
    facts = result("studies")
    rows = []
    for row in facts["rows"]:
        test, name = row["test"], f"{row['study']}{', ' + row['cell'] if row['cell'] else ''}, {row['backbone']}"
        accuracy = f"{test['accuracy']['share']:.3f} ({test['accuracy']['low']:.3f} to {test['accuracy']['high']:.3f})"
        others = [f"{test[key]:.3f}" for key in ("precision", "recall", "f1")]
        prototype = f"{row['prototype']['top1']['share']:.3f}"
        rows.append([name, str(row["n_test"]), accuracy, *others, prototype, f"{row['training_s'] / 60:.0f}"])
    headings = ["recipe", "test photos", "accuracy (95 %)", "precision", "recall", "F1", "nearest prototype", "min"]
    chosen = "; ".join(dict.fromkeys(f"{row['study']}: `--only {row['only']}`" for row in facts["rows"]))
    return f"""## The other studies' recipes

`python benchmarks/studies.py`: the recipes on the photographs here, with EfficientNet-Lite0 (*lite0*:
ImageNet; *plants-lite0*: the shipped one, frozen, whose training saw other bell pepper photos of the same collection)
in place of the studies' networks, whose weights are not here ({chosen}).

{table(headings, rows)}

{stamp(facts)}
"""


def spaces() -> str:
    """The section on the pictures of the space."""
    facts = result("spaces")
    drawn, labels = facts["pictures"], facts["labels"]
    by_name = {space["name"]: space for space in drawn["spaces"]}
    measures = [
        ("nearest class is the photo's own", "class_agreement"),
        ("the same, the 35 classes that plants-lite0 was trained on", "class_agreement_trained"),
        ("the same, the 15 novel classes", "class_agreement_novel"),
        ("nearest other photo is of the same class", "neighbour_agreement"),
        ("silhouette", "silhouette"),
    ]
    rows = [[what, *(f"{space[key]:.3f}" for space in by_name.values())] for what, key in measures]
    rows += [
        [f"trustworthiness, {view.replace('_', ' ')}", *(f"{s['trustworthiness'][view]:.3f}" for s in by_name.values())]
        for view in drawn["spaces"][0]["trustworthiness"]
    ]
    wrong = []
    for name, found in labels["backbones"].items():
        draws = found["draws"]
        n_planted = labels["n_wrong"] * len(draws)
        sums = {key: sum(draw[key] for draw in draws) for key in draws[0] if key != "ranks"}
        wrong.append(
            [name, f"{sums['found']} of {n_planted}", f"{sums['right_class_named']} of {n_planted}"]
            + [f"{sums['found_from_novel_class']} of {sums['from_novel_class']}"]
            + [f"{median(draw['others_named'] for draw in draws):g}", str(found["suspicious_before"])]
        )
    drawings = [(f"the gallery, {drawn['spaces'][0]['photos']} photos", drawn["cost"])]
    if "large" in facts:  # `--only large` measures it apart
        drawings.append((_large(facts["large"]), facts["large"]))
    costs = [
        [what, f"{cost['wall_s']:.0f} s", f"{cost['cpu_s']:.0f} s", f"{cost['peak_mb'] / 1000:.1f} GB"]
        + [f"{cost['load_before']:.1f}"]
        for what, cost in drawings
    ]
    share = drawn["shared_neighbours"]
    return f"""## The space

`python benchmarks/spaces.py`: the protocol's gallery (50 classes) as `fewshot project --compare` measures it, each
photo asked as if it were not enrolled. Of a photo's {share["k"]} nearest neighbours the two share
{share["share"]:.0%}. [projection.md](projection.md) shows the pictures.

{table(["", *by_name], rows)}

Wrong labels: {labels["n_wrong"]} photos at a time are moved into other classes of a copy, and `fewshot inspect` (as the
report of `fewshot project` is) is asked which photos look mislabelled. *Novel*: of those, the photos of classes that
plants-lite0 was not trained on. *Others named*: photos that keep their own label, the median of the copies; *before*:
named in the gallery as it is, where nobody knows of a wrong label.

{table(["backbone", "found", "right class named", "novel, found", "others named", "before"], wrong)}

Cost of everything that `fewshot project` writes. CPU time is of all its processes together, memory the most that they
held together; the load is that of the machine, by other work, before the start (2: both cores taken).

{table(["", "wall", "CPU", "memory", "load"], costs)}

{stamp(facts)}
"""


def _large(facts: dict[str, Any]) -> str:
    return f"{facts['supports']:,} made-up photos, {facts['dim']} dimensions, 5,000 drawn"


def watching() -> str:
    """The section on the folder watcher."""
    results = [result(f"watch-{name}") for name in ("plants-lite0", "lite0")]
    scenes, runs = [], []
    for each in results:
        for label, row in each["by_label"].items():
            counts = [str(row[key]) for key in ("photos", "label_right", "units_right", "control_room")]
            scenes.append([f"{each['backbone']}, {label}", *counts])
        names = ("kills", "photos_unanswered", "answered_twice", "posted", "posted_again_under_the_same_key")
        waits = each["seconds_from_file_to_answer"]
        runs.append(
            [each["backbone"], *(str(each[name]) for name in names)]
            + [f"{each['bad_photos_reported']} of {each['bad_photos']}", str(each["coordinates_right"])]
            + [f"{waits['median']:.1f}, {waits['p95']:.1f}"]
        )
    headings = ["run", "kills", "unanswered", "twice", "posted", "posted again, same key", "bad photos reported"]
    headings += ["coordinates right", "s from file to answer: median, p95"]
    return f"""## Watching a folder

`python benchmarks/watch_demo.py`: the emergency scenes, 70 frames of each class enrolled and {results[0]["photos"]}
other frames brought one by one into a folder that `fewshot watch` watches with configs/routes-emergency.yaml, under
names with coordinates, some written in pieces. It is killed with SIGKILL at random moments of the second half; its
receiver is down for three quarters of the time. The settling time of 0.3 s is in the seconds, which count what came
before the first kill.

{table(headings, runs)}

Nothing is trained on these scenes: *plants-lite0* knows plant diseases and *lite0* ImageNet. Frames of one video may
stand on both sides, and some accidents hardly differ from normal traffic. *Control room*: ambiguous or unknown, so that
somebody looks first.

{table(["backbone, scene", "photos", "label right", "right units sent", "control room"], scenes)}

{stamp(results[0])}
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


def service() -> str:
    """The section on the service."""
    facts = result("service")
    load, over, start = facts["load"], facts["overload"], facts["start"]
    rows = [
        [f"round {number}", f"{row['service_images_per_s']:.1f}", f"{row['query_images_per_s']:.1f}"]
        + [f"{row['ratio']:.2f}", f"{row['steady_ratio']:.2f}"]
        + [f"{row['service_cpu_ms_an_image']:.1f}", f"{row['query_cpu_ms_an_image']:.1f}"]
        for number, row in enumerate(load["rounds"], 1)
    ]
    headings = ["", "service, images/s", "`query`, images/s", "ratio", "without start-up"]
    headings += ["service, CPU ms an image", "`query`, CPU ms an image"]
    statuses = ", ".join(f"{n:,} times {status}" for status, n in sorted(load["statuses"].items()))
    asked = ", ".join(f"{n:,} times {status}" for status, n in sorted(over["statuses"].items()))
    failed = ", ".join(f"{n} {name}" for name, n in sorted(over["failures"].items())) or "none"
    enrolled = ", ".join(f"{n} times {status}" for status, n in sorted(over["enrolments"].items()))
    memory = ", ".join(f"{megabytes:.0f}" for megabytes in load["memory_mb"])
    busy = max(facts["load_average"])
    shared = (
        f"Other work wanted {busy:.0f} processors of the machine meanwhile: every figure in seconds is too long.\n\n"
    )
    first, last = start["serve_s"][0], start["serve_s"][-1]
    return f"""## The service

`python benchmarks/service.py`: {load["clients"]} clients ask `fewshot serve` one photo at a time for
{load["seconds"]:.0f} s a round; before each round `fewshot query FOLDER` answers the same {load["photos"]} photos. The
clients run on the same cores.

{table(headings, rows)}

Answers: {statuses}. Half of them within {load["p50_s"]:.2f} s, 99 % within {load["p99_s"]:.2f} s;
{load["photos_a_batch"]:.1f} photos an engine batch. Memory after the warm-up and after each round: {memory} MB.

Overload, {over["clients"]} clients for {over["seconds"]} s with photos of {over["megapixels"]:.0f} megapixels
({over["photo_mb"]:.1f} MB): {asked}; failed connections: {failed}. One client enrolled photos meanwhile ({enrolled});
then the service was killed (SIGKILL) right behind an acknowledgement: of {over["acknowledged"]} acknowledged photos
{over["lost"]} were lost. Memory: at most {over["peak_memory_mb"]:.0f} MB. Behind the load a photo was answered in
{over["answer_after_s"]:.2f} s.

From the command to the first answer: {start["median_s"]:.2f} s ({first:.2f} to {last:.2f}, {start["n"]} times);
`fewshot query` of the same photo, in turn with it: {median(start["query_s"]):.2f} s.

{shared if busy > 3 else ""}{stamp(facts)}
"""


def main() -> None:
    """Run all, or only write the page."""
    if "--only-page" not in sys.argv:
        for command in COMMANDS:
            print(f"\n$ python benchmarks/{' '.join(command)}", flush=True)
            subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], check=True)
    head = "# Benchmarks\n\nWritten by `make bench` from `benchmarks/results/`; do not edit by hand.\n"
    sections = (accuracy, peers, honesty, losses, epoch_times, studies, speed, spaces, safety, service, watching)
    PAGE.write_text("\n".join([head, *(section() for section in (*sections, constants))]))
    print(f"written: {PAGE.name}")


if __name__ == "__main__":
    main()
