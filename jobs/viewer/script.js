"use strict";
// Draws the rows of a store from the data in the page: a row when it comes near the screen, and no longer than it
// stays there. All that comes from the store is set as text and never parsed as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const [list, tip, search, count, choice, scale, legend] =
  ["list", "tip", "search", "count", "head", "scale", "legend"].map((id) => document.getElementById(id));
const LEVELS = 9; // of colour
const CONTEXT = 40; // characters before the token that the tip is about
const CLASSES = 5; // of a target that is not a token's
const UNKNOWN = "not kept"; // a class whose probability is an unknown part of all others'
const nextHeads = data.heads.flatMap((head, index) => (head.next ? [index] : []));
let coloured = nextHeads[0]; // the head whose entropy colours the tokens, undefined if there is none
let wanted = null; // what is searched for, as a regular expression

function make(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children); // texts become text nodes
  return element;
}

// Numbers and words

function unpack(text, wide) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return wide ? new Uint32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
}

const probability = (rarity) => (rarity === 65535 ? 0 : Math.exp(-rarity / data.rarity));

function written(p) {
  if (p === 0) return "0";
  return p >= 0.0005 ? p.toFixed(3) : p.toExponential(1);
}

const number = (value) => value.toLocaleString("en-US");
const plural = (value, what) => `${number(value)} ${what}${value === 1 ? "" : "s"}`;

// Control characters, and those that turn the direction of what follows, as escapes.
const escaped = (text) =>
  text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, (character) =>
    `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);

const inText = (text) => escaped(text).replace(/\t/g, "→\t").replace(/\n/g, "↵\n");
const inLine = (text) => escaped(text).replace(/\t/g, "→").replace(/\n/g, "↵");

function word(head, id) {
  const text = data.heads[head].words[id];
  if (!text || text.includes("\ufffd")) return `#${id}`;
  return data.heads[head].next ? inLine(text).replace(/ /g, "·") : inLine(text);
}

// Targets

const unpacked = new Map(); // of the rows that are drawn

function columns(row, head) {
  const packed = data.rows[row].heads[head];
  if (!unpacked.has(packed)) {
    const wide = data.heads[head].size > 65536;
    const out = { came: null, cameRarity: null };
    for (const name of ["shown", "head", "rarity", "rest", "entropy", "cameRarity"]) if (packed[name]) out[name] = unpack(packed[name]);
    for (const name of ["ids", "came"]) if (packed[name]) out[name] = unpack(packed[name], wide);
    out.stored = unpack(packed.stored, true);
    let sum = 0;
    out.starts = Array.from(out.shown, (shown) => (sum += shown) - shown);
    unpacked.set(packed, out);
  }
  return unpacked.get(packed);
}

function target(row, head, at) {
  if (at >= data.rows[row].heads[head].targets) return null;
  const all = columns(row, head);
  const start = all.starts[at];
  const entries = Array.from({ length: all.shown[at] }, (_, i) => ({
    id: all.ids[start + i],
    p: probability(all.rarity[start + i]),
    isHead: i < all.head[at],
  }));
  entries.sort((a, b) => b.p - a.p);
  const came = all.came && { id: all.came[at], p: probability(all.cameRarity[at]) };
  return { entries, came, rest: probability(all.rest[at]), stored: all.stored[at], entropy: all.entropy[at] / 1000 };
}

function bar(p, kind) {
  const line = make("i", kind);
  line.style.width = `${100 * p}%`;
  return make("td", "bar", line);
}

// The likeliest classes, the sum of all others, and the class that really came, with its bar and its mark.
function table(head, { entries, came, rest, stored }, most = entries.length) {
  const { size, partial, named } = data.heads[head];
  const shown = entries.slice(0, most);
  const lines = shown.map(({ id, p, isHead }) => [came?.id === id ? "came" : "", id, p, isHead ? "head" : "tail"]);
  const others = entries.slice(most).reduce((sum, { p }) => sum + p, rest);
  const more = stored - shown.length;
  const rests = [more > 0 ? `${number(more)} more` : "", partial && stored < size ? "all others" : ""].filter(Boolean);
  const isShown = came && shown.some(({ id }) => id === came.id);
  // What came may be one of the less likely stored classes, or none.
  if (came && !isShown) lines.push(["came", came.id, came.p, came.p > 0 ? "" : partial ? UNKNOWN : "not drawn"]);

  const body = make("tbody");
  const add = (name, text, id, p, mark) => {
    const first = make("th", "word", text);
    first.scope = "row";
    const known = mark === UNKNOWN ? "–" : written(p);
    body.append(make("tr", name, first, make("td", "n id", id), make("td", "n", known), bar(p, mark), make("td", "mark", mark)));
  };
  for (const [name, id, p, mark] of lines) add(name, word(head, id), named ? String(id) : "", p, mark);
  if (rests.length) add("rest", rests.join(", "), "", others, "");
  return make("table", "distribution", body);
}

// Rows

