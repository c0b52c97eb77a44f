// The token: asked for when it is needed, kept until the tab is closed.

import { h } from "./dom.js";

const PLACE = "fewshot-token";

export const token = () => sessionStorage.getItem(PLACE) ?? "";

export function forgetToken() {
  sessionStorage.removeItem(PLACE);
  showTokenState();
}

export function showTokenState() {
  const button = document.getElementById("token");
  const has = token() !== "";
  button.textContent = has ? "Token set" : "Token";
  button.title = has ? "Change or forget the token" : "Changing classes needs a token";
  button.classList.toggle("set", has);
}

let open = null;

// Asks for a token; true once there is one, false if the person would rather not. One dialog at a time.
export function askToken(why, { isRefusal = false } = {}) {
  open ??= dialog(why, isRefusal).finally(() => { open = null; });
  return open;
}

function dialog(why, isRefusal) {
  return new Promise((resolve) => {
    const input = h("input", {
      type: "password", id: "token-word", autocomplete: "off", spellcheck: false, required: true,
      placeholder: "fewshot_…", "aria-describedby": "token-why",
    });
    const forget = h("button", { type: "button", class: "quiet", hidden: token() === "" }, "Forget it");
    const cancel = h("button", { type: "button", class: "quiet" }, "Cancel");
    const node = h(
      "dialog",
      { class: "ask", "aria-labelledby": "token-title" },
      h("form", { method: "dialog" },
        h("h2", { id: "token-title" }, "Token"),
        h("p", { id: "token-why", ...(isRefusal ? { class: "refusal", role: "alert" } : {}) }, why),
        h("label", { htmlFor: "token-word" }, "Your token"),
        input,
        h("p", { class: "muted small" },
          "Whoever runs this service makes one with ", h("code", {}, "fewshot token create NAME"),
          ". It is kept in this tab only, until you close it."),
        h("div", { class: "row end" }, forget, cancel, h("button", { value: "ok", class: "primary" }, "Use it"))),
    );
    cancel.addEventListener("click", () => node.close(""));
    forget.addEventListener("click", () => {
      forgetToken();
      node.close("");
    });
    node.addEventListener("close", () => {
      const word = input.value.trim();
      const given = node.returnValue === "ok" && word !== "";
      if (given) sessionStorage.setItem(PLACE, word);
      showTokenState();
      node.remove();
      resolve(given);
    });
    document.body.append(node);
    node.showModal();
  });
}
