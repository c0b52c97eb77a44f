"""Hostile pictures, and what guarding against them costs."""

from page.parts import result, stamp, table, unquiet


def hostile() -> str:
    """The section on hostile input."""
    facts = result("hostile")
    service, words, cost = facts["service"], facts["command_line"], facts["cost"]
    runs = {"service": service, "`query --guarded`": words["guarded"], "`query`": words["unguarded"]}
    kinds = sorted(
        {kind for run in runs.values() for kind in run["said"]}, key=lambda kind: (-service["said"].get(kind, 0), kind)
    )
    rows = [[kind, *(f"{run['said'].get(kind, 0):,}" for run in runs.values())] for kind in kinds]
    statuses = ", ".join(f"{n:,} times {status}" for status, n in service["statuses"].items())
    memory = service["memory_mb"]
    enrolled = words["guarded"]
    return f"""## Hostile input

`python benchmarks/hostile.py`: {facts["pictures"]:,} pictures that are malformed, huge, nested, polyglot or lie about
themselves, made by a seed (`benchmarks/hostile_images.py`), through `fewshot serve` (all by POST to the query route,
every tenth batch also to the enrolling route), through `fewshot query` and `fewshot enroll --guarded`;
without `--guarded`, those made to be slow or large are left out, which would take a command minutes. *Answered*: a
decoder made a picture of it within the limits, such as of a sound picture with something behind it.

{table(["what was said", *runs], rows)}

The service answered {statuses}; {service["without_a_clear_sentence"]} refusals without a sentence,
{service["tracebacks"] + sum(run["tracebacks"] for run in words.values())} tracebacks.
It {"was alive at the end" if service["service_alive"] else "DIED"}, gave the same answer to a sound photo before and
behind ({"yes" if service["same_answer_before_and_after"] else "NO"}), and told of its health within
{service["health_s"]["longest"]:.2f} s at the longest (median {service["health_s"]["median"]:.3f} s). Guarded processes
seen: {service["decoding_processes"]}, of which {service["replaced"]} took the place of one that a picture had ended.
`enroll --guarded` took {enrolled["enrolled"]:,} and refused {enrolled["enroll_refused"]:,}.

Memory: a guarded process held at most {service["decoder_most_mb"]:.0f} MB of the {service["decoder_bound_mb"]:,.0f} MB
that it may at 50 megapixels; the service itself {memory["service_at_rest"]:.0f} MB before, at most
{memory["service_most"]:.0f} MB, {memory["service_after"]:.0f} MB behind. The command line held
{words["unguarded"]["query_mb"]:.0f} MB unguarded, where it decodes as many photos at once as there are cores.

What guarding costs where photos are sound: `fewshot query` of {cost["photos"]} photos, in turn with and without, took
{cost["ratio"]:.2f} times as long ({cost["seconds"]["guarded"]:.1f} s and {cost["seconds"]["unguarded"]:.1f} s; CPU
{cost["cpu_s"]["guarded"]:.1f} s and {cost["cpu_s"]["unguarded"]:.1f} s; start-up included).{unquiet(facts)}

{stamp(facts)}
"""
