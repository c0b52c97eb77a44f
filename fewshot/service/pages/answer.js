// One answer: what it is, how sure, what else it could be, and the photos it was judged by.

import { classes, enroll, query, showThumbnail } from "./api.js";
import { classPath, h, percent, told, isolated } from "./dom.js";

const WORDS = {
  match: ["Recognised", "good"],
  ambiguous: ["Uncertain", "warn"],
  unknown: ["Like no enrolled class", "warn"],
  bad_image: ["Not readable", "bad"],
};
// The percentages are among the enrolled classes: they do not say how likely it is that it is any of them.
const IF_NOT_UNKNOWN = "If it is one of the enrolled classes after all:";
let count = 0;

export function answerCard(prediction, file, options, onChange) {
  count += 1;
  const id = `answer-${count}`;
  const card = h("li", { class: "card answer", "aria-labelledby": `${id}-title` });
  const photo = h("img", { alt: `Your photo ${prediction.file}`, src: URL.createObjectURL(file) });
  const draw = (found, news = "") => {
    const [words, kind] = WORDS[found.reason];
    const readable = found.reason !== "bad_image";
    card.dataset.reason = found.reason;
    card.replaceChildren(
      h("div", { class: "asked" }, readable ? photo : h("div", { class: "no-photo", "aria-hidden": "true" }, "?")),
      h("div", { class: "told" },
        h("p", { class: "file muted small" }, found.file),
        h("h2", { id: `${id}-title`, tabIndex: -1 }, readable ? found.answer : "no answer", " ",
          h("span", { class: `badge ${kind}` }, words)),
        news ? h("p", { class: "fine" }, news) : null,
        why(found),
        found.reason === "unknown" ? h("p", { class: "muted small given" }, IF_NOT_UNKNOWN) : null,
        readable ? bars(found) : null,
        found.covering ? covering(found.covering) : null),
      readable && found.nearest.length ? nearest(found, photo.src) : "",
      readable ? correction(id, found, file, options, draw, onChange) : "",
    );
    if (news) card.querySelector("h2").focus(); // what had the focus is gone with the form
  };
  draw(prediction);
  return card;
}

function why(found) {
  if (found.reason === "match") return null;
  if (found.reason === "bad_image") return h("p", { class: "why" }, found.message);
  const start = found.reason === "unknown"
    ? "It is less like one class, and less clearly so, than nearly all enrolled photos are. "
    : "The likeliest class is less likely than all others together. ";
  return h("p", { class: "why" }, start, h("span", { class: "muted" }, `(${found.message})`));
}

function bars(found) {
  return h(
    "ul",
    { class: "bars", "aria-label": found.reason === "unknown" ? IF_NOT_UNKNOWN : "Most similar classes" },
    found.matches.map((match, i) =>
      h("li", { class: i === 0 && found.answer === match.label ? "first" : "" },
        h("a", { href: classPath(match.label), "data-view": "" }, match.label),
        bar(match),
        h("span", { class: "figure" }, percent(match.probability)))),
  );
}

function bar({ label, probability }) {
  const fill = h("span", {});
  fill.style.width = `${100 * probability}%`;
  return h("span", {
    class: "bar", role: "meter", "aria-label": `Probability of ${label}`,
    "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(100 * probability)),
  }, fill);
}

function covering(labels) {
  const list = labels.length ? labels.join(", ") : "no label; enrolled photos lead by more, so take the answer as unsure";
  return h("p", { class: "covering" }, "Cannot be ruled out: ", h("strong", {}, list));
}

function nearest(found, own) {
  return h(
    "section",
    { class: "nearest", "aria-label": "Nearest enrolled photos, side by side" },
    h("h3", {}, "Judge for yourself: your photo and the nearest enrolled ones"),
    h("div", { class: "strip" },
      h("figure", { class: "own" }, h("img", { src: own, alt: "Your photo" }), h("figcaption", {}, h("strong", {}, "your photo"))),
      found.nearest.map((neighbour) => {
        const image = h("img", { alt: `Enrolled photo ${neighbour.file} of ${neighbour.label}`, loading: "lazy" });
        showThumbnail(image, neighbour.support_id);
        return h("figure", {}, image,
          h("figcaption", {},
            h("a", { href: classPath(neighbour.label), "data-view": "" }, neighbour.label),
            h("span", { class: "muted" }, ` ${neighbour.similarity.toFixed(2)}`)));
      })),
  );
}

function correction(id, found, file, options, draw, onChange) {
  const known = h("datalist", { id: `${id}-known` });
  const input = h("input", {
    id: `${id}-label`, type: "text", required: true, maxLength: 200, autocapitalize: "none", list: `${id}-known`,
    placeholder: "the right label",
  });
  const say = h("p", { class: "muted small", role: "status" });
  const button = h("button", { class: "primary" }, "Enroll it and ask again");
  const form = h(
    "form",
    { class: "row wrong-form" },
    h("label", { htmlFor: `${id}-label` }, "What is it?"),
    input, known, button, say,
  );
  const details = h("details", { class: "wrong" }, h("summary", {}, found.reason === "unknown" ? "You know what it is?" : "Wrong?"), form);
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    input.focus();
    try {
      known.replaceChildren(...(await classes()).map(({ label }) => h("option", { value: label })));
    } catch (error) {
      told(error);
    }
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const report = await enroll(input.value, [file], { onProgress: (_, words) => { say.textContent = words; } });
      const again = await query([file], options.parameters().filter(([name]) => name !== "together"));
      const words = report.enrolled
        ? `Enrolled as ${isolated(report.label)}, and asked again.`
        : `It is enrolled as ${isolated(report.label)} already; asked again.`;
      draw(again[0], words);
      onChange(`${words} The answer: ${isolated(again[0].answer)}.`);
    } catch (error) {
      say.textContent = "";
      button.disabled = false;
      told(error);
    }
  });
  return details;
}
