(() => {
  const cards = [...document.querySelectorAll(".card")];
  const out = document.getElementById("answers-text");
  const link = document.getElementById("answers-link");
  const write = () => {
    const answers = {}, notes = {};
    for (const card of cards) {
      answers[card.dataset.name] = card.querySelector("input[type=radio]:checked").value;
      const note = card.querySelector("input[type=text]").value.trim();
      if (note) notes[card.dataset.name] = note;
    }
    out.value = JSON.stringify({ judge: "person", answers, notes }, null, 1);
    link.href = "data:application/json;charset=utf-8," + encodeURIComponent(out.value);
  };
  document.addEventListener("input", write);
  write();
})();
