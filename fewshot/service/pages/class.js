// One class: its photos, those first that look mislabelled; rename it, add to it, remove from it.

import { call, showThumbnail } from "./api.js";
import { classPath, confirmed, h, notice, plural, told, isolated } from "./dom.js";

const go = (path) => document.dispatchEvent(new CustomEvent("fewshot:go", { detail: path }));

export async function classView(label) {
  const found = await call("GET", `/v1/classes/${encodeURIComponent(label)}?order=suspicious`);
  const photos = h("ul", { class: "tiles photos", "aria-label": "Photos of this class" });
  const facts = h("p", { class: "muted", role: "status" });
  const suspicious = () => found.photos.filter((photo) => photo.looks_like).length;

  const describe = () => {
    const n = suspicious();
    facts.textContent = [
      plural(found.photos.length, "photo"),
      found.prototypes > 1 ? `${found.prototypes} groups` : null,
      n ? `${n} to check` : null,
    ].filter(Boolean).join(" · ");
  };

  const remove = async (photo, tile) => {
    if (!(await confirmed(`Remove ${isolated(photo.file)} from ${isolated(found.label)}?`, "Remove"))) return;
    try {
      await call("DELETE", `/v1/supports/${photo.support_id}`);
      found.photos = found.photos.filter((other) => other !== photo);
      const next = tile.nextElementSibling ?? tile.previousElementSibling;
      tile.remove();
      next?.querySelector("button")?.focus();
      describe();
      notice(`${isolated(photo.file)} is removed.`, "", "fine");
    } catch (error) {
      told(error);
    }
  };

  const removeClass = async () => {
    const question = `Remove ${isolated(found.label)} and its ${plural(found.photos.length, "photo")}? This cannot be undone.`;
    if (!(await confirmed(question, "Remove the class"))) return;
    try {
      await call("DELETE", `/v1/classes/${encodeURIComponent(found.label)}`);
      await go("/classes");
      notice(`${isolated(found.label)} is removed.`, "", "fine");
    } catch (error) {
      told(error);
    }
  };

  photos.append(...found.photos.map((photo) => {
    const tile = photoTile(photo, () => remove(photo, tile));
    return tile;
  }));
  describe();
  const node = h(
    "div",
    { class: "view" },
    h("p", { class: "crumbs" }, h("a", { href: "/classes", "data-view": "" }, "Classes"), " /"),
    h("div", { class: "row spread" },
      h("h1", {}, found.label),
      h("div", { class: "row" },
        h("a", { class: "button primary", href: `/new?label=${encodeURIComponent(found.label)}`, "data-view": "" }, "Add photos"),
        h("button", { type: "button", class: "danger quiet", onclick: removeClass }, "Remove the class"))),
    facts,
    renaming(found),
    confusable(found),
    suspicious()
      ? h("p", { class: "why" }, "Photos that lie nearer to another class come first. Is their label right?")
      : null,
    photos,
  );
  return { node, title: found.label };
}

function photoTile(photo, onRemove) {
  const image = h("img", { alt: photo.file, loading: "lazy" });
  showThumbnail(image, photo.support_id);
  const fit = photo.own_similarity === null ? "the only photo" : `fits ${photo.own_similarity.toFixed(2)}`;
  return h(
    "li",
    { class: photo.looks_like ? "tile doubtful" : "tile" },
    image,
    h("span", { class: "name small", title: photo.file }, photo.file),
    photo.looks_like
      ? h("span", { class: "few small" }, "looks like ", h("a", { href: classPath(photo.looks_like.label), "data-view": "" }, photo.looks_like.label))
      : h("span", { class: "muted small" }, fit),
    h("button", { type: "button", class: "corner", "aria-label": `Remove ${photo.file}`, title: "Remove", onclick: onRemove }, "×"),
  );
}

function renaming(found) {
  const input = h("input", { id: "rename", type: "text", required: true, maxLength: 200, value: found.label, autocapitalize: "none" });
  const form = h("form", { class: "row" }, h("label", { htmlFor: "rename" }, "New label"), input, h("button", {}, "Rename"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const done = await call("PATCH", `/v1/classes/${encodeURIComponent(found.label)}`, { json: { label: input.value } });
      await go(classPath(done.label));
      notice(`${isolated(done.was)} is now ${isolated(done.label)}.`, done.warnings.join(" "), "fine");
    } catch (error) {
      told(error);
    }
  });
  return h("details", { class: "options" }, h("summary", {}, "Rename"), form);
}

function confusable(found) {
  if (!found.confusable.length) return null;
  const names = found.confusable.flatMap(({ label, similarity }, i) => [
    i ? ", " : "",
    h("a", { href: classPath(label), "data-view": "" }, label),
    h("span", { class: "muted" }, ` ${similarity.toFixed(2)}`),
  ]);
  return h("p", {}, "Most easily confused with ", ...names, ".");
}
