  const $ = (id) => document.getElementById(id);
  const EVERY_MS = 4000, TIMEOUT_MS = 10000;
  const kept = read();
  let timer = 0, asked = 0;

  function read() {
    try { return Object.assign({}, BLANK, JSON.parse(sessionStorage.getItem(STORE))); } catch { return { ...BLANK }; }
  }
  function keep() { try { sessionStorage.setItem(STORE, JSON.stringify(kept)); } catch { /* full or forbidden: memory has it */ } }

  // --- talking to the server -------------------------------------------------------------------------------------
  async function call(path, body, method) {
    const stop = new AbortController(), late = setTimeout(() => stop.abort(), TIMEOUT_MS);
    try {
      const headers = { Authorization: "Bearer " + kept.key };
      if (body) headers["Content-Type"] = "application/json";
      const answer = await fetch(path, { method: method || (body ? "POST" : "GET"), headers, signal: stop.signal, cache: "no-store",
        credentials: "omit", body: body && JSON.stringify(body) });
      const said = await answer.json().catch(() => ({}));
      if (answer.ok) return said;
      const told = said.error || { what: "the server answers " + answer.status, advice: "" };
      if (answer.status === 401) Object.assign(told, { what: "This key opens nothing here.", advice: "ask whoever runs evalpipe for a key of its API" });
      throw Object.assign(new Error(told.what + (told.advice ? " (" + told.advice + ")" : "")), { status: answer.status });
    } finally { clearTimeout(late); }
  }
  const isLocked = (error) => error.status === 401 || error.status === 403;
  const chosen = () => { try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; } };
  function choose(id) { if (chosen() === id) return refresh(); location.hash = encodeURIComponent(id); }

  function make(tag, text, kind) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  }
  const clock = (at) => new Date(at).toISOString().slice(0, 19).replace("T", " ");

  function signIn(trouble) {
    clearTimeout(timer); asked += 1;
    $("desk").hidden = true; $("signin").hidden = false;
    $("trouble").hidden = !trouble; $("trouble").textContent = trouble || "";
    $("name").value = kept.name; $("key").value = "";
    (kept.name ? $("key") : $("name")).focus();
  }
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("name").value.trim();
    if (!name) return $("name").focus();
    kept.name = name; kept.key = $("key").value.trim();
    keep(); begin();
  });
  $("cancel").addEventListener("click", () => $("order").close());
  $("leave").addEventListener("click", () => { sessionStorage.removeItem(STORE); location.hash = ""; location.reload(); });
  addEventListener("hashchange", () => { shown = null; refresh(); });
  addEventListener("online", () => { if (!$("desk").hidden) refresh(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !$("desk").hidden) refresh(); });

