"""A headless Chromium for pages, or a skipped test where there is none."""

import base64
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_SECONDS = 120


class Browser:
    """One window, which is given a new size and colour scheme for every page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = 1280, scheme: str = "light") -> None:
        """Open a page, and wait until its charts are drawn."""
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(page.as_uri())
        self.wait(self.drawn)

    def drawn(self) -> bool:
        """Whether every chart has its picture."""
        return self.js(
            "const charts = [...document.querySelectorAll('.chart')];"
            "return charts.length > 0 && charts.every((chart) => chart.querySelector('svg'));"
        )

    def js(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements, also of those that are scrolled out of sight."""
        code = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent);"
        return self.js(code, selector)

    def wait(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + _SECONDS
        while not condition():
            assert time.monotonic() < end, f"did not come: {condition}"
            time.sleep(0.05)

    def problems(self) -> list[str]:
        """What the console has got since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def pixels(self, selector: str) -> str:
        """The content of a canvas."""
        return self.js("return document.querySelector(arguments[0]).toDataURL();", selector)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        height = self.js("return document.documentElement.scrollHeight;")
        width = self.js("return window.innerWidth;")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 15_000), "scale": 1}
        parameters = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", parameters)
        path.write_bytes(base64.b64decode(shot["data"]))


def start_browser(profile: Path) -> Iterator[Browser]:
    """Yield a browser with a new profile; skip the test if none is installed."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    driver_path = shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        pytest.skip("no Chromium: install the packages chromium and chromium-driver for this test")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*_OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        driver.set_page_load_timeout(_SECONDS)
        driver.set_script_timeout(_SECONDS)
        yield Browser(driver)
    finally:
        driver.quit()
