"""Make the README's picture: `python docs/assets/figure.py`."""

from pathlib import Path

import crosspatch as cp
from crosspatch.report import heat_maps

model = cp.load("embedded")
task = cp.make_task("ioi", n=48, seed=0, tokenizer=model.tokenizer)
figures = heat_maps(cp.patch(model, task, "r*"))
for title, _figure in figures.items():
    print(title)
next(iter(figures.values())).save(Path(__file__).with_name("ioi-embedded.svg"))
