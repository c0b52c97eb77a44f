"""What starting and installing cost."""

from page.parts import result, stamp, table


def cold_start() -> str:
    """The section on cold start."""
    facts = result("cold-start")
    names = {"query": "`fewshot query` of one photo", "import_torch_timm": "`python -c 'import torch, timm'`"}
    names["help"] = "`fewshot --help`"
    rows = [
        [name, f"{facts[key]['wall_s']:.2f} s", f"{facts[key]['cpu_s']:.2f} s", f"{facts[key]['peak_mb']:.0f} MB"]
        for key, name in names.items()
    ]
    ratio, imports = facts["ratio"], facts["imports"]
    rows.append(["query against the import", *(f"{ratio[key]:.2f} x" for key in ("wall_s", "cpu_s", "peak_mb"))])
    total = imports["ms"]
    shares = ", ".join(f"{name} {100 * spent / total:.0f} %" for name, spent in imports["largest_ms"].items())
    return f"""## Cold start

`python benchmarks/cold_start.py`: whole processes, query and import in turn, medians of {facts["n_runs"]} pairs (the
ratios are medians of the pairs'). The load of the machine by other work was {facts["load"]:.1f} before the start.

{table(["", "wall", "CPU", "memory"], rows)}

A query imports {imports["modules"]} modules. Of the time that this takes: {shares}. A test names what must not be among
them.

{stamp(facts)}
"""


def installing() -> str:
    """The section on what installing costs."""
    facts = result("install")
    commands = {"base": "`pip install fewshot`", "everything": "`pip install 'fewshot[all]'`"}
    rows = [
        [name, f"{facts[what]['bytes'] / 1e6:,.0f} MB", str(facts[what]["n_packages"])]
        + [f"{facts[what]['seconds']:.0f} s", ", ".join(f"{n} {mb:.0f}" for n, mb in _largest(facts[what]))]
        for what, name in commands.items()
    ]
    ratio = facts["ratio"]
    rows.append(["the first against the second", f"{ratio['bytes']:.3f} x", "", f"{ratio['seconds']:.2f} x", ""])
    n = facts["n_runs"]
    return f"""## Installing

`python benchmarks/install.py`: each into an environment of its own, in turn, medians of {n} run{"s" if n > 1 else ""}
after one uncounted, so that pip has everything in its cache or on this disk and the network is not measured. The load
of the machine was up to {facts["load"]:.1f}. pip itself is not counted in the size.

{table(["", "size", "packages", "time", "largest, MB"], rows)}

{stamp(facts)}
"""


def _largest(figures: dict[str, object]) -> list[tuple[str, float]]:
    found = figures["largest_mb"]
    assert isinstance(found, dict)
    return list(found.items())[:4]
