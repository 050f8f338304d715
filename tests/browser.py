"""A real headless browser for the slow tests of pages; a machine without one skips them, CI does not."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
)
SCHEMES = {"light": "1", "dark": "0"}
WIDTHS = {"desk": 1280, "phone": 390}


def browser() -> str:
    """Return the browser's path; without one, skip the test, or fail it in CI, which must have one."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        missing = f"no browser: none of {', '.join(BROWSERS)} is installed"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def browse(tmp_path: Path, page: str, scheme: str, *flags: str, seconds: float = 5) -> str:
    """Open an address and return what the browser prints.

    Args:
        seconds: of the page's own clock, which stands still while it waits for files.
    """
    command = [
        browser(),
        *FLAGS,
        f"--virtual-time-budget={1000 * seconds:.0f}",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        *flags,
        page,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def found_in(dumped: str) -> Any:
    """Return what a page's script left as JSON in its element `found`."""
    text = re.search(r'id="found">(.*?)</pre>', dumped, re.DOTALL)
    assert text is not None, "the page has no element `found`"
    return json.loads(html.unescape(text[1]))
