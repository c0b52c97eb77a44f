"""Every benchmark in turn, then docs/benchmarks.md and docs/scale.md from their results (`make bench`).

python benchmarks/all.py [--only-page]
"""

import subprocess
import sys
from pathlib import Path

from page.accuracy import accuracy, honesty, peers
from page.installing import cold_start, installing
from page.limits import embedding, growth, int8, large_index, memory, profile, rivals, search
from page.running import constants, safety, speed
from page.scale import scale
from page.scaling import scaling
from page.serving import service, watching
from page.sharing import replicas, shared_store
from page.spaces import spaces
from page.training import epoch_times, losses, studies

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
COMMANDS = (
    ["protocol.py"],
    ["protocol.py", "--quality", "best"],
    ["protocol.py", "--plain"],
    ["protocol.py", "--backbone", "lite0"],
    ["hard_cases.py"],
    ["honesty.py"],
    ["speed.py"],
    ["cold_start.py"],
    ["install.py"],
    ["embedding.py"],
    ["int8.py"],
    ["search.py"],
    ["large_index.py"],
    ["memory.py"],
    ["rivals.py"],
    ["profile_hot_path.py"],
    ["growth.py"],
    ["kills.py"],
    ["constants.py"],
    ["losses.py"],
    ["epoch_times.py"],
    ["studies.py"],
    ["spaces.py"],
    ["service.py"],
    ["ray_scale.py"],
    ["watch_demo.py"],
    ["watch_demo.py", "--backbone", "lite0"],
    ["shared_store.py"],
    ["replicas.py"],
)


def main() -> None:
    """Run all, or only write the page."""
    if "--only-page" not in sys.argv:
        for command in COMMANDS:
            print(f"\n$ python benchmarks/{' '.join(command)}", flush=True)
            subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], check=True)
    head = "# Benchmarks\n\nWritten by `make bench` from `benchmarks/results/`; do not edit by hand.\n"
    limits = (embedding, int8, search, large_index, memory, rivals, growth, profile)
    sections = (
        accuracy,
        peers,
        honesty,
        losses,
        epoch_times,
        studies,
        speed,
        cold_start,
        installing,
        *limits,
        spaces,
        safety,
        service,
        scaling,
        shared_store,
        replicas,
        watching,
    )
    written = [section() for section in (*sections, constants)]
    PAGE.write_text("\n".join([head, *(text for text in written if text)]))  # what was never measured is left out
    PAGE.with_name("scale.md").write_text(scale())
    print(f"written: {PAGE.name}, scale.md")


if __name__ == "__main__":
    main()
