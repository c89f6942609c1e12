"""00_explore in JupyterLab, in a real browser: every control is clicked, and what appears is read."""

import importlib.util
import re

import pytest
from browser import browser_page, copy_notebook, find_browser, lab, open_notebook, restart, run_all, set_theme

SMALL = {"train_images": 24, "val_images": 16, "num_samples": 40, "score_batch": 20, "retrain_batch": 16}
FOUND = {"the package playwright": importlib.util.find_spec("playwright"), "a Chromium": find_browser()}
MISSING = [what for what, found in FOUND.items() if not found]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")
SOON = 120_000  # ms, on a busy machine


class Shown:
    """What a reader of the page sees of the panel."""

    def __init__(self, page):
        self.page, self.panel = page, page.locator(".lfpr-panel")

    def control(self, name):
        return self.panel.get_by_label(name, exact=True)

    def button(self, name):
        return self.panel.get_by_role("button", name=name)

    def says(self, text):
        """Wait until the panel says it."""
        self.panel.get_by_text(re.compile(text)).first.wait_for(timeout=SOON)

    def draws(self, text):
        """Wait until a picture's label says it."""
        self.panel.get_by_role("img", name=re.compile(text)).wait_for(timeout=SOON)

    def choose(self, name, value):
        self.panel.locator(".widget-dropdown", has_text=name).locator("select").select_option(label=value)

    def slide(self, key):
        self.panel.locator(".noUi-handle").press(key)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    copy_notebook(folder, runs=str(folder / "runs"), settings=SMALL, method="magnitude", constraint=0.9)
    with lab(folder) as address, browser_page() as page:
        open_notebook(page, address)
        run_all(page)
        yield page


def test_every_control_does_what_it_says(page):
    shown = Shown(page)
    shown.draws(r"^\d+ of 48 heads kept")
    shown.draws(r"not scored yet$")
    assert shown.panel.locator(".lfpr-dead").is_hidden()

    shown.choose("Method", "Random")
    shown.slide("ArrowRight")
    shown.says("^95%$")
    shown.says(r"^Kept: 9[45]\.\d% of parameters")
    shown.button("Score").click()
    shown.says(r"^Score of Random at 95%, seed 0 \(tap-textvqa\)")
    shown.choose("Method", "Magnitude")  # works meanwhile
    shown.draws(r"not scored yet$")
    shown.choose("Method", "Random")
    shown.draws(r"Random, pruned: \d+\.\d % at 95%")
    shown.says(r"pruned \d+\.\d%")
    points = shown.panel.locator("[id=random-pruned] use")
    assert points.count() == 1 and points.bounding_box()["x"] > 0
    assert shown.button("Score").is_disabled() and shown.button("Retrain").is_enabled()

    seed = shown.panel.locator(".widget-text input")
    seed.fill("3")
    seed.press("Enter")
    shown.draws(r"^TextVQA accuracy \(%\) by constraint\. unpruned: \d+\.\d%; not scored yet$")

    assert shown.control("Random").is_disabled()  # is drawn anyway
    shown.choose("Method", "Magnitude")
    shown.control("Random").check()
    seed.fill("0")
    seed.press("Enter")
    shown.draws(r"Random, pruned: .* at 95%")
    assert shown.panel.locator("svg text", has_text="Random").count() == 1  # its name, at its point


def test_stop_ends_a_computation(page):
    shown = Shown(page)
    shown.button("Retrain").click()
    shown.says(r"^Retraining of Magnitude at 95%, seed 0 \(tap-textvqa\): \S+.* \d+ of \d+")
    assert shown.button("Score").is_disabled()
    shown.button("Stop").click()
    shown.says(r"^Retraining of Magnitude at 95%, seed 0 \(tap-textvqa\): stopped")
    assert shown.button("Stop").is_hidden() and shown.button("Retrain").is_enabled()

    shown.choose("Method", "Fisher (labels)")  # has to be computed
    shown.says("^The picture is still that of Magnitude at 95%")
    assert shown.panel.locator(".lfpr-old svg").count() == 3
    shown.button("Stop").click()
    shown.says("^Importance of Fisher .* stopped")
    assert shown.panel.locator(".lfpr-old").count() == 0
    assert not page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]').count()


def test_nothing_is_cut_off_in_narrow_windows_or_dark_in_the_dark(page):
    shown = Shown(page)
    for width in (800, 480, 1400):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(500)
        room = page.locator(".jp-WindowedPanel-outer").bounding_box()
        boxes = shown.panel.locator("select, input, button, svg, .widget-slider, .widget-html-content").all()
        for box in [place for each in boxes if (place := each.bounding_box())]:
            assert box["x"] >= room["x"] and box["x"] + box["width"] <= room["x"] + room["width"] + 1, (width, box)
    color = "panel => getComputedStyle(panel.querySelector('svg text')).fill"
    before = shown.panel.evaluate(color)
    set_theme(page, "JupyterLab Dark")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    page.wait_for_timeout(500)
    light, dark = (sum(map(int, re.findall(r"\d+", each)[:3])) for each in (before, shown.panel.evaluate(color)))
    assert light < 200 and dark > 500  # of 765, which is white


def test_the_panel_comes_back(page):
    shown = Shown(page)
    restart(page)
    shown.says("^No kernel answers these controls: run all cells")
    run_all(page)
    shown.draws(r"Random, pruned: .* at 95%")  # ticked, and not where the parameters are
    shown.says("^95%$")
    assert shown.control("Random").is_checked() and shown.panel.locator(".lfpr-dead").is_hidden()
