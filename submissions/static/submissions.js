// Sends a file in chunks that go on after a broken line, and keeps the page of a submission live.
// Without this script the form sends the file in one piece, and the page loads itself anew.
"use strict";

(() => {
  // --- SHA-256 (FIPS 180-4): the browser's own takes a file only as a whole, in memory ----------

  const K = new Uint32Array(64);
  const START = new Uint32Array(8);
  const fraction = (x) => ((x - Math.floor(x)) * 2 ** 32) >>> 0;
  for (let n = 2, found = 0; found < 64; n += 1) {
    let prime = true;
    for (let d = 2; d * d <= n; d += 1) if (n % d === 0) prime = false;
    if (!prime) continue;
    if (found < 8) START[found] = fraction(Math.sqrt(n));
    K[found] = fraction(Math.cbrt(n));
    found += 1;
  }

  const hasher = () => {
    const h = START.slice();
    const w = new Uint32Array(64);
    let rest = new Uint8Array(0);
    let total = 0;
    const block = (view, at) => {
      for (let i = 0; i < 16; i += 1) w[i] = view.getUint32(at + 4 * i);
      for (let i = 16; i < 64; i += 1) {
        const x = w[i - 15];
        const y = w[i - 2];
        const s = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
        const t = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
        w[i] = w[i - 16] + s + w[i - 7] + t;
      }
      let [a, b, c, d, e, f, g, k] = h;
      for (let i = 0; i < 64; i += 1) {
        const s = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
        const t1 = (k + s + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
        const u = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
        const t2 = (u + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        k = g; g = f; f = e; e = (d + t1) | 0; d = c; c = b; b = a; a = (t1 + t2) | 0;
      }
      h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += k;
    };
    const add = (bytes) => {
      total += bytes.length;
      const all = new Uint8Array(rest.length + bytes.length);
      all.set(rest);
      all.set(bytes, rest.length);
      const view = new DataView(all.buffer);
      const whole = all.length - (all.length % 64);
      for (let at = 0; at < whole; at += 64) block(view, at);
      rest = all.slice(whole);
    };
    const hex = () => {
      const bits = total * 8;
      const end = new Uint8Array(((rest.length + 9 + 63) & ~63) - rest.length);
      const view = new DataView(end.buffer);
      end[0] = 0x80;
      view.setUint32(end.length - 8, Math.floor(bits / 2 ** 32));
      view.setUint32(end.length - 4, bits >>> 0);
      add(end);
      return [...h].map((x) => x.toString(16).padStart(8, "0")).join("");
    };
    return { add, hex };
  };

  // --- the form ---------------------------------------------------------------------------------

  const KINDS = { safetensors: "safetensors", onnx: "onnx", parquet: "predictions" };
  const TRIES = 8; // with the delays below some four minutes in which a line may come back
  const HASH_AT_ONCE = 4 << 20;
  const form = document.getElementById("submit");

  const wait = (ms) => new Promise((done) => setTimeout(done, ms));

  class Refused extends Error {}

  const setUp = () => {
    const input = document.getElementById("file");
    const bar = document.getElementById("bar");
    const said = document.getElementById("said");
    const trouble = document.getElementById("trouble");
    const send = document.getElementById("send");
    const csrf = form.elements.csrf.value;
    const uploads = form.dataset.uploads;

    const tell = (text, share) => {
      document.getElementById("transfer").hidden = false;
      said.textContent = text;
      bar.value = 100 * share;
    };

    const ask = async (method, path, options = {}) => {
      const answer = await fetch(uploads + path, {
        method,
        body: options.body,
        headers: { "X-CSRF-Token": csrf, ...options.headers },
      });
      const told = await answer.json().catch(() => ({}));
      if (answer.ok || answer.status === 409) return { status: answer.status, ...told };
      if (answer.status >= 500 || answer.status === 429) {
        const after = Number(answer.headers.get("Retry-After") ?? 0);
        if (after > 120) throw new Refused(told.error);
        throw Object.assign(new Error(told.error), { after });
      }
      throw new Refused([told.error, told.hint].filter(Boolean).join(" "));
    };

    const patiently = async (once, retry) => {
      for (let tries = 1; ; tries += 1) {
        try {
          return await once();
        } catch (error) {
          if (error instanceof Refused || tries >= TRIES) throw error;
          const seconds = Math.max(error.after ?? 0, 2 ** (tries - 1));
          tell(`The line broke off; the next try is in ${seconds} s.`, bar.value / 100);
          await wait(1000 * seconds);
          await retry?.();
        }
      }
    };

    const hashed = async (file) => {
      const sum = hasher();
      for (let at = 0; at < file.size; at += HASH_AT_ONCE) {
        sum.add(new Uint8Array(await file.slice(at, at + HASH_AT_ONCE).arrayBuffer()));
        tell("Computing the checksum", Math.min(1, (at + HASH_AT_ONCE) / file.size));
      }
      return sum.hex();
    };

    const transfer = async (file) => {
      const kind = KINDS[file.name.split(".").pop().toLowerCase()];
      if (!kind) {
        throw new Refused(
          "Files are taken as .safetensors, .onnx or .parquet. Convert a checkpoint on your own machine: tomoprobe pack FILE.",
        );
      }
      const sha256 = await hashed(file);
      const body = JSON.stringify({ kind, size: file.size, sha256 });
      const headers = { "Content-Type": "application/json" };
      // the same file again is the same upload: it goes on where it was
      const upload = await patiently(() => ask("POST", "", { body, headers }));
      let { offset } = upload;
      while (upload.state !== "complete") {
        tell(`Uploading, ${Math.round((100 * offset) / file.size)} %`, offset / file.size);
        const chunk = file.slice(offset, offset + upload.chunk_bytes);
        const answer = await patiently(
          () =>
            ask("PATCH", `/${upload.id}`, {
              body: chunk,
              headers: {
                "Upload-Offset": String(offset),
                "Content-Type": "application/offset+octet-stream",
              },
            }),
        );
        if (answer.status === 409) {
          const now = await patiently(() => ask("GET", `/${upload.id}`));
          if (!["open", "complete"].includes(now.state)) {
            throw new Refused(now.reason?.message ?? `The upload is ${now.state}. Begin anew.`);
          }
          if (now.offset === offset && now.state === "open") await wait(2000);
          offset = now.offset;
          upload.state = now.state;
        } else {
          offset = answer.offset;
          upload.state = answer.state;
        }
      }
      tell("Uploaded", 1);
      return upload.id;
    };

    form.addEventListener("submit", async (event) => {
      const [file] = input.files;
      if (!file) return;
      event.preventDefault();
      trouble.hidden = true;
      send.disabled = true;
      try {
        document.getElementById("upload").value = await transfer(file);
        input.disabled = true; // it has been sent
        form.submit();
      } catch (error) {
        trouble.textContent = error.message || "The upload failed. Try again: it goes on where it was.";
        trouble.hidden = false;
        send.disabled = false;
        trouble.scrollIntoView({ block: "center" });
      }
    });
    addEventListener("pageshow", () => { send.disabled = false; input.disabled = false; });
  };

  if (form && window.fetch) setUp();

  // --- the page of a submission -----------------------------------------------------------------

  const follow = () => {
    const address = document.getElementById("live")?.dataset.events;
    if (!address) return;
    const events = new EventSource(address);
    let first = true;
    events.addEventListener("state", async () => {
      if (first) { first = false; return; } // the page was made from it
      const answer = await fetch(location.href);
      if (!answer.ok) return location.reload();
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const live = page.getElementById("live");
      if (!live) return location.reload();
      if (!live.dataset.events) return location.reload(); // ended: the buttons change, too
      const open = [...document.querySelectorAll("#live details")].map((d) => d.open);
      document.getElementById("live").replaceWith(document.adoptNode(live));
      document.title = page.title;
      document.querySelectorAll("#live details").forEach((d, i) => { d.open = open[i] ?? d.open; });
    });
    addEventListener("pagehide", () => events.close());
  };

  if (window.EventSource) follow();
})();
