// Where photos come in: dropped, chosen, pasted, or taken with the camera.

import { h } from "./dom.js";

let count = 0;

// Calls `onFiles` with the photos; `prompt` is what the zone says.
export function dropZone(prompt, onFiles, { compact = false } = {}) {
  count += 1;
  const chooser = input({ multiple: true, id: `choose-${count}` });
  const camera = input({ capture: "environment", id: `camera-${count}` });
  const zone = h(
    "div",
    { class: compact ? "drop compact" : "drop", role: "group", "aria-label": prompt },
    compact ? null : h("div", { class: "drop-mark", "aria-hidden": "true" }),
    h("p", { class: "drop-words" }, prompt),
    h("div", { class: "row centre" },
      h("label", { class: "button primary", htmlFor: chooser.id }, "Choose photos", chooser),
      h("label", { class: "button", htmlFor: camera.id }, "Take a photo", camera)),
  );
  const give = (files) => {
    const found = [...files].filter((file) => file.size !== undefined);
    if (found.length) onFiles(found);
  };
  for (const each of [chooser, camera]) {
    each.addEventListener("change", () => {
      const files = [...each.files];
      each.value = ""; // so that the same photo can be chosen again
      give(files);
    });
  }
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    give(event.dataTransfer.files);
  });
  zone.addEventListener("paste", (event) => give(event.clipboardData?.files ?? []));
  return zone;
}

const input = (properties) => h("input", { type: "file", accept: "image/*", class: "visually-hidden", ...properties });

// A dropped file that misses the zone would otherwise replace the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
