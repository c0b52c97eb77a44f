// Small helpers to build the page. Text always goes in as text, never as markup.

export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name in node && name !== "list" && name !== "form") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const TURNS = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

// A name inside a sentence: its own right-to-left marks turn neither the sentence nor anything behind it.
export const isolated = (name) => `\u2068${name.replace(TURNS, "")}\u2069`;

// A name for plotly, which reads a few tags in its texts.
export const untagged = (name) => name.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(TURNS, "");

export const percent = (share) => `${Math.round(share * 100)}\u00a0%`;

export const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

export const classPath = (label) => `/classes/${encodeURIComponent(label)}`;

export function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

// A message that stays until the next one, read out by screen readers.
export function notice(text, hint = "", kind = "error") {
  const place = document.getElementById("notice");
  place.replaceChildren();
  place.hidden = !text;
  place.className = kind;
  if (!text) return;
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Close this message" }, "×");
  close.addEventListener("click", () => notice(""));
  place.append(h("div", {}, h("strong", {}, text), hint ? h("p", {}, hint) : null), close);
}

export const told = (error) => notice(error.message, error.hint ?? "");

// A question that must be answered before something is lost.
export function confirmed(question, action) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { class: "ask", "aria-label": question },
      h("form", { method: "dialog" },
        h("p", {}, question),
        h("div", { class: "row end" },
          h("button", { value: "no", class: "quiet" }, "Cancel"),
          h("button", { value: "yes", class: "danger" }, action))),
    );
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes");
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// A bar for work whose end is known, and words for work whose end is not.
export function progressBar(label) {
  const bar = h("progress", { max: 1, value: 0, "aria-label": label });
  const words = h("span", { class: "muted" });
  const node = h("div", { class: "progress", role: "status" }, bar, words);
  return {
    node,
    set(share, text) {
      if (share === null) bar.removeAttribute("value");
      else bar.value = share;
      words.textContent = text;
    },
  };
}
