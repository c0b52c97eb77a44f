"""The service and the folder watcher."""

from statistics import median

from page.parts import result, stamp, stamps, table, unquiet


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
    first, last = start["serve_s"][0], start["serve_s"][-1]
    return f"""## The service

`python benchmarks/service.py`: {load["clients"]} clients ask `fewshot serve` one photo at a time for
{load["seconds"]:.0f} s a round; before each round `fewshot query FOLDER` answers the same {load["photos"]} photos. The
clients run on the same cores.{unquiet(start, load, over)}

{table(headings, rows)}

Answers: {statuses}. Half of them within {load["p50_s"]:.2f} s, 99 % within {load["p99_s"]:.2f} s;
{load["photos_a_batch"]:.1f} photos an engine batch. Memory after the warm-up and after each round: {memory} MB.

Overload, {over["clients"]} clients for {over["seconds"]} s with photos of {over["megapixels"]:.0f} megapixels
({over["photo_mb"]:.1f} MB): {asked}; failed connections: {failed}. One client enrolled photos meanwhile ({enrolled});
then the service was killed (SIGKILL) right behind an acknowledgement: of {over["acknowledged"]} acknowledged photos
{over["lost"]} were lost. Memory: at most {over["peak_memory_mb"]:.0f} MB, and {over["memory_after_mb"]:.0f} MB
{over["memory_after_s"]} s behind it. Behind the load a photo was answered in {over["answer_after_s"]:.2f} s.

From the command to the first answer: {start["median_s"]:.2f} s ({first:.2f} to {last:.2f}, {start["n"]} times);
`fewshot query` of the same photo, in turn with it: {median(start["query_s"]):.2f} s.

{stamps({"Load": load, "Overload": over, "First answer": start})}
"""


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
