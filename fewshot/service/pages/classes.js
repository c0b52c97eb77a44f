// The list of classes.

import { classes, showThumbnail } from "./api.js";
import { classPath, h, plural } from "./dom.js";

const FEW = 5;

export async function classesView() {
  const all = await classes();
  const list = h("ul", { class: "tiles" });
  const count = h("p", { class: "muted", role: "status" });
  const draw = (word) => {
    const fitting = all.filter(({ label }) => label.toLowerCase().includes(word.toLowerCase()));
    list.replaceChildren(...fitting.map(tile));
    const photos = fitting.reduce((sum, each) => sum + each.supports, 0);
    count.textContent = word && !fitting.length
      ? `No class is named like “${word}”.`
      : `${plural(fitting.length, "class", "classes")}, ${plural(photos, "photo")}`;
  };
  const filter = h("input", {
    type: "search", id: "filter", placeholder: "Find a class", "aria-label": "Find a class", hidden: all.length < 8,
  });
  filter.addEventListener("input", () => draw(filter.value.trim()));
  draw("");
  const node = h(
    "div",
    { class: "view" },
    h("div", { class: "row spread" }, h("h1", {}, "Classes"),
      h("a", { class: "button primary", href: "/new", "data-view": "" }, "Create a class")),
    all.length ? count : null,
    filter,
    all.length ? list : emptyState(),
  );
  return { node, title: "Classes" };
}

function tile({ label, supports, cover }) {
  const image = h("img", { alt: "", loading: "lazy" });
  showThumbnail(image, cover);
  return h("li", {},
    h("a", { class: "tile", href: classPath(label), "data-view": "" },
      image,
      h("span", { class: "name" }, label),
      h("span", { class: supports < FEW ? "few small" : "muted small" },
        supports < FEW ? `${plural(supports, "photo")}: more would help` : plural(supports, "photo"))));
}

function emptyState() {
  return h("section", { class: "card empty" },
    h("h2", {}, "No class yet"),
    h("p", {}, "A class is a label and 5 to 20 photos of different plants, taken as the photos to come will be."),
    h("a", { class: "button primary", href: "/new", "data-view": "" }, "Create the first class"));
}
