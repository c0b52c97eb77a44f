"""The space of the gallery, drawn."""

from statistics import median
from typing import Any

from page.parts import result, stamps, table

PARTS = {"pictures": "The gallery", "labels": "Wrong labels", "large": "Many photos"}


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

{stamps({named: facts[part] for part, named in PARTS.items() if part in facts})}
"""


def _large(facts: dict[str, Any]) -> str:
    return f"{facts['supports']:,} made-up photos, {facts['dim']} dimensions, 5,000 drawn"
