// The first view: photos in, answers out.

import { answerCard } from "./answer.js";
import { call, currentSession, query } from "./api.js";
import { dropZone } from "./drop.js";
import { h, megabytes, notice, plural, progressBar, told } from "./dom.js";

const PART = 6; // photos a request, so that first answers come soon

export async function askView() {
  const health = await call("GET", "/v1/health");
  const session = await currentSession();
  const answers = h("ol", { class: "answers", "aria-label": "Answers" });
  const live = h("p", { class: "visually-hidden", role: "status", "aria-live": "polite" });
  const busy = h("div", { class: "busy" });
  const options = questionOptions();
  const subtitle = h("p", { class: "muted" });
  const empty = h("div", {});

  const describe = ({ classes, supports }) => {
    subtitle.textContent = classes
      ? `Answered from ${plural(supports, "enrolled photo")} of ${plural(classes, "class", "classes")}.`
      : "";
    empty.replaceChildren(...(classes ? [] : [emptyState()]));
  };
  describe(health);

  const changed = (words) => {
    live.textContent = words;
    call("GET", "/v1/health").then(describe, told);
  };

  const ask = async (files) => {
    notice("");
    const large = files.filter((file) => file.size > session.max_body_bytes);
    if (large.length) {
      notice(
        `${large[0].name} has ${megabytes(large[0].size)}; at most ${megabytes(session.max_body_bytes)} are taken.`,
        "Scale the photo down, or leave it out.",
      );
      files = files.filter((file) => !large.includes(file));
    }
    if (!files.length) return;
    const together = options.together();
    if (together) files = toldApart(files);
    if (together && files.length > session.max_files) {
      notice(`At most ${session.max_files} photos can be asked together; these are ${files.length}.`);
      return;
    }
    const requests = [...parts(files, together ? files.length : PART, session.max_body_bytes)];
    if (together && requests.length > 1) {
      const bytes = files.reduce((sum, file) => sum + file.size, 0);
      notice(
        `At most ${megabytes(session.max_body_bytes)} can be asked together; these photos have ${megabytes(bytes)}.`,
        "Scale the photos down, or leave some out.",
      );
      return;
    }
    const stop = new AbortController();
    const progress = progressBar("Answering");
    const cancel = h("button", { type: "button", class: "quiet", onclick: () => stop.abort() }, "Stop");
    busy.replaceChildren(progress.node, cancel);
    let done = 0;
    const said = [];
    try {
      for (const part of requests) {
        progress.set(done / files.length, `${done} of ${files.length}`);
        const found = await query(part, options.parameters(), {
          signal: stop.signal,
          onProgress: (share, words) =>
            progress.set(share === null ? null : (done + share * part.length) / files.length, words),
        });
        done += part.length;
        const cards = pair(found, part, together).map(([prediction, file]) =>
          answerCard(prediction, file, options, changed));
        answers.prepend(...cards);
        said.push(...found.map((each) => `${each.file}: ${each.reason === "bad_image" ? "not readable" : each.answer}`));
        live.textContent = said.length > 4 ? `${plural(said.length, "answer")}.` : said.join(". ");
      }
    } catch (error) {
      if (error.name !== "AbortError") told(error);
    } finally {
      busy.replaceChildren();
    }
  };

  const node = h(
    "div",
    { class: "view ask-view" },
    h("h1", {}, "What is on this photo?"),
    subtitle,
    empty,
    dropZone("Drop photos of leaves here", ask),
    options.node,
    busy,
    live,
    answers,
  );
  return { node, title: "Ask", onShow: () => call("GET", "/v1/health").then(describe, () => {}) };
}

// Each answer and the photo it is about; asked together, the one answer stands beside the first photo that was read.
function pair(found, files, together) {
  if (!together) return found.map((prediction, i) => [prediction, files[i]]);
  const left = [...files]; // those that cannot be read come first, in the order of the photos, and each is one of these
  return found.map((prediction) => {
    if (prediction.reason !== "bad_image") return [prediction, left[0]];
    const place = left.findIndex((file) => file.name === prediction.file);
    return [prediction, left.splice(Math.max(0, place), 1)[0]];
  });
}

// The photos, no two of one name: the name is all that is said of one that cannot be read, and some phones call every
// photo image.jpg.
function toldApart(files) {
  const taken = new Set();
  return files.map((file) => {
    let name = file.name;
    for (let n = 2; taken.has(name); n += 1) name = file.name.replace(/(\.[^.]*)?$/, ` (${n})$1`);
    taken.add(name);
    return name === file.name ? file : new File([file], name, { type: file.type, lastModified: file.lastModified });
  });
}

export function* parts(files, mostFiles, mostBytes) {
  let part = [];
  let bytes = 0;
  for (const file of files) {
    const size = file.size + 1000; // and what the request says of it
    if (part.length && (part.length === mostFiles || bytes + size > mostBytes)) {
      yield part;
      part = [];
      bytes = 0;
    }
    part.push(file);
    bytes += size;
  }
  if (part.length) yield part;
}

function questionOptions() {
  const within = h("input", { id: "within", type: "text", placeholder: "corn-*", autocapitalize: "none", maxLength: 200 });
  const together = h("input", { id: "together", type: "checkbox" });
  const coverage = h("input", { id: "coverage", type: "checkbox" });
  const node = h(
    "details",
    { class: "options" },
    h("summary", {}, "Know more, ask better"),
    h("div", { class: "fields" },
      h("div", { class: "field" },
        h("label", { htmlFor: "within" }, "Only classes like"),
        within,
        h("p", { class: "muted small" }, "You know the crop: ", h("code", {}, "corn-*"), ". Several, with commas.")),
      h("label", { class: "check", htmlFor: "together" }, together,
        h("span", {}, "All photos show one plant: give one answer")),
      h("label", { class: "check", htmlFor: "coverage" }, coverage,
        h("span", {}, "Also list what cannot be ruled out (in 9 of 10 cases the truth is among it)"))),
  );
  return {
    node,
    together: () => together.checked,
    parameters() {
      const found = [["top", "3"], ["nearest", "5"]];
      for (const pattern of within.value.split(",")) if (pattern.trim()) found.push(["within", pattern.trim()]);
      if (together.checked) found.push(["together", "true"]);
      if (coverage.checked) found.push(["coverage", "0.9"]);
      return found;
    },
  };
}

function emptyState() {
  return h(
    "section",
    { class: "card empty" },
    h("h2", {}, "Nothing is enrolled yet"),
    h("p", {}, "An answer comes from photos that somebody labelled. Begin with two classes of 5 to 20 photos each."),
    h("a", { class: "button primary", href: "/new", "data-view": "" }, "Create a class"),
  );
}
