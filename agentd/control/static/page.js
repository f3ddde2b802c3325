// Lets a browser in that brings an invitation, keeps the parts of the page up to date, and carries out its buttons.
//
// Always true: text from the server becomes HTML only where the server made it HTML; everything else is set as text.
"use strict";

const EVENTS_MAX = 100;
const SAID_MS = 6000;

const byId = (id) => document.getElementById(id);

async function ask(path, body) {
  const given = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, { ...given, credentials: "same-origin", cache: "no-store" });
  } catch {
    throw new Error("the daemon does not answer");
  }
  const said = await answer.json();
  if (!answer.ok) {
    throw new Error(said.remedy ? `${said.message}; ${said.remedy}` : said.message);
  }
  return said;
}

// --- the doorway

async function enter() {
  const invitation = location.hash.slice(1);
  // At once, so that the link is neither kept in the history nor shown on the screen.
  history.replaceState(null, "", location.pathname);
  if (!invitation) {
    return;
  }
  try {
    await ask("/session", { invitation });
    location.replace("/");
  } catch (failed) {
    byId("doorway").textContent = `Not let in: ${failed.message}. For a new link, run`;
  }
}

// --- times

function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function told(kind, at, now) {
  const seconds = Math.max(0, (now - at) / 1000);
  if ("until" in kind) return at > now ? `for another ${span((at - now) / 1000)}` : "until now";
  if ("lasting" in kind) return `for ${span(seconds)}`;
  if ("ago" in kind) return seconds < 1.5 ? "just now" : `${span(seconds)} ago`;
  const clock = { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false };
  return new Date(at).toLocaleTimeString([], clock);
}

function tellTimes(within) {
  const now = Date.now();
  for (const time of within.querySelectorAll("time")) {
    const words = told(time.dataset, Date.parse(time.dateTime), now);
    if (time.textContent !== words) {
      time.textContent = words;
    }
  }
}

// --- parts

const shown = new Map();

// The list of identities comes with an empty place for each: it is made anew only when it has others.
function listsTheSame(part, html) {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  const places = (within) => [...within.querySelectorAll("li[id]")].map((each) => each.id).join();
  return places(fresh.content) !== "" && places(fresh.content) === places(part);
}

function show(name, html) {
  const part = byId(`part-${name}`);
  if (!part || shown.get(name) === html) {
    return;
  }
  if (name === "identities") {
    shown.clear();
    if (listsTheSame(part, html)) {
      shown.set(name, html);
      return;
    }
  }
  shown.set(name, html);
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const open = [...part.querySelectorAll("details[open]")].map((each) => each.id);
  const summaryOf = focused && focused.tagName === "SUMMARY" ? focused.parentElement.id : "";
  part.innerHTML = html;
  tellTimes(part);
  for (const id of open) {
    const details = byId(id);
    if (details) details.open = true;
  }
  if (focused) {
    // Whoever works with the keyboard stays where they were, or goes on at the top of this part.
    const again = summaryOf ? byId(summaryOf)?.querySelector("summary") : focused.id && byId(focused.id);
    if (again) {
      again.focus({ preventScroll: true });
    } else {
      part.tabIndex = -1;
      part.focus({ preventScroll: true });
    }
  }
}

// --- events

let held = null;

function flow({ html, skipped }) {
  if (held) {
    held.push({ html, skipped });
    held.splice(0, held.length - EVENTS_MAX);
    return;
  }
  const list = byId("events");
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  byId("no-events").hidden = true;
  if (skipped) {
    const line = document.createElement("li");
    line.className = "skipped";
    line.textContent = `${skipped.toLocaleString("en")} more, too fast to show`;
    fresh.content.append(line);
  }
  for (const each of fresh.content.children) {
    each.classList.add("fresh");
  }
  tellTimes(fresh.content);
  list.prepend(fresh.content);
  while (list.children.length > EVENTS_MAX) {
    forget(list.lastElementChild);
  }
}

// Whoever was at an event that goes is at the list then, and not thrown back to the top of the page.
function forget(event) {
  if (event.contains(document.activeElement)) {
    byId("events").focus({ preventScroll: true });
  }
  event.remove();
}

function hold() {
  const button = byId("hold");
  const waiting = held;
  held = held ? null : [];
  button.setAttribute("aria-pressed", String(held !== null));
  for (const each of waiting ?? []) {
    flow(each);
  }
}

function follow() {
  const stream = new EventSource("/api/stream");
  const lost = byId("lost");
  stream.addEventListener("open", () => {
    lost.hidden = true;
    byId("events").replaceChildren();
  });
  stream.addEventListener("error", () => {
    lost.hidden = false;
    if (stream.readyState === EventSource.CLOSED) {
      // Refused, and so not tried again by itself: the daemon is new and knows no session, or this one has ended.
      setTimeout(again, 5000);
    }
  });
  stream.addEventListener("part", (event) => {
    const { name, html } = JSON.parse(event.data);
    show(name, html);
  });
  stream.addEventListener("records", (event) => flow(JSON.parse(event.data)));
}

