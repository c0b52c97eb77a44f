// The map: every enrolled photo where its embedding lies. The photo under the pointer is shown.

import { call, showThumbnail } from "./api.js";
import { classPath, h, plural, told, untagged } from "./dom.js";

const METHODS = [["pca", "PCA: quick; far apart here is far apart"], ["tsne", "t-SNE: shows groups"], ["umap", "UMAP: shows groups"]];
// Okabe and Ito's colours, which stay apart for colour-blind eyes; shapes tell classes beyond eight apart.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#b5a400"];
const SHAPES_2D = ["circle", "square", "diamond", "cross", "triangle-up", "star", "x", "pentagon"];
const SHAPES_3D = ["circle", "square", "diamond", "cross", "circle-open", "square-open", "diamond-open", "x"];
const MOST_LEGEND = 24;

let library = null;

function plotly() {
  library ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "/static/plotly.min.js" });
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => {
      library = null;
      reject(new Error("The script that draws maps could not be loaded."));
    });
    document.head.append(script);
  });
  return library;
}

export async function mapView() {
  const method = h("select", { id: "method" }, METHODS.map(([value, words]) => h("option", { value }, words)));
  const dims = h("select", { id: "dims" }, h("option", { value: "2" }, "flat (2-D)"), h("option", { value: "3" }, "in space (3-D)"));
  const plot = h("div", { class: "plot", role: "img", "aria-label": "Map of the enrolled photos" });
  const words = h("p", { class: "muted", role: "status" });
  const hovered = hoverCard();
  let turn = 0;

  const draw = async () => {
    const mine = ++turn;
    words.textContent = method.value === "pca" ? "Drawing …" : "Drawing; this may take a minute the first time …";
    plot.setAttribute("aria-busy", "true"); // which dims the map that is there
    try {
      const map = await call("GET", `/v1/projection?method=${method.value}&dims=${dims.value}`);
      const Plotly = await plotly(); // after it: where no map can be made, there may be no script either
      if (mine !== turn) return;
      const labels = [...new Set(map.points.map((point) => point.label))];
      await Plotly.react(plot, traces(map, labels), layout(map, labels), {
        responsive: true, displayModeBar: false, scrollZoom: true,
      });
      plot.removeAllListeners?.("plotly_hover");
      plot.removeAllListeners?.("plotly_unhover");
      plot.removeAllListeners?.("plotly_click");
      plot.on("plotly_hover", ({ points, event }) => hovered.show(points[0].customdata, event, plot));
      plot.on("plotly_unhover", () => hovered.hide());
      plot.on("plotly_click", ({ points, event }) => hovered.show(points[0].customdata, event, plot));
      const some = map.supports > map.points.length ? ` (of ${map.supports.toLocaleString("en")})` : "";
      words.textContent = `${plural(map.points.length, "photo")}${some} of ${plural(labels.length, "class", "classes")}. `
        + "Near points look alike to the backbone. Point at one to see its photo; scroll to zoom, drag to move.";
      plot.setAttribute("aria-label", `Map of ${plural(map.points.length, "photo")} of ${labels.join(", ")}`);
    } catch (error) {
      if (mine !== turn) return;
      words.textContent = "";
      if (error.code === "too_few_points") plot.replaceChildren(emptyState());
      else if (error.code === "missing_extra") plot.replaceChildren(notInstalled(error));
      else told(error);
    } finally {
      plot.removeAttribute("aria-busy");
    }
  };
  method.addEventListener("change", draw);
  dims.addEventListener("change", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.isConnected && draw());
  const node = h(
    "div",
    { class: "view wide" },
    h("div", { class: "row spread" },
      h("h1", {}, "Map"),
      h("div", { class: "row" },
        h("label", { htmlFor: "method" }, "Drawn by"), method,
        h("label", { htmlFor: "dims", class: "visually-hidden" }, "Dimensions"), dims)),
    words,
    h("div", { class: "plot-frame" }, plot, hovered.node),
    h("p", { class: "muted small" }, "The same photos as a list, for keyboard and screen reader: ", h("a", { href: "/classes", "data-view": "" }, "Classes"), "."),
  );
  return { node, title: "Map", onShow: draw };
}

function traces(map, labels) {
  const flat = map.dims === 2;
  const shapes = flat ? SHAPES_2D : SHAPES_3D;
  return labels.map((label, i) => {
    const points = map.points.filter((point) => point.label === label);
    const trace = {
      type: flat ? "scatter" : "scatter3d",
      mode: "markers",
      name: untagged(label),
      x: points.map((point) => point.x),
      y: points.map((point) => point.y),
      customdata: points,
      hoverinfo: "none",
      marker: { size: flat ? 9 : 4, color: COLOURS[i % COLOURS.length], symbol: shapes[Math.floor(i / COLOURS.length) % shapes.length], opacity: 0.85 },
    };
    return flat ? trace : { ...trace, z: points.map((point) => point.z) };
  });
}

function layout(map, labels) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const line = style.getPropertyValue("--line").trim();
  const axis = { zeroline: false, showticklabels: false, gridcolor: line, title: { text: "" }, color: ink, showspikes: false };
  const narrow = window.innerWidth < 640;
  const shared = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 8, r: 8, t: 8, b: 8 },
    showlegend: labels.length <= MOST_LEGEND,
    legend: narrow ? { orientation: "h", y: -0.02 } : {},
    hovermode: "closest",
    dragmode: map.dims === 2 ? "pan" : "orbit",
    uirevision: `${map.method} ${map.dims}`,
  };
  if (map.dims === 2) return { ...shared, xaxis: { ...axis }, yaxis: { ...axis, scaleanchor: "x" } };
  return { ...shared, scene: { xaxis: { ...axis }, yaxis: { ...axis }, zaxis: { ...axis } } };
}

// The photo under the pointer, kept inside of the frame.
function hoverCard() {
  let image = h("img", { alt: "" });
  const name = h("strong", {});
  const file = h("span", { class: "muted small" });
  const link = h("a", { "data-view": "", class: "small" }, "See the class");
  const node = h("div", { class: "hover card", hidden: true }, image, name, file, link);
  let shown = null;
  return {
    node,
    show(point, event, plot) {
      if (shown !== point.support_id) {
        shown = point.support_id;
        const next = h("img", { alt: "" });
        image.replaceWith(next);
        image = next;
        showThumbnail(image, point.support_id);
        name.textContent = point.label;
        file.textContent = point.file;
        link.href = classPath(point.label);
      }
      node.hidden = false;
      const frame = plot.getBoundingClientRect();
      const x = (event?.clientX ?? frame.left + 20) - frame.left;
      const y = (event?.clientY ?? frame.top + 20) - frame.top;
      node.style.left = `${Math.max(4, Math.min(x + 16, frame.width - node.offsetWidth - 4))}px`;
      node.style.top = `${Math.max(4, y + 16 + node.offsetHeight > frame.height ? y - node.offsetHeight - 12 : y + 16)}px`;
    },
    hide() {
      node.hidden = true;
    },
  };
}

function emptyState() {
  return h("section", { class: "card empty" },
    h("h2", {}, "Too few photos for a map"),
    h("p", {}, "Enroll two classes of 5 photos or more; then the map shows how far apart they lie."),
    h("a", { class: "button primary", href: "/new", "data-view": "" }, "Create a class"));
}

function notInstalled(error) {
  return h("section", { class: "card empty" },
    h("h2", {}, "No map on this service yet"),
    h("p", {}, error.message),
    h("p", {}, "Whoever runs the service can add it: ", error.hint));
}
