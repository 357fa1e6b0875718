"""A real browser without a screen: Chromium, as PySide6-Addons brings it (pip alone).

    python tests/helpers/browser.py FILE.html [--screenshot FILE.png] [SCRIPT ...]

opens the page, runs the scripts one after the other and prints JSON: {"loaded", "console": [...], "requests": [...], "answers": [...]}. Each
answer is the script's value, which must be JSON's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 60


def missing() -> str | None:
    """Why there is no browser; None if there is one."""
    if importlib.util.find_spec("PySide6") is None:
        return "no browser: PySide6 is not installed (pip install 'PySide6-Addons>=6.6,<6.9')"
    try:
        import PySide6.QtWebEngineCore  # noqa: F401
    except ImportError as problem:
        return f"no browser: {problem}"
    return None


def visit(page: Path, *scripts: str, screenshot: Path | None = None) -> dict[str, Any]:
    """What happened there."""
    shot = [] if screenshot is None else ["--screenshot", str(screenshot)]
    command = [sys.executable, __file__, str(page), *shot, *scripts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * SECONDS, env=os.environ | ENVIRONMENT)
    if done.returncode != 0:
        raise RuntimeError(f"the browser ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


ENVIRONMENT = {
    "QT_QPA_PLATFORM": "offscreen",
    "QTWEBENGINE_DISABLE_SANDBOX": "1",  # a container's root has none
    "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu",
}


def main(page: str, scripts: list[str], screenshot: str | None) -> None:
    from PySide6.QtCore import QTimer, QUrl
    from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineSettings, QWebEngineUrlRequestInterceptor
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    result: dict[str, Any] = {"loaded": False, "console": [], "requests": [], "answers": []}

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level: Any, message: str, line: int, source: str) -> None:
            result["console"].append(f"{message} (line {line})")

    class Watch(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info: Any) -> None:
            result["requests"].append(info.requestUrl().toString()[:200])

    app = QApplication(["browser"])
    view, watch = QWebEngineView(), Watch()
    tab = Page(view)
    view.setPage(tab)
    # so that what a file asks of a server is seen
    tab.settings().setAttribute(QWebEngineSettings.WebAttribute.LocalContentCanAccessRemoteUrls, True)
    tab.profile().setUrlRequestInterceptor(watch)
    view.resize(1500, 1400)
    view.show()
    waiting = list(scripts)

    def proceed() -> None:
        if waiting:
            tab.runJavaScript(f"JSON.stringify({waiting.pop(0)})", 0, lambda value: (result["answers"].append(json.loads(value or "null")), proceed()))
        else:
            QTimer.singleShot(500, finish)  # so that it is painted

    def finish() -> None:
        if screenshot:
            view.grab().save(screenshot)
        app.quit()

    def loaded(ok: bool) -> None:
        result["loaded"] = ok
        proceed()

    tab.loadFinished.connect(loaded)
    tab.load(QUrl.fromLocalFile(str(Path(page).resolve())))
    QTimer.singleShot(1000 * SECONDS, app.quit)
    app.exec()
    print(json.dumps(result), flush=True)
    os._exit(0)  # taking Chromium down in order is no part of the test


if __name__ == "__main__":
    arguments = sys.argv[1:]
    shot = None
    if "--screenshot" in arguments:
        place = arguments.index("--screenshot")
        shot = arguments[place + 1]
        del arguments[place : place + 2]
    main(arguments[0], arguments[1:], shot)