async function again() {
  try {
    const answer = await fetch("/api/status", { credentials: "same-origin", cache: "no-store" });
    if (answer.status === 401) {
      location.reload();
      return;
    }
  } catch {
    // Still away: EventSource is made anew below and goes on trying.
  }
  follow();
}

// --- buttons

let saying = 0;

function say(words) {
  const line = document.createElement("p");
  line.textContent = words;
  byId("said").replaceChildren(line);
  clearTimeout(saying);
  saying = setTimeout(() => byId("said").replaceChildren(), SAID_MS);
}

function agreed(dialog) {
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function confirmed({ ask: question, means, yes }) {
  byId("confirm-title").textContent = question;
  byId("confirm-words").textContent = means;
  byId("confirm-yes").textContent = yes;
  return agreed(byId("confirm"));
}

async function act(button, path, body, done) {
  button.disabled = true;
  // What is said stands on the page, which cannot be seen or heard from within a dialog.
  button.closest("dialog")?.close();
  try {
    await ask(path, body);
    say(`Done: ${done}.`);
    return true;
  } catch (failed) {
    say(`Not done: ${failed.message}.`);
    return false;
  } finally {
    button.disabled = false;
  }
}

async function press(button) {
  const { post, body, done, then } = button.dataset;
  if (button.dataset.ask && !(await confirmed(button.dataset))) {
    return;
  }
  if ((await act(button, post, body ? JSON.parse(body) : {}, done)) && then === "leave") {
    location.reload();
  }
}

async function pause(button) {
  const { pause: identity, conversation } = button.dataset;
  byId("pause-conversation").textContent = printable(conversation);
  byId("pause-identity").textContent = identity;
  if (await agreed(byId("pause"))) {
    const length = byId("pause-for").value;
    const wanted = { identity, conversation, for_s: length ? Number(length) : null };
    await act(button, "/api/pause", wanted, `${printable(conversation)} is paused`);
  }
}

async function explain(button) {
  const { explain: position, of: identity } = button.dataset;
  let found;
  try {
    found = await ask(`/api/explanation?position=${position}&identity=${encodeURIComponent(identity)}`);
  } catch (failed) {
    say(`Not explained: ${failed.message}.`);
    return;
  }
  byId("explanation").innerHTML = found.html;
  byId("explained-act").innerHTML = found.act;
  tellTimes(byId("explanation"));
  byId("explained").showModal();
  byId("explained").scrollTop = 0;
}

// With characters written out that show nothing, or that turn the direction of writing around.
function printable(text) {
  return String(text).replace(
    /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g,
    (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

function describe(list, pairs) {
  list.replaceChildren();
  for (const [name, value] of pairs) {
    const term = document.createElement("dt");
    const words = document.createElement("dd");
    term.textContent = name;
    words.textContent = printable(value);
    list.append(term, words);
  }
}

async function showLetter(number) {
  let letter;
  try {
    letter = await ask(`/api/dead/letter?number=${encodeURIComponent(number)}`);
  } catch (failed) {
    say(`Not shown: ${failed.message}.`);
    return;
  }
  byId("letter-title").textContent = `Dead letter ${number}`;
  const event = letter.event;
  describe(byId("letter-event"), [
    ["plugin", `${letter.plugin} ${letter.plugin_version}`.trim()],
    ["conversation", letter.conversation],
    ["error", letter.error],
    ...(event ? [["from", event.sender], ["seq", event.seq], ["text", event.text ?? event.type]] : []),
  ]);
  byId("letter-trace").textContent = letter.traceback;
  byId("letter").showModal();
}

// --- talking to the embedded hub's agent

function spoken(words, kind) {
  const line = document.createElement("li");
  line.className = kind;
  line.textContent = printable(words);
  byId("talk").append(line);
  while (byId("talk").children.length > EVENTS_MAX) {
    byId("talk").firstElementChild.remove();
  }
  byId("talk").scrollTop = byId("talk").scrollHeight;
}

async function talk(event) {
  event.preventDefault();
  const field = byId("say-text");
  const text = field.value.trim();
  if (!text) {
    return;
  }
  field.value = "";
  spoken(text, "mine");
  try {
    const answer = await ask("/api/say", { text });
    if (answer.reply) {
      spoken(answer.reply.text, "theirs");
    } else {
      spoken(answer.error ? `${answer.state}: ${answer.error}` : `${answer.state}; no reply yet`, "failed");
    }
  } catch (failed) {
    spoken(`Not sent: ${failed.message}`, "failed");
  }
}

// --- begin

if (document.querySelector("[data-doorway]")) {
  addEventListener("hashchange", enter);
  enter();
} else {
  history.replaceState(null, "", location.pathname);
  tellTimes(document);
  setInterval(() => tellTimes(document), 1000);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.post) {
      press(button);
    } else if (button?.dataset.letter) {
      showLetter(button.dataset.letter);
    } else if (button?.dataset.explain) {
      explain(button);
    } else if (button?.dataset.pause) {
      pause(button);
    }
  });
  byId("hold").addEventListener("click", hold);
  byId("say")?.addEventListener("submit", talk);
  follow();
}
