(() => {
  "use strict";
  const all = JSON.parse(document.getElementById("data").textContent);
  const PER_PAGE = 30;
  const NODES = 12;
  const query = document.getElementById("query");
  const order = document.getElementById("order");
  const judged = document.getElementById("judged");
  const list = document.getElementById("list");
  const text = (one) => [
    one.title, one.label || "", ...one.answers.map((pair) => pair[0]), ...one.tokens, ...one.nodes,
    ...one.examples.map((pair) => pair.join("")),
  ].join("\n").toLowerCase();
  const words = all.map(text);
  const last = (value) => (value === null ? -Infinity : value);
  const orders = {
    size: (a, b) => b.size - a.size,
    loss: (a, b) => a.mean - b.mean,
    variety: (a, b) => b.distinct / b.size - a.distinct / a.size,
    faithfulness: (a, b) => last(b.faithfulness) - last(a.faithfulness),
    purity: (a, b) => last(b.purity) - last(a.purity),
    number: (a, b) => a.id - b.id,
  };
  let page = 0;

  // Texts are only ever set as text: they come from documents that nobody has read.
  const make = (name, kind, said, ...inside) => {
    const made = document.createElement(name);
    if (kind) made.className = kind;
    if (said !== undefined && said !== null) made.textContent = said;
    made.append(...inside);
    return made;
  };
  const percent = (share) => {
    const whole = Math.round(100 * share);
    return (whole < 0 ? "\u2212" : "") + Math.abs(whole) + " %";
  };
  // A space at an end of an answer is part of the token, and would not be seen.
  const spaced = (word) => word.replace(/^ +| +$/g, (blanks) => "\u2423".repeat(blanks.length));

  const draw = (one) => {
    const link = make("a", "", one.title);
    link.href = one.page;
    const said = [one.size + " contexts", "loss " + one.loss + " nats"];
    if (one.documents !== one.size) said[0] += " of " + one.documents + (one.documents === 1 ? " document" : " documents");
    if (one.label !== null) said.push(percent(one.purity) + " " + one.label);
    if (one.faithfulness !== null) {
      const ends = one.faithfulness_low === null ? ""
        : " [" + percent(one.faithfulness_low) + ", " + percent(one.faithfulness_high) + "]";
      const random = one.random_faithfulness_median === null ? ""
        : ", random nodes " + percent(one.random_faithfulness_median);
      said.push("circuit keeps " + percent(one.faithfulness) + ends + random);
    }
    const head = make("h3", "", null, link, make("small", "", said.join(" \u00b7 ")));
    const answers = make("ul", "answers", null, ...one.answers.map(([word, n]) =>
      make("li", "", spaced(word), make("small", "", " \u00d7 " + n))));
    if (one.distinct > one.answers.length) {
      answers.append(make("li", "", "", make("small", "", one.distinct - one.answers.length + " more")));
    }
    const examples = make("ul", "contexts", null, ...one.examples.map(([context, answer]) =>
      make("li", "", null, make("span", "ctx", context), make("mark", "answer", answer))));
    const box = make("article", "cluster", null, head, answers, examples);
    if (one.nodes.length) {
      box.append(make("div", "nodes", null, make("span", "of", "circuit"), ...one.nodes.slice(0, NODES).map((node) => {
        const button = make("button", "", node);
        button.type = "button";
        button.title = "clusters with this node";
        button.addEventListener("click", () => { query.value = node; search(); });
        return button;
      }), ...(one.nodes.length > NODES ? [make("span", "of", one.nodes.length - NODES + " more")] : [])));
    }
    if (one.error !== null) box.append(make("p", "warn", "No circuit: " + one.error));
    return box;
  };

  const show = () => {
    const asked = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const whole = query.value.trim().toLowerCase();
    const found = all.filter((one, i) =>
      (!judged.checked || one.nodes.length) && (words[i].includes(whole) || asked.every((word) => words[i].includes(word))));
    found.sort((a, b) => orders[order.value](a, b) || a.id - b.id);
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.max(0, Math.min(page, pages - 1));
    list.replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(draw));
    if (!found.length) list.append(make("p", "hint", "Nothing found."));
    document.getElementById("count").textContent = found.length + " of " + all.length + " clusters";
    document.querySelectorAll(".pager").forEach((pager) => {
      pager.hidden = pages < 2;
      pager.querySelector("span").textContent = "page " + (page + 1) + " of " + pages;
      pager.querySelector("[data-step='-1']").disabled = page === 0;
      pager.querySelector("[data-step='1']").disabled = page === pages - 1;
    });
    const state = new URLSearchParams();
    if (query.value) state.set("q", query.value);
    if (order.value !== "size") state.set("order", order.value);
    if (page) state.set("page", page + 1);
    try { history.replaceState(null, "", "#" + state); } catch (error) { /* some browsers keep files from it */ }
  };
  const search = () => { page = 0; show(); };
  query.addEventListener("input", search);
  order.addEventListener("change", search);
  judged.addEventListener("change", search);
  document.querySelectorAll(".pager button").forEach((button) => button.addEventListener("click", () => {
    page += Number(button.dataset.step);
    show();
    document.getElementById("clusters").scrollIntoView();
  }));
  const state = new URLSearchParams(location.hash.slice(1));
  query.value = state.get("q") || "";
  if (Object.hasOwn(orders, state.get("order"))) order.value = state.get("order");
  page = Math.max(0, (Number.parseInt(state.get("page"), 10) || 1) - 1);
  show();
})();
