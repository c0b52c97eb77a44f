"""Embedding on a cluster."""

from page.parts import result, stamp, table


def scaling() -> str:
    """The section on spreading embedding over a Ray cluster."""
    facts = result("ray-scale")
    stand_in, real, lost = facts["stand_in"], facts["real"], facts["killed"]
    rows = [
        [
            str(row["n"]),
            f"{row['whole_s']:.1f}",
            f"{row['share']:.2f}",
            f"{row['steady_photos_per_s']:.1f}",
            f"{row['steady_share']:.2f}",
        ]
        for row in stand_in["workers"]
    ]
    headings = ["workers", "whole call, s", "of linear", "photos/s once started", "of linear"]
    compared = [
        ["one process", f"{real['alone_s']:.1f}", f"{real['alone_photos_per_s']:.1f}"],
        [
            f"cluster, {real['n_cores']} workers",
            f"{real['cluster_s']:.1f}",
            f"{real['cluster_photos_per_s']:.1f}",
        ],
        ["cluster against one process", f"{real['ratio']:.2f} x the speed", f"{real['steady_ratio']:.2f} x"],
    ]
    return f"""## Spreading over a cluster

`python benchmarks/ray_scale.py`. Stand-in work: {stand_in["n_photos"]} photos, each of which a worker decodes and
then sleeps {1000 * facts["sleep_s"]:.0f} ms for, as an embedding would take a core of its own; 0.85 of linear was
wanted. The whole call includes the start of the workers.

{table(headings, rows)}

The shipped backbone on the same {real["n_cores"]} cores, {real["n_photos"]} photos, {real["rounds"]} rounds in turn:

{table(["", "whole call, s", "photos/s once started"], compared)}

One of two machines killed after {lost["n_at_kill"]} of {lost["n_photos"]} photos:
{"all were enrolled, each once" if lost["complete"] else "PHOTOS WERE LOST"}.

{stamp(facts)} Load of the machine before: {facts["load_before"]}.
"""
