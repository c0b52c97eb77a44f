"""The three studies on the photographs here, by their recipes, with an installed backbone where theirs has no weights.

Finished trainings are kept in --out and not run again. With NAMEs, the kept figures of the others stay.

    python benchmarks/studies.py [NAME...] [--data DIR] [--out DIR]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import FEWSHOT, RESULTS, ROOT, data_folder, run, whence, write

PATCHES = "backbone=lite0,frozen_parts=3,frozen_batch_norm=true,learning_rate=5e-4,schedule=cosine"
# name: recipe, folder of its photos beside the protocol's, what is replaced in it, and how many trainings it is
STUDIES = {
    "tswv": ("tswv", "pepper", "backbone=lite0", 1),
    "tswv-plants": ("tswv", "pepper", "backbone=plants-lite0,epochs=0,head=mlp,head_epochs=50", 1),
    "emergency": ("emergency", "scenes", "backbone=lite0", 1),
    "emergency-frozen": (
        "emergency",
        "scenes",
        "backbone=lite0,epochs=0,frozen_parts=-1,head=mlp,head_epochs=100,head_learning_rate=1e-3,keep=last,validation_share=0",
        1,
    ),
    "defungi": (
        "defungi",
        "defungi",
        f"{PATCHES},image_size_px=160,test_image_size_px=224,test_crop_pct=1.0,crop_min_share=0.5,warmup_epochs=0.5,"
        "epochs=12",
        2,
    ),
    "defungi-baselines": ("defungi-baselines", "defungi", "", 6),
}


def row(study: str, only: str, results: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of one training."""
    epochs = results["backbone_epochs"]
    return {
        "study": study,
        "only": only,
        "cell": results["cell"],
        "backbone": results["backbone"],
        "weights": results["first_weights"],
        "n_test": results["n_photos"]["test"],
        "test": {name: results["test"][name] for name in ("accuracy", "precision", "recall", "f1")},
        "prototype": results["prototype"],
        "n_epochs": len(epochs),
        "training_s": sum(epoch["seconds"] for epoch in [*epochs, *results["head_epochs"]]),
    }


def main() -> None:
    """Train what is not trained, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(STUDIES)}; all by default")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    given = parser.parse_args()
    beside = data_folder(given.data).parent
    here = whence()
    rows: list[dict[str, Any]] = []
    for study in given.names or STUDIES:
        name, folder, only, n_cells = STUDIES[study]
        out = given.out / study
        recipe = ROOT / f"configs/{name}.yaml"
        if len(list(out.glob("**/results.json"))) < n_cells:
            run(FEWSHOT, "train", recipe, "--data", beside / folder, "--out", out, *(("--only", only) if only else ()))
        found = [json.loads(file.read_text()) for file in sorted(out.glob("**/results.json"))]
        rows += [{"name": study, **row(name, only, results), "whence": here} for results in found]
    for each in rows:
        figures = "  ".join(f"{name} {share(each['test'][name]):.3f}" for name in each["test"])
        print(f"{each['study']:10} {each['cell']:34} {each['n_test']:5} photos  {figures}  {each['training_s']:.0f} s")
    kept = json.loads((RESULTS / "studies.json").read_text())["rows"] if given.names else []
    rows += [each for each in kept if each["name"] not in given.names]
    rows.sort(key=lambda each: list(STUDIES).index(each["name"]))
    write("studies", {"rows": rows})


def share(value: Any) -> float:
    """A figure with or without its interval."""
    return float(value["share"] if isinstance(value, dict) else value)


if __name__ == "__main__":
    main()
