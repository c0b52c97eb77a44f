// Which view stands for which address. Links between views swap the content; each also works when opened by itself.

import { askView } from "./ask.js";
import { currentSession, forgetSession } from "./api.js";
import { classView } from "./class.js";
import { classesView } from "./classes.js";
import { notice, told } from "./dom.js";
import { mapView } from "./map.js";
import { newClassView } from "./newclass.js";
import { askToken, showTokenState } from "./token.js";

const main = document.getElementById("main");
let kept = null; // the view of questions stays as it is while others are looked at

async function view(path, query) {
  if (path === "/") {
    kept ??= await askView();
    return kept;
  }
  if (path === "/classes") return classesView();
  if (path === "/new") return newClassView(query.get("label") ?? "");
  if (path === "/map") return mapView();
  if (path.startsWith("/classes/")) return classView(decodeURIComponent(path.slice("/classes/".length)));
  return null;
}

let shown = 0;

export async function show({ focus = true } = {}) {
  const turn = ++shown;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.pathname === "/" ? location.pathname === "/" : location.pathname.startsWith(link.pathname);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    const found = await view(location.pathname, new URLSearchParams(location.search));
    if (turn !== shown || found === null) return; // another view was asked for meanwhile
    main.replaceChildren(found.node);
    document.title = `${found.title} · fewshot`;
    found.onShow?.();
    if (focus) {
      main.focus({ preventScroll: true });
      window.scrollTo(0, 0);
    }
  } catch (error) {
    main.replaceChildren();
    told(error);
  }
}

export function go(path) {
  notice("");
  history.pushState(null, "", path);
  return show();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-view]");
  if (!link || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
document.addEventListener("fewshot:go", (event) => go(event.detail));
window.addEventListener("popstate", () => show());
document.getElementById("token").addEventListener("click", async () => {
  const isGiven = await askToken("With a token you can add, rename and remove classes and photos.");
  forgetSession();
  try {
    const session = await currentSession();
    if (session.token) notice(`This tab now acts as ${session.token}: it may ${session.scopes.join(" and ")}.`, "", "fine");
    else if (isGiven) notice("The token was refused, and is not kept.", "It is mistyped, or was revoked. Whoever runs this service can make another.");
    else notice("");
  } catch (error) {
    told(error);
  }
});

showTokenState();
show({ focus: false });
