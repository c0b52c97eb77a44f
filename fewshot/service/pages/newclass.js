// A new class from 5 to 20 photos, or more photos for one that there is.

import { currentSession, enroll } from "./api.js";
import { parts } from "./ask.js";
import { dropZone } from "./drop.js";
import { classPath, h, notice, plural, progressBar, told } from "./dom.js";

const ENOUGH = 5;
const PLENTY = 20;

export async function newClassView(given) {
  const session = await currentSession();
  let files = [];
  let sent = []; // those of them that are on their way
  const name = h("input", {
    id: "label", type: "text", required: true, maxLength: session.max_label_length, value: given,
    autocapitalize: "none", placeholder: "corn-rust", "aria-describedby": "label-help",
  });
  const previews = h("ul", { class: "tiles small-tiles", "aria-label": "Photos to enroll" });
  const state = h("p", { class: "muted", role: "status" });
  const busy = h("div", { class: "busy" });
  const result = h("div", { role: "status" });
  const button = h("button", { class: "primary", disabled: true }, "Enroll");

  const draw = () => {
    previews.replaceChildren(...files.map((file) => preview(file, sent.includes(file), () => {
      files = files.filter((other) => other !== file);
      draw();
    })));
    button.disabled = sent.length > 0 || files.length === 0;
    button.textContent = files.length ? `Enroll ${plural(files.length, "photo")}` : "Enroll";
    const photos = files.filter((file) => file.type === "" || file.type.startsWith("image/"));
    state.textContent = advice(photos.length, given !== "") + otherFiles(files.length - photos.length);
  };
  const form = h(
    "form",
    { class: "card stack" },
    h("div", { class: "field" },
      h("label", { htmlFor: "label" }, "Label"),
      name,
      h("p", { class: "muted small", id: "label-help" }, "What an answer shall say, such as corn-rust. One line, no slash.")),
    dropZone("Drop 5 to 20 photos of this class here", (found) => {
      const known = new Set(files.map((file) => `${file.name} ${file.size} ${file.lastModified}`));
      files.push(...found.filter((file) => !known.has(`${file.name} ${file.size} ${file.lastModified}`)));
      draw();
    }, { compact: true }),
    state,
    previews,
    h("div", { class: "row" }, button, busy),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    notice("");
    result.replaceChildren();
    sent = [...files];
    draw();
    const progress = progressBar("Enrolling");
    busy.replaceChildren(progress.node);
    const total = { enrolled: 0, already_there: 0, refused: [], warnings: [], label: name.value };
    let done = 0;
    try {
      for (const part of parts(sent, session.max_files, session.max_body_bytes)) {
        const report = await enroll(name.value, part, {
          onProgress: (share, words) =>
            progress.set(share === null ? null : (done + share * part.length) / sent.length, words),
        });
        done += part.length;
        total.label = report.label;
        total.enrolled += report.enrolled;
        total.already_there += report.already_there;
        total.refused.push(...report.refused);
        total.warnings = [...total.warnings.filter((each) => !each.startsWith("class ")), ...report.warnings];
      }
    } catch (error) {
      told(error);
    } finally {
      const through = sent.slice(0, done); // what came to it meanwhile waits to be enrolled, as does what failed
      files = files.filter((file) => !through.includes(file));
      sent = [];
      draw();
      busy.replaceChildren();
    }
    if (done) result.replaceChildren(report(total));
  });
  draw();
  const node = h(
    "div",
    { class: "view" },
    h("h1", {}, given ? `More photos of ${given}` : "Create a class"),
    h("p", { class: "muted" },
      "Photos of different plants, taken as the photos to come will be: in the field if those are field photos."),
    form,
    result,
  );
  return { node, title: given ? `More photos of ${given}` : "Create a class", onShow: () => (given ? null : name.focus()) };
}

function advice(n, isMore) {
  if (n === 0) return "";
  if (n < ENOUGH && !isMore) return `${plural(n, "photo")}; ${ENOUGH - n} more would make answers that can be trusted.`;
  if (n <= PLENTY) return `${plural(n, "photo")}: a good number.`;
  return `${plural(n, "photo")}: more than needed, which does no harm.`;
}

const otherFiles = (n) => (n === 0 ? "" : ` ${plural(n, "file")} ${n === 1 ? "is" : "are"} no picture.`);

function preview(file, isSent, onRemove) {
  const image = h("img", { alt: file.name, src: URL.createObjectURL(file) });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  image.addEventListener("error", () => image.classList.add("broken"), { once: true });
  return h("li", { class: "tile" }, image,
    h("span", { class: "small name" }, file.name),
    h("button", { type: "button", class: "corner", "aria-label": `Leave ${file.name} out`, disabled: isSent, onclick: onRemove }, "×"));
}

function report({ label, enrolled, already_there, refused, warnings }) {
  const already = already_there ? `, ${already_there} there already` : "";
  return h(
    "section",
    { class: "card stack report" },
    h("h2", {}, `${label}: ${plural(enrolled, "photo")} enrolled${already}`),
    refused.length ? h("h3", {}, `${plural(refused.length, "photo")} could not be used`) : null,
    refused.length ? h("ul", {}, refused.map((each) => h("li", {}, each.message))) : null,
    warnings.length ? h("h3", {}, "Worth a look") : null,
    warnings.length ? h("ul", { class: "warnings" }, warnings.map((each) => h("li", {}, each))) : null,
    h("div", { class: "row" },
      h("a", { class: "button primary", href: "/", "data-view": "" }, "Ask about a photo"),
      h("a", { class: "button", href: classPath(label), "data-view": "" }, "See the class")),
  );
}
