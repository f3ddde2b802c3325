// Lets a browser in that brings an invitation, keeps the parts of the page up to date, and carries out its buttons.
//
// Always true: text from the server becomes HTML only where the server made it HTML; everything else is set as text.
// Whoever works with the keyboard is never thrown back to the top: what is replaced gives the focus to what takes its place.
"use strict";

const EVENTS_MAX = 100;
const SAID_MS = 6000;
const TOUCHED_MS = 15000;
const TYPED_MS = 200;

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
  let said;
  try {
    said = await answer.json();
  } catch {
    throw new Error(`the answer (${answer.status}) cannot be read; load the page again`);
  }
  if (!answer.ok) {
    throw new Error(said.remedy ? `${said.message}; ${said.remedy}` : said.message);
  }
  return said;
}

// With a full stop, unless it ends in something like one.
function ended(words) {
  return /[.!?\u2026]$/.test(words) ? words : `${words}.`;
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

// --- focus

function focusOn(element) {
  if (element && element.tabIndex < 0) {
    element.tabIndex = -1;
  }
  element?.focus({ preventScroll: true });
}

// Where somebody is within a part, in terms that outlive its being replaced: the element, its row, the part.
function whereIn(part) {
  const at = document.activeElement;
  if (!part.contains(at)) {
    return null;
  }
  const rows = [...part.querySelectorAll(".rows > li")];
  const summaryOf = at.tagName === "SUMMARY" ? at.parentElement.id : "";
  return { id: at.id, summaryOf, row: rows.findIndex((row) => row.contains(at)) };
}

function goBackTo({ id, summaryOf, row }, part) {
  const same = summaryOf ? byId(summaryOf)?.querySelector("summary") : id && byId(id);
  const rows = part.querySelectorAll(".rows > li");
  focusOn(same || (row >= 0 && rows[Math.min(row, rows.length - 1)]) || part);
}

// Opens a dialog. Afterwards the focus goes to what opened it, or to what has taken its place meanwhile.
function openDialog(dialog, opener) {
  if (dialog.open) {
    return; // pressed twice, before the answer to the first was there
  }
  const within = opener.closest("[id^='part-'], #events");
  const where = within && whereIn(within);
  dialog.addEventListener(
    "close",
    () => {
      const at = document.activeElement;
      if (at !== document.body && !dialog.contains(at)) {
        return; // the browser has given it back
      }
      if (opener.isConnected) {
        focusOn(opener);
      } else if (within) {
        const part = byId(within.id);
        goBackTo(where ?? { id: opener.id, summaryOf: "", row: -1 }, part);
      }
    },
    { once: true },
  );
  dialog.showModal();
}

// --- parts

const shown = new Map();
const postponed = new Map();
let pressed = null;

// The list of identities comes with an empty place for each: it is made anew only when it has others.
function listsTheSame(part, html) {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  const places = (within) => [...within.querySelectorAll("li[id], .more")].map((each) => each.id || each.textContent);
  return places(fresh.content).length > 0 && places(fresh.content).join() === places(part).join();
}

// A click needs the button that it began on, and a copy the text that was marked.
function isTouched(part) {
  const marked = getSelection();
  return (pressed && part.contains(pressed)) || (!marked.isCollapsed && part.contains(marked.anchorNode));
}

function show(name, html) {
  const part = byId(`part-${name}`);
  if (!part || (shown.get(name) === html && !postponed.has(name))) {
    return;
  }
  if (isTouched(part)) {
    postponed.set(name, { html, until: postponed.get(name)?.until ?? Date.now() + TOUCHED_MS });
    return;
  }
  replace(name, part, html);
}

function showPostponed() {
  for (const [name, { html, until }] of [...postponed]) {
    const part = byId(`part-${name}`);
    if (!part) {
      postponed.delete(name);
    } else if (!isTouched(part) || Date.now() > until) {
      replace(name, part, html);
    }
  }
}

function replace(name, part, html) {
  postponed.delete(name);
  if (name === "identities") {
    shown.clear();
    if (listsTheSame(part, html)) {
      shown.set(name, html);
      return;
    }
  }
  shown.set(name, html);
  const where = whereIn(part);
  const open = [...part.querySelectorAll("details[open]")].map((each) => each.id);
  const scrolled = part.querySelector(":scope > .rows")?.scrollTop ?? 0;
  part.innerHTML = html;
  tellTimes(part);
  if (scrolled) {
    part.querySelector(":scope > .rows")?.scrollTo(0, scrolled);
  }
  for (const id of open) {
    const details = byId(id);
    if (details) details.open = true;
  }
  if (where) {
    goBackTo(where, part);
  }
  if (name === "health") {
    tellHealth(part);
  }
}

// Heard once when it changes; what is seen counts seconds, which nobody wants to hear.
function tellHealth(part) {
  const { told } = part.firstElementChild.dataset;
  if (byId("flows").dataset.last !== told) {
    byId("flows").textContent = "last" in byId("flows").dataset ? told : "";
    byId("flows").dataset.last = told;
  }
  document.title = part.querySelector(".bad") ? "Not flowing: agentd" : "agentd";
}

// --- events

let held = null;
let toldAnew = false; // while held, by a new connection: what the list shows will be told again

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

function clearEvents() {
  if (byId("events").contains(document.activeElement)) {
    focusOn(byId("events"));
  }
  byId("events").replaceChildren();
}

function hold() {
  const button = byId("hold");
  const waiting = held;
  held = held ? null : [];
  button.setAttribute("aria-pressed", String(held !== null));
  if (toldAnew) {
    toldAnew = false;
    clearEvents();
  }
  for (const each of waiting ?? []) {
    flow(each);
  }
}

function follow() {
  const stream = new EventSource("/api/stream");
  const lost = byId("lost");
  stream.addEventListener("open", () => {
    lost.hidden = true;
    if (held) {
      held = [];
      toldAnew = true;
    } else {
      clearEvents();
    }
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
let failedAt = null;

function say(words) {
  const line = document.createElement("p");
  line.textContent = words;
  forgive();
  byId("said").replaceChildren(line);
  clearTimeout(saying);
  saying = setTimeout(() => byId("said").replaceChildren(), SAID_MS);
}

// What went wrong stays until it was read.
function complain(words, button) {
  const line = document.createElement("p");
  const close = document.createElement("button");
  line.textContent = words;
  close.type = "button";
  close.textContent = "Close";
  close.addEventListener("click", forgive);
  // A button of a dialog that was closed has given the focus back already.
  failedAt = document.activeElement === document.body ? button : document.activeElement;
  byId("said").replaceChildren();
  byId("failed").replaceChildren(line, close);
}

function forgive() {
  const back = byId("failed").contains(document.activeElement) ? failedAt : null;
  byId("failed").replaceChildren();
  if (back) {
    focusOn(back.isConnected ? back : byId(back.id) ?? byId("main"));
  }
}

function agreed(dialog, button) {
  dialog.returnValue = "no";
  openDialog(dialog, button);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function confirmed(button) {
  const { ask: question, means, yes } = button.dataset;
  byId("confirm-title").textContent = question;
  byId("confirm-words").textContent = means;
  byId("confirm-yes").textContent = yes;
  return agreed(byId("confirm"), button);
}

async function press(button) {
  const { post, body, done, then } = button.dataset;
  if (button.ariaDisabled === "true" || (button.dataset.ask && !(await confirmed(button)))) {
    return;
  }
  // Not `disabled`, which would take the focus away.
  button.ariaDisabled = "true";
  // What is said stands on the page, which cannot be seen or heard from within a dialog.
  button.closest("dialog")?.close();
  try {
    await ask(post, body ? JSON.parse(body) : {});
    if (then === "leave") {
      location.reload();
    } else {
      say(ended(`Done: ${done}`));
    }
  } catch (failed) {
    complain(ended(`Not done: ${failed.message}`), button);
  } finally {
    button.ariaDisabled = null;
  }
}

// --- pausing

let suggesting = 0;
let typing = 0;

function options(values) {
  return values.map((value) => {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = printable(value);
    return option;
  });
}

// Of one conversation, or, without one, of any that is named.
async function pause(button) {
  const { pause: identity, conversation } = button.dataset;
  let names = [identity];
  if (conversation === undefined) {
    try {
      names = (await ask("/api/status")).identities.map((each) => each.name);
    } catch (failed) {
      complain(ended(`Not paused: ${failed.message}`), button);
      return;
    }
  }
  byId("pause-identity").replaceChildren(...options(names));
  byId("pause-identity").disabled = conversation !== undefined;
  byId("pause-conversation").value = conversation ?? "";
  byId("pause-conversation").readOnly = conversation !== undefined;
  byId("pause-failed").textContent = "";
  byId("pause-known").replaceChildren();
  openDialog(byId("pause"), button);
  byId(conversation === undefined ? "pause-conversation" : "pause-for").focus();
  if (conversation === undefined) {
    suggest();
  }
}

// A help, and no more: who knows the id needs none.
async function suggest() {
  const mine = ++suggesting;
  const identity = encodeURIComponent(byId("pause-identity").value);
  const prefix = encodeURIComponent(byId("pause-conversation").value);
  try {
    const { conversations } = await ask(`/api/conversations?identity=${identity}&prefix=${prefix}`);
    if (mine === suggesting) {
      byId("pause-known").replaceChildren(...options(conversations));
    }
  } catch {
    byId("pause-known").replaceChildren();
  }
}

async function pauseNow(event) {
  event.preventDefault();
  const button = byId("pause-yes");
  if (button.ariaDisabled === "true") {
    return;
  }
  const length = byId("pause-for").value;
  const wanted = {
    identity: byId("pause-identity").value,
    conversation: byId("pause-conversation").value.trim(),
    for_s: length ? Number(length) : null,
  };
  button.ariaDisabled = "true";
  byId("pause-failed").textContent = "";
  try {
    const { conversation } = await ask("/api/pause", wanted);
    byId("pause").close();
    byId("explained").close();
    say(`Done: ${printable(conversation)} is paused.`);
  } catch (failed) {
    byId("pause-failed").textContent = ended(`Not paused: ${failed.message}`);
  } finally {
    button.ariaDisabled = null;
  }
}

// --- dialogs that tell

async function explain(button) {
  const { explain: position, of: identity } = button.dataset;
  let found;
  try {
    found = await ask(`/api/explanation?position=${position}&identity=${encodeURIComponent(identity)}`);
  } catch (failed) {
    complain(ended(`Not explained: ${failed.message}`), button);
    return;
  }
  byId("explanation").innerHTML = found.html;
  byId("explained-act").innerHTML = found.act;
  tellTimes(byId("explanation"));
  openDialog(byId("explained"), button);
  byId("explained").scrollTop = 0;
}

// With characters written out that show nothing, or that turn the direction of writing around.
function printable(text) {
  return String(text).replace(
    /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
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

async function showLetter(button) {
  const number = button.dataset.letter;
  let letter;
  try {
    letter = await ask(`/api/dead/letter?number=${encodeURIComponent(number)}`);
  } catch (failed) {
    complain(ended(`Not shown: ${failed.message}`), button);
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
  byId("letter-trace").textContent = printable(letter.traceback);
  openDialog(byId("letter"), button);
  byId("letter").scrollTop = 0;
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
  setInterval(() => {
    tellTimes(document);
    showPostponed();
  }, 1000);
  tellHealth(byId("part-health"));
  document.addEventListener("pointerdown", (event) => {
    pressed = event.target;
  });
  for (const over of ["pointerup", "pointercancel"]) {
    // The click comes first.
    document.addEventListener(over, () => setTimeout(() => {
      pressed = null;
      showPostponed();
    }));
  }
  document.addEventListener("selectionchange", showPostponed);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    const { post, letter, explain: position, pause: identity, pauseAny, close } = button?.dataset ?? {};
    if (post !== undefined) press(button);
    if (letter !== undefined) showLetter(button);
    if (position !== undefined) explain(button);
    if (identity !== undefined || pauseAny !== undefined) pause(button);
    if (close !== undefined) button.closest("dialog").close();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) forgive();
  });
  byId("hold").addEventListener("click", hold);
  byId("say")?.addEventListener("submit", talk);
  byId("pause-form").addEventListener("submit", pauseNow);
  byId("pause-identity").addEventListener("change", suggest);
  byId("pause-conversation").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(suggest, TYPED_MS);
  });
  follow();
}
