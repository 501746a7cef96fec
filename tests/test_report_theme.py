"""The choice between light and dark holds from page to page, and without storage on its own page."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from crosspatch.report.html import template_text

PAGE = """
const heard = {}, root = { dataset: {} }, button = { setAttribute() {}, addEventListener(_, f) { button.click = f; } };
globalThis.document = {
  documentElement: root, getElementById: () => button, querySelectorAll: () => [], addEventListener() {},
};
globalThis.matchMedia = () => ({ matches: DARK });
globalThis.addEventListener = (name, f) => { heard[name] = f; };
globalThis.IntersectionObserver = class { observe() {} };
const kept = KEPT;
Object.defineProperty(globalThis, "localStorage", { get() {
  if (kept === null) throw new Error("SecurityError");
  return { getItem: (key) => kept[key] ?? null, setItem: (key, value) => { kept[key] = value; } };
} });
SCRIPT
const seen = [[root.dataset.theme ?? null, button.textContent]];
for (const act of ACTS) {
  if (act === "click") button.click();
  else if (act === "back") { kept["crosspatch-theme"] = "dark"; heard.pageshow({ persisted: true }); }
  else heard.storage({ key: "crosspatch-theme", newValue: act });
  seen.push([root.dataset.theme ?? null, button.textContent]);
}
console.log(JSON.stringify({ seen, kept }));
"""


def ran(kept: dict[str, str] | None, acts: tuple[str, ...] = (), *, dark: bool = False) -> dict:
    """What a page shows at first and after each act, and what is kept after it; `kept` None: storage throws."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to run the script of a page")
    code = PAGE.replace("DARK", json.dumps(dark)).replace("KEPT", json.dumps(kept)).replace("ACTS", json.dumps(acts))
    code = code.replace("SCRIPT", template_text("report.js"))
    done = subprocess.run([node, "-"], input=code, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("dark", [False, True])
def test_what_is_chosen_on_one_page_is_shown_on_the_next(dark) -> None:
    own, other = ("dark", "light") if dark else ("light", "dark")
    first = ran({}, ("click",), dark=dark)
    assert first["seen"] == [[None, other.title()], [other, own.title()]]
    assert ran(first["kept"], dark=dark)["seen"] == [[other, own.title()]]
    assert ran(first["kept"], ("click",), dark=dark)["kept"] == {"crosspatch-theme": own}


def test_a_page_that_is_come_back_to_or_open_elsewhere_follows() -> None:
    assert ran({}, ("back", "light"))["seen"] == [[None, "Dark"], ["dark", "Light"], ["light", "Dark"]]


def test_without_storage_the_choice_holds_on_its_page() -> None:
    found = ran(None, ("click", "click"))
    assert found["seen"] == [[None, "Dark"], ["dark", "Light"], ["light", "Dark"]]


@pytest.mark.parametrize("value", ["", "<img>", "blue"])
def test_a_value_that_is_no_theme_is_not_used(value) -> None:
    assert ran({"crosspatch-theme": value})["seen"] == [[None, "Dark"]]
