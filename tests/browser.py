"""JupyterLab on a copy of 00_explore in a headless Chromium: for tests, and for the picture in the README.

`python tests/browser.py docs` writes explore.png, of what `runs/` holds, and with `--all` also explore-narrow.png (800
pixels wide), explore-small.png (480) and explore-dark.png; it needs Playwright and Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
READY = 120_000  # ms that a page may take to show what is waited for, on a slow machine


def find_browser() -> str | None:
    """The path of a Chromium."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def copy_notebook(folder: Path, **parameters) -> None:
    """00_explore without outputs and with these parameters, in `folder`."""
    notebook = json.loads((ROOT / "notebooks" / "00_explore.ipynb").read_text(encoding="utf-8"))
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        if "parameters" in cell["metadata"].get("tags", ()):
            source = "".join(cell["source"])
            for name, value in parameters.items():
                source, count = re.subn(rf"(?m)^{name} = .*", f"{name} = {value!r}", source)
                assert count == 1, name
            cell["source"] = source
    (folder / "00_explore.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab on `folder`, with settings of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--notebook-dir={folder}", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    options += ["--IdentityProvider.token=", "--expose-app-in-browser"]
    places = {name: str(folder / "own" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR")}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / "own" / "workspaces")}
    notifications = folder / "own" / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab/apputils-extension"
    notifications.mkdir(parents=True)
    settings = {"fetchNews": "false", "checkForUpdates": False}
    (notifications / "notification.jupyterlab-settings").write_text(json.dumps(settings))
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], env=os.environ | places, stdout=log, stderr=log
    )
    try:
        for _ in range(600):
            try:
                urlopen(f"http://127.0.0.1:{port}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/lab/tree/00_explore.ipynb"
    finally:
        server.send_signal(signal.SIGTERM)  # it ends its kernels, too
        server.wait(30)
        log.close()


@contextmanager
def browser_page(size: tuple[int, int] = (1400, 1000)):
    """A page of a Chromium with an empty profile; `size` in pixels."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        viewport = {"width": size[0], "height": size[1]}
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=find_browser(), headless=True, args=QUIET, viewport=viewport
        )
        try:
            yield context.pages[0]
        finally:
            context.close()


def open_notebook(page, address: str) -> None:
    """Show the notebook and its kernel, without the file browser beside it."""
    page.goto(f"{address}?reset")
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=READY)
    wait_idle(page)
    page.evaluate("jupyterapp.shell.collapseLeft()")


def wait_idle(page) -> None:
    """Until the kernel has nothing to do."""
    page.locator(".jp-StatusBar-Widget", has_text="| Idle").first.wait_for(timeout=READY)


def run_all(page) -> None:
    """Run all cells, and wait for the last one."""
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    last = page.locator(".jp-OutputArea-output", has_text="each search stays within")
    last.wait_for(timeout=READY)


def restart(page) -> None:
    """Restart the kernel, without the outputs of the old one but for the panel's."""
    page.evaluate("jupyterapp.shell.currentWidget.content.widgets.at(-2).model.clearExecution()")
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")


def set_theme(page, name: str) -> None:
    """ "JupyterLab Dark" or "JupyterLab Light"."""
    page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", name)


def main() -> None:
    """Write the screenshots."""
    parser = argparse.ArgumentParser(description="Screenshots of 00_explore.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    looks = {"explore": (1400, 760, "Light")}
    if arguments.all:
        looks |= {"explore-narrow": (800, 1000, "Light"), "explore-small": (480, 1500, "Light")}
        looks |= {"explore-dark": (1400, 760, "Dark")}
    runs = arguments.runs.absolute()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, unremembered(runs):
        copy_notebook(Path(folder), runs=str(runs))
        with lab(Path(folder)) as address, browser_page() as page:
            open_notebook(page, address)
            run_all(page)
            for method in ("Fisher (labels)", "Random"):
                page.get_by_label(method, exact=True).check()
                page.wait_for_timeout(1000)
                wait_idle(page)
            for name, (width, height, theme) in looks.items():
                page.set_viewport_size({"width": width, "height": height})
                set_theme(page, f"JupyterLab {theme}")
                page.wait_for_timeout(1500)  # until all is laid out
                page.locator(".lfpr-panel").evaluate("panel => panel.scrollIntoView({block: 'center'})")
                page.wait_for_timeout(1000)
                page.screenshot(path=arguments.out / f"{name}.png")


@contextmanager
def unremembered(runs: Path) -> Iterator[None]:
    """Within it the panel starts where the notebook says; afterwards where it was left before."""
    memory = runs / "explore-mini.json"
    before = memory.read_bytes() if memory.exists() else None
    memory.unlink(missing_ok=True)
    try:
        yield
    finally:
        memory.unlink(missing_ok=True)
        if before is not None:
            memory.write_bytes(before)


if __name__ == "__main__":
    main()