function tokens(index) {
  const row = data.rows[index];
  const lengths = unpack(row.lengths);
  const entropy = coloured !== undefined && row.heads[coloured].targets ? columns(index, coloured).entropy : [];
  const perLevel = (1000 * (coloured === undefined ? 1 : data.heads[coloured].top)) / LEVELS;
  const block = make("div", "tokens");
  block.setAttribute("role", "group");
  block.setAttribute("aria-label", "tokens");
  let start = 0;
  lengths.forEach((length, at) => {
    const token = make("span", "t", length ? inText(row.text.slice(start, start + length)) : "⋅");
    if (!length) token.classList.add("part");
    if (at < entropy.length) token.classList.add(`e${Math.min(LEVELS - 1, Math.floor(entropy[at] / perLevel))}`);
    token.tabIndex = at ? -1 : 0;
    token.row = index;
    token.at = at;
    token.start = start;
    token.stop = start += length;
    block.append(token);
  });
  return block;
}

function heading(row) {
  const facts = [row.views > 1 ? `view ${row.view + 1} of ${row.views}` : "", `unit ${row.unit.slice(0, 12)}`];
  if (row.length !== undefined) {
    const shown = unpack(row.lengths).length;
    facts.push(plural(row.length, "token") + (shown < row.length ? `, ${number(shown)} shown` : ""));
  }
  return make("div", "title", make("bdi", "key", escaped(row.key)), make("span", "facts", facts.filter(Boolean).join(" · ")));
}

function fill(article) {
  if (article.classList.contains("filled")) return;
  const row = data.rows[article.row];
  article.append(heading(row));
  const body = make("div", "body");
  for (const { name, png, note } of row.pictures) {
    const image = make("img");
    image.src = `data:image/png;base64,${png}`;
    image.alt = `${name} of ${row.key}`;
    body.append(make("figure", "picture", image, make("figcaption", "", [row.pictures.length > 1 ? name : "", note].filter(Boolean).join(": "))));
  }
  if (row.inputs.length) body.append(make("p", "inputs", row.inputs.map(escaped).join("; ")));
  if (row.text !== undefined) body.append(tokens(article.row));
  data.heads.forEach((head, index) => {
    if (head.next || !row.heads[index].targets) return;
    const title = data.heads.length > 1 ? [make("p", "name", head.name)] : [];
    body.append(make("div", "classes", ...title, table(index, target(article.row, index, 0), CLASSES)));
  });
  article.append(body);
  article.style.minHeight = "";
  article.classList.add("filled");
  mark(article);
}

function empty(article) {
  if (!article.classList.contains("filled") || article.contains(document.activeElement)) return;
  if (about && about.row === article.row) hide();
  const { height } = article.getBoundingClientRect();
  if (height) article.style.minHeight = `${height}px`;
  article.replaceChildren();
  article.classList.remove("filled");
  for (const packed of data.rows[article.row].heads) unpacked.delete(packed);
}

// A guess at the height of a row that was never drawn, so that the scroll bar does not lie much.
function guessed(row) {
  if (row.text === undefined) return 200;
  const across = Math.max(30, list.clientWidth / 8.5);
  const lines = row.text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / across)), 0);
  return 80 + 27 * lines;
}

const near = new IntersectionObserver(
  (changes) => {
    for (const { target: article, isIntersecting } of changes) {
      article.near = isIntersecting;
      if (isIntersecting) fill(article);
      else empty(article);
    }
  },
  { rootMargin: "100% 0px" },
);

const articles = data.rows.map((row, index) => {
  const article = make("article", row.text === undefined ? "still" : "");
  article.row = index;
  article.style.minHeight = `${guessed(row)}px`;
  return article;
});

// The search

const haystacks = data.rows.map((row, index) => {
  const classes = data.heads.map((head, at) => (head.next ? null : target(index, at, 0)));
  const likeliest = classes.map((found, at) => (found && data.heads[at].words[found.entries[0].id]) || "");
  return [row.key, row.text || "", ...likeliest].join("\n");
});
unpacked.clear();

function mark(article) {
  const row = data.rows[article.row];
  const spans = article.getElementsByClassName("t");
  const hits = wanted && row.text ? Array.from(row.text.matchAll(wanted), (hit) => [hit.index, hit.index + hit[0].length]) : [];
  let next = 0;
  for (const span of spans) {
    while (next < hits.length && hits[next][1] <= span.start) next += 1;
    span.classList.toggle("hit", next < hits.length && hits[next][0] < span.stop);
  }
}

function filter() {
  const text = search.value.trim();
  wanted = text ? new RegExp(text.replace(/[\^$\\.*+?()[\]{}|/]/g, "\\$&"), "giu") : null;
  let found = 0;
  articles.forEach((article, index) => {
    article.hidden = wanted !== null && haystacks[index].search(wanted) < 0;
    if (article.hidden) return;
    found += 1;
    if (article.classList.contains("filled")) mark(article);
  });
  const total = plural(articles.length, "row");
  count.value = wanted ? `${number(found)} of ${total}` : total;
  hide();
  if (wanted && list.getBoundingClientRect().top < 0) document.getElementById("rows").scrollIntoView();
}

