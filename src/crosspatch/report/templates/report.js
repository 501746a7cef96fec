(() => {
  "use strict";
  const theme = document.getElementById("theme");
  const root = document.documentElement;
  const THEME = "crosspatch-theme";
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const use = (name) => {
    if (name === "dark" || name === "light") root.dataset.theme = name;
    theme.textContent = dark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", "Switch to " + theme.textContent.toLowerCase() + " colours");
  };
  // The choice holds on other pages too. Some browsers keep files from storage, and throw.
  const chosen = () => { try { return localStorage.getItem(THEME); } catch { return null; } };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    use(dark() ? "light" : "dark");
    try { localStorage.setItem(THEME, root.dataset.theme); } catch { /* it holds on this page */ }
  });
  addEventListener("pageshow", (event) => { if (event.persisted) use(chosen()); });
  addEventListener("storage", (event) => { if (event.key === THEME) use(event.newValue); });
  use(chosen());

  const tip = document.getElementById("tip");
  const place = (x, y) => {
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
  };
  // Slow native tooltips become quick ones. The text is only ever set as text.
  const words = new WeakMap();
  document.querySelectorAll(".cpf title").forEach((title) => {
    words.set(title.parentNode, title.textContent);
    title.remove();
  });
  const hide = () => { tip.hidden = true; };
  document.addEventListener("pointermove", (event) => {
    const said = words.get(event.target);
    if (said === undefined) return hide();
    tip.textContent = said;
    tip.hidden = false;
    place(event.clientX, event.clientY);
  });
  document.addEventListener("scroll", hide, { passive: true });
  document.addEventListener("focusin", (event) => {
    const mark = event.target.querySelector && event.target.matches("a") ? event.target.querySelector("rect") : null;
    if (!mark || !words.has(mark)) return hide();
    const box = mark.getBoundingClientRect();
    tip.textContent = words.get(mark);
    tip.hidden = false;
    place(box.right, box.top);
  });

  document.querySelectorAll(".astrip").forEach((strip) => {
    const rows = JSON.parse(strip.dataset.rows);
    const tokens = [...strip.querySelectorAll(".at")];
    const first = Number(strip.dataset.dest);
    const show = (destination) => {
      const row = rows[destination];
      tokens.forEach((token, i) => {
        const weight = row[i] || 0;
        token.style.setProperty("--a", 100 * weight ** 0.7 + "%");
        token.querySelector("small").textContent = weight >= 0.05 ? Math.round(100 * weight) : "";
        token.classList.toggle("dest", i === destination);
      });
    };
    tokens.forEach((token, i) => {
      token.addEventListener("pointerenter", () => show(i));
      token.addEventListener("focus", () => show(i));
    });
    strip.addEventListener("pointerleave", () => show(first));
    strip.addEventListener("focusout", () => show(first));
  });

  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    table.querySelectorAll("th[data-sort]").forEach((head) => {
      const sort = () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => {
          const number = parseFloat(row.cells[head.cellIndex].dataset.v);
          return Number.isNaN(number) ? -Infinity : number;
        };
        [...body.rows].sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b))).forEach((row) => body.append(row));
      };
      head.tabIndex = 0;
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
      });
    });
  });

  document.querySelectorAll("pre.copy").forEach((block) => {
    const text = block.textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch {
        getSelection().selectAllChildren(block);
      }
    });
    block.append(button);
  });

  const links = new Map([...document.querySelectorAll("nav ol a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    entries.forEach((entry) => {
      if (!entry.isIntersecting) return;
      links.forEach((a) => a.classList.remove("here"));
      links.get(entry.target.id)?.classList.add("here");
    });
  }, { rootMargin: "-10% 0px -75% 0px" });
  links.forEach((_, id) => { const target = document.getElementById(id); if (target) seen.observe(target); });
})();
