"""The documentation site: built with warnings as errors, without network, readable on a phone."""

import re
import subprocess
import sys

import pytest

from tests.browser import start_browser
from tests.documents import PAGES
from tests.processes import ROOT, SETTINGS

# What a page loads when it is opened; links that a reader follows are not among them.
LOADS = re.compile(r'<(?:script|img|iframe|source)\b[^>]*?\bsrc="([^"]+)"|<link\b([^>]+)>')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it."""
    out = tmp_path_factory.mktemp("site")
    command = ("sphinx", "-W", "--keep-going", "--nitpicky", "--quiet", "docs")
    assert " ".join(command) in (ROOT / "Makefile").read_text()
    done = subprocess.run(
        [sys.executable, "-m", *command, str(out)],
        cwd=ROOT,
        env=SETTINGS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def pages_of(site):
    return [site / name.removeprefix("docs/").replace(".md", ".html") for name in PAGES
            if name.startswith("docs/")]  # fmt: skip


def test_it_has_every_page_and_needs_no_network(site):
    for page in pages_of(site):
        text = page.read_text()
        loaded = [
            source or re.search(r'href="([^"]+)"', attributes)[1]
            for source, attributes in LOADS.findall(text)
        ]
        assert loaded
        for path in loaded:
            local = path.partition("?")[0].partition("#")[0]
            assert "://" not in local and not local.startswith("//"), (page.name, path)
            assert not local or (page.parent / local).exists(), (page.name, path)


def test_equations_and_the_api_are_written(site):
    text = (site / "how_it_works.html").read_text()
    assert text.count("<math") > 20 and "$" not in re.sub(r"<code.*?</code>", "", text)
    api = (site / "api.html").read_text()
    for name in ("trainer.fit", "model.bundle.load_pruned", "trainer.Callback.on_log"):
        assert f'id="{name}"' in api


def test_on_a_phone_and_a_screen(site, tmp_path):
    """No console error, and nothing is wider than the window."""
    browsers = start_browser(tmp_path)
    driver = next(browsers).driver
    try:
        for page in pages_of(site):
            for width in (400, 1280):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                driver.get(page.as_uri())
                wide = driver.execute_script("return document.documentElement.scrollWidth;")
                assert wide <= width, (page.name, width, wide)
            assert not driver.get_log("browser"), page.name
    finally:
        browsers.close()
