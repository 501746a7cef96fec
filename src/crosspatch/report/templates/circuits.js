(() => {
  // Pointing at a part leaves only what it reads and what reads it.
  document.querySelectorAll(".graph svg").forEach((drawing) => {
    const edges = [...drawing.querySelectorAll("path.edge")];
    const parts = new Map([...drawing.querySelectorAll(".part")].map((part) => [part.dataset.n, part]));
    const clear = () => {
      drawing.classList.remove("lit");
      drawing.querySelectorAll(".lit").forEach((one) => one.classList.remove("lit"));
    };
    parts.forEach((part, n) => {
      part.addEventListener("pointerenter", () => {
        clear();
        drawing.classList.add("lit");
        part.classList.add("lit");
        edges.forEach((edge) => {
          if (edge.dataset.a !== n && edge.dataset.b !== n) return;
          edge.classList.add("lit");
          parts.get(edge.dataset.a).classList.add("lit");
          parts.get(edge.dataset.b).classList.add("lit");
        });
      });
      part.addEventListener("pointerleave", clear);
    });
  });
})();
