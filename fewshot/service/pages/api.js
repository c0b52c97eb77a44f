// The only place that talks to the service: every call is one of its documented routes.

import { askToken, forgetToken, token } from "./token.js";

const TRIES = 4;

export class ServiceError extends Error {
  constructor(status, { code, message, hint }) {
    super(message);
    Object.assign(this, { status, code, hint });
  }
}

const UNREACHABLE = {
  code: "unreachable",
  message: "The service cannot be reached.",
  hint: "Is it still running, and are you still in its network? Nothing you chose is lost; try again.",
};

let session = null;

// What this client may do, and the limits to keep; asked once, and again when the token changes.
export async function currentSession({ fresh = false } = {}) {
  if (session === null || fresh) session = call("GET", "/v1/session"); // the promise: many may ask before it is kept
  return session.catch((error) => {
    forgetSession();
    throw error;
  });
}

export const forgetSession = () => { session = null; };

export async function call(method, path, { json, form, onProgress, signal } = {}) {
  let refusal = null;
  for (let attempt = 1; ; attempt += 1) {
    const response = await exchange(method, path, { json, form, onProgress, signal });
    if (response.status < 400) return response.body;
    const error = new ServiceError(response.status, response.body?.error ?? {
      code: "odd", message: `The service answered ${response.status}.`, hint: "",
    });
    if (isBusy(error.status) && attempt < TRIES) {
      onProgress?.(null, `${error.message} Asking again in ${response.retryAfter} s.`);
      await pause(response.retryAfter * 1000, signal);
      continue;
    }
    if (error.status === 401 && token()) { // it is none, or none any more: what needs no token is answered without it
      refusal = error.message;
      forgetToken();
      forgetSession();
      continue;
    }
    if (error.status === 401 && (await askToken(refusal ?? error.message, { isRefusal: refusal !== null }))) {
      forgetSession();
      continue;
    }
    if (error.status === 401) error.message = refusal ?? error.message;
    throw error;
  }
}

// XMLHttpRequest, because fetch does not tell how much of an upload is through.
function exchange(method, path, { json, form, onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    request.setRequestHeader("Accept", "application/json");
    if (token()) request.setRequestHeader("Authorization", `Bearer ${token()}`);
    if (json !== undefined) request.setRequestHeader("Content-Type", "application/json");
    if (form && onProgress) {
      request.upload.addEventListener("progress", (event) => {
        if (event.lengthComputable) onProgress(event.loaded / event.total, `Sending ${Math.round((100 * event.loaded) / event.total)} %`);
      });
      request.upload.addEventListener("load", () => onProgress(null, "Looking at the photos …"));
    }
    request.addEventListener("load", () => {
      let body = null;
      try {
        body = JSON.parse(request.responseText);
      } catch { /* an answer that is no JSON is told by its status */ }
      resolve({ status: request.status, body, retryAfter: seconds(request.getResponseHeader("Retry-After")) });
    });
    request.addEventListener("error", () => reject(new ServiceError(0, UNREACHABLE)));
    request.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    signal?.addEventListener("abort", () => request.abort());
    request.send(json !== undefined ? JSON.stringify(json) : form ?? null);
  });
}

const isBusy = (status) => status === 503 || status === 429;

const seconds = (retryAfter) => Number(retryAfter) || 1;

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

export function photoForm(files) {
  const form = new FormData();
  for (const file of files) form.append("photos", file, file.name || "photo.jpg");
  return form;
}

export async function query(files, parameters, options = {}) {
  const words = new URLSearchParams(parameters);
  return (await call("POST", `/v1/query?${words}`, { form: photoForm(files), ...options })).predictions;
}

export const enroll = (label, files, options = {}) =>
  call("POST", `/v1/classes/${encodeURIComponent(label)}/supports`, { form: photoForm(files), ...options });

export const classes = async () => (await call("GET", "/v1/classes")).classes;

// An enrolled photo's picture. Where reading needs a token, an <img> cannot send it: the bytes are fetched instead.
// A picture that cannot be had is left to the <img>, which shows the photo's name in its place. One <img>, one photo.
export async function showThumbnail(image, supportId) {
  const path = `/v1/supports/${supportId}/thumbnail`;
  image.src = (await fetchedThumbnail(image, path).catch(() => null)) ?? path;
}

async function fetchedThumbnail(image, path) {
  if (!token() || !(await currentSession()).read_needs_token) return null;
  for (;;) {
    await near(image); // after a wait as well: what is no longer looked at does not ask again
    const response = await fetch(path, { headers: { Authorization: `Bearer ${token()}` } });
    if (isBusy(response.status)) {
      await pause(seconds(response.headers.get("Retry-After")) * 1000);
      continue;
    }
    if (!response.ok) return null;
    const url = URL.createObjectURL(await response.blob());
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    return url;
  }
}

const arrivals = new WeakMap();

const views = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    views.unobserve(target);
    arrivals.get(target)();
  }
}, { rootMargin: "50% 0px" });

// Resolves once an image is in the view, or less than half the view's height away; never for one that has left the page.
function near(image) {
  return new Promise((resolve) => {
    arrivals.set(image, resolve);
    views.observe(image);
  });
}