// The tip: what the teacher expects after a token

let about = null; // the token that the tip is about

function show(token) {
  hide();
  const found = coloured === undefined ? null : target(token.row, coloured, token.at);
  if (!found) return;
  const spans = token.parentElement.children;
  const { text } = data.rows[token.row];
  const before = inLine(text.slice(Math.max(0, token.start - CONTEXT), token.start));
  const context = make("p", "context", before, make("b", "", inLine(text.slice(token.start, token.stop)).replace(/ /g, "·")), " …");
  const facts = make("p", "facts",
    `entropy ${found.entropy.toFixed(2)} nats · ${plural(found.stored, "class").replace("classs", "classes")} stored`);
  tip.replaceChildren(context, facts, table(coloured, found));
  tip.hidden = false;
  token.classList.add("about");
  token.setAttribute("aria-describedby", "tip");
  if (spans[token.at + 1]) spans[token.at + 1].classList.add("came");
  about = token;
  place();
}

function hide() {
  if (!about) return;
  about.classList.remove("about");
  about.removeAttribute("aria-describedby");
  about.nextElementSibling?.classList.remove("came");
  about = null;
  tip.hidden = true;
}

// Below the token, or above it where there is more room. On a narrow screen the style sheet holds it at the bottom.
function place() {
  if (!about) return;
  const rect = Array.from(about.getClientRects()).at(-1);
  const { width, height } = tip.getBoundingClientRect();
  const below = rect.bottom + 6;
  const above = rect.top - height - 6;
  tip.style.left = `${Math.max(8, Math.min(rect.left, document.documentElement.clientWidth - width - 8))}px`;
  tip.style.top = `${below + height > innerHeight && above > 0 ? above : below}px`;
}

function move(token, key) {
  if (key === "ArrowRight") return token.nextElementSibling;
  if (key === "ArrowLeft") return token.previousElementSibling;
  if (key === "Home") return token.parentElement.firstElementChild;
  if (key === "End") return token.parentElement.lastElementChild;
  let article = token.closest("article");
  do article = key === "ArrowDown" ? article.nextElementSibling : article.previousElementSibling;
  while (article && article.hidden);
  if (!article) return null;
  fill(article);
  return article.querySelector(".t");
}

const narrow = matchMedia("(max-width: 33rem)"); // as in the style sheet
const tokenOf = (event) => event.target.closest?.(".t") ?? null;

list.addEventListener("mouseover", (event) => {
  const token = tokenOf(event) || (document.activeElement.matches(".t") ? document.activeElement : null);
  if (token && token !== about) show(token);
  else if (!token) hide();
});
list.addEventListener("mouseleave", () => (document.activeElement.matches(".t") ? show(document.activeElement) : hide()));
list.addEventListener("focusin", (event) => {
  const token = tokenOf(event);
  if (!token) return;
  for (const other of token.parentElement.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  token.tabIndex = 0;
  show(token);
  const hidden = token.getBoundingClientRect().bottom - tip.getBoundingClientRect().top;
  if (narrow.matches && !tip.hidden && hidden > 0) scrollBy(0, hidden + 40);
});
list.addEventListener("focusout", (event) => {
  hide();
  const article = event.target.closest("article");
  if (!article.near) setTimeout(() => empty(article));
});
list.addEventListener("keydown", (event) => {
  const token = tokenOf(event);
  if (!token || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Escape") return hide();
  if (!["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  move(token, event.key)?.focus();
});
addEventListener("scroll", place, { passive: true });
addEventListener("resize", place);

// The tools above the rows

function colour() {
  const { top, meaning } = data.heads[coloured];
  const swatches = Array.from({ length: LEVELS }, (_, level) => make("i", `e${level}`));
  scale.replaceChildren("0", make("span", "swatches", ...swatches), `${top} nats or more`);
  legend.textContent =
    `The colour of a token is the entropy of what the teacher expects after it, ${meaning}. ` +
    "Head: kept with the teacher's probability, as finely as the store has it. Tail: a draw that stands for the rest.";
  for (const article of articles.filter((one) => one.classList.contains("filled"))) {
    article.replaceChildren();
    article.classList.remove("filled");
    fill(article);
  }
}

if (coloured !== undefined) {
  nextHeads.forEach((index) => {
    const option = make("option", "", data.heads[index].name);
    option.value = index;
    choice.append(option);
  });
  document.getElementById("choice").hidden = nextHeads.length < 2;
  choice.addEventListener("change", () => {
    coloured = Number(choice.value);
    hide();
    colour();
  });
  colour();
}
list.classList.toggle("stills", data.rows.every((row) => row.text === undefined));
list.append(...articles);
articles.forEach((article) => near.observe(article));
document.querySelector(".tools").hidden = articles.length === 0;
search.addEventListener("input", filter);
filter();
