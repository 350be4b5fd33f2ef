"""A real browser: the sliders of the tour move the pictures in JupyterLab; the report is read."""

import base64
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from cells import NBS, ROOT
from toys import saved_targets

pytestmark = pytest.mark.browser

CHROMIUM = Path("/usr/bin/chromium")
NOTEBOOK = "nbs/tour/1_portrait.ipynb"
KERNEL_IDLE = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
PROMPT, DONE = ".jp-Notebook .jp-InputPrompt", re.compile(r"\[(\*|\d+)\]")  # begun or done
FRAME = 370  # the notebook's parameter
# No sandbox: a container has none; the rest keeps the browser from calling home.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--disable-default-apps", "--no-first-run"]
SETTINGS = {  # the news pop-up would cover the notebook and ask the network
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def environment(folder: Path) -> dict[str, str]:
    """Everything Jupyter would read from or write to the user's home lies in `folder`."""
    names = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    names += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    places = {name: str(folder / name.lower()) for name in names}
    for name, text in SETTINGS.items():
        path = folder / "jupyterlab_settings_dir/@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | places | {"PYTHONPATH": found}


def wait_for(condition, what: str, seconds: float = 60.0):
    """Poll until `condition()` is true and return what it says."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"{what}: not within {seconds:.0f} s")


def answers(url: str, server: subprocess.Popen, log: Path) -> bool:
    assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()[-3000:]}"
    try:
        with urllib.request.urlopen(f"{url}/api", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """The address of a JupyterLab whose root holds a copy of the tour."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NBS / "tour", folder / "root/nbs/tour")
    url, log = f"http://127.0.0.1:{free_port()}", folder / "server.log"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--IdentityProvider.token="]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={url.rpartition(':')[2]}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder / 'root'}"]
    command += ["--allow-root"] * (os.geteuid() == 0)
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=folder, env=environment(folder), stdout=output, stderr=output
        )
    try:
        wait_for(lambda: answers(url, server, log), "JupyterLab answers")
        yield url
    finally:
        server.terminate()  # it stops its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def runs(page) -> bool:
    """Whether the viewer is there; until then choose a kernel if asked, and run all cells."""
    if page.locator("img.talk3d-picture").count():
        return True
    accept = page.locator(".jp-Dialog button.jp-mod-accept")
    if accept.count():  # "Select Kernel": JupyterLab asks when it is still looking for one
        accept.first.click()
    elif page.locator(KERNEL_IDLE).count() and not page.locator(PROMPT, has_text=DONE).count():
        page.locator(".lm-MenuBar-item", has_text="Run").click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.wait_for_timeout(2000)
    return False


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    assert CHROMIUM.is_file(), (
        f"{CHROMIUM} is missing: `make test-browser` installs it, or apt-get install chromium"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(lab, browser):
    """The tour, opened and run."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(f"{lab}/lab/tree/{NOTEBOOK}")
    wait_for(lambda: runs(page), "the viewer of the notebook", seconds=120)
    return page


def bytes_of(page, name: str) -> bytes:
    """The file an image element shows; `src` is a blob that only the page can read."""
    script = """async name => {
        const blob = await (await fetch(document.querySelector("img." + name).src)).blob();
        const reader = new FileReader();
        const done = new Promise(resolve => reader.onload = resolve);
        reader.readAsDataURL(blob);
        await done;
        return reader.result.split(",")[1];
    }"""
    return base64.b64decode(page.evaluate(script, name))


def pixels_of(page, name: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(bytes_of(page, name), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for rounding: the kernel draws with the same code as we do."""
    return a.shape == b.shape and float(np.abs(a.astype(int) - b).mean()) < 0.5


def press(page, label: str, key: str, times: int) -> None:
    """Keys on the handle of a slider, without waiting for pictures."""
    handle = page.locator(".widget-hslider", has_text=label).locator(".noUi-handle")
    handle.focus()
    for _ in range(times):
        page.keyboard.press(key)


@pytest.fixture(scope="module")
def look():
    from talk3d.person import PuppetIdentity
    from talk3d.speech import load_speech
    from talk3d.synthetic import TalkConfig, talk_motion
    from talk3d.viewers import puppet_look

    return puppet_look(PuppetIdentity(), talk_motion(TalkConfig(), load_speech()))


def test_sliders_move_the_pictures(page, look, tmp_path):
    from talk3d.viewers import depth_colours

    def shows(frame: int, yaw: float, pitch: float) -> bool:
        picture, depth = look(frame, yaw, pitch)
        wanted = {"talk3d-picture": picture, "talk3d-depth": depth_colours(depth)}
        return all(same(pixels_of(page, name), image) for name, image in wanted.items())

    page.locator("img.talk3d-picture").scroll_into_view_if_needed()
    wait_for(lambda: shows(FRAME, 0.0, 0.0), "the first view")
    before = page.locator("img.talk3d-picture").screenshot()

    page.evaluate("""() => {
        window.pictures = 0;
        const image = document.querySelector("img.talk3d-picture");
        new MutationObserver(seen => window.pictures += seen.length).observe(
            image, {attributes: true, attributeFilter: ["src"]});
    }""")
    press(page, "yaw", "ArrowRight", 20)
    wait_for(lambda: shows(FRAME, 20.0, 0.0), "yaw 20 degrees")
    drawn = page.evaluate("window.pictures")
    print(f"\n20 key presses, {drawn} pictures")
    assert 1 <= drawn < 15  # positions that came while a picture was drawn were left out
    after = page.locator("img.talk3d-picture").screenshot()
    assert not same(decode(before), decode(after))  # on the screen too
    assert not shows(FRAME, -20.0, 0.0) and not shows(FRAME, 0.0, 20.0)

    press(page, "pitch", "ArrowLeft", 5)
    wait_for(lambda: shows(FRAME, 20.0, -5.0), "pitch -5 degrees")
    press(page, "frame", "ArrowRight", 3)
    wait_for(lambda: shows(FRAME + 3, 20.0, -5.0), "three frames later")


def decode(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


def test_no_cell_failed(page):
    wait_for(lambda: page.locator(KERNEL_IDLE).count() > 0, "all cells have run")
    assert page.locator("audio").count() == 1
    for kind in ("error", "stderr"):
        output = page.locator(f'[data-mime-type="application/vnd.jupyter.{kind}"]')
        assert output.all_inner_texts() == []


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report with a claim of each verdict, a wide picture, a wide table and hostile texts."""
    from talk3d.report import read_records, write_report

    folder = tmp_path_factory.mktemp("figures") / "demo"
    folder = saved_targets(folder, "holds", "not-testable", "fails")
    return write_report(folder, read_records(folder))


@pytest.mark.parametrize("width", [390, 1200])
def test_a_report_needs_nothing_and_fits(browser, report, width):
    said, asked, colours = [], [], set()
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        for details in page.locator("details").all():
            details.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("typeof hacked") == "undefined"
        loaded = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
        assert page.evaluate(loaded) == [True]
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert said == [] and len(colours) == 2
    assert {url for url in asked if not url.startswith("data:")} == {report.as_uri()}


def test_what_fails_is_read_first_and_leads_to_its_place(browser, report):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(report.as_uri())
    badges = page.locator(".claims .badge:visible").all_inner_texts()
    assert badges == ["fails", "fails", "holds"]  # on the front page, in its section, the other
    page.locator("#fails .claims a").click()
    assert page.evaluate("location.hash") == "#figC2-3"
    wide = "document.querySelector('#tabC1 .scroll').scrollWidth"
    assert page.evaluate(wide) > 390  # the table scrolls in its box
    page.close()
