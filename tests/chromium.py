"""Headless Chromium for the tests of the report, and for ``benchmarks/report.py``."""

import json
import re
import shutil
import subprocess
import time
import urllib.request

HELPERS = """
const all = (selector) => [...document.querySelectorAll(selector)];
const onScreen = (i, k = 0) => report.plots[k].screen(report.plots[k].xs[i], report.plots[k].ys[i]);
const pixel = (canvas, x, y) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data];
const color = (i, k = 0) => hexOf(pixel(report.plots[k].spots, ...onScreen(i, k)).slice(0, 3));
const closed = () => all('details').filter((one) => !one.open).length;
const tooltip = () => !$('tooltip').hidden && $('tooltip').innerText;
const inWindow = (i, k = 0) => {
  const box = report.plots[k].marks.getBoundingClientRect();
  const [x, y] = onScreen(i, k);
  return [box.left + x / report.plots[k].ratio, box.top + y / report.plots[k].ratio];
};
const choose = (id, value) => {
  $(id).value = value;
  $(id).dispatchEvent(new Event('change'));
};
"""


def installed():
    """The programs chromedriver and Chromium; None for what is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return shutil.which("chromedriver"), next(filter(None, map(shutil.which, names)), None)


class Browser:
    """Headless Chromium by the WebDriver protocol (W3C)."""

    def __init__(self, downloads):
        driver, browser = installed()
        self.process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        lines = iter(self.process.stdout.readline, "")
        port = next(filter(None, (re.search(r"successfully on port (\d+)", line) for line in lines)))[1]
        self.url = f"http://127.0.0.1:{port}/session"
        options = {
            "binary": browser,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            "prefs": {"download.default_directory": str(downloads)},
        }
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        try:
            session = self.send("", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self.process.terminate()
            raise
        self.url += f"/{session['sessionId']}"

    def send(self, path, body=None, method="POST"):
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, code, *arguments):
        return self.send("/execute/sync", {"script": HELPERS + code, "args": arguments})

    def wait(self, code, *arguments):
        """What the code, which runs on, passes to ``done``."""
        code = f"{HELPERS}const done = arguments[arguments.length - 1];{code}"
        return self.send("/execute/async", {"script": code, "args": arguments})

    def devtools(self, command, **parameters):
        return self.send("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind):
        return self.send("/se/log", {"type": kind})

    def until(self, code, *arguments):
        for _ in range(400):
            if found := self.run(f"return {code}", *arguments):
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within 20 s: {code}")

    def open(self, path, width=1300, height=900, mobile=False, dark=False):
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.log("browser")  # what a test before has left
        self.send("/url", {"url": path.as_uri()})
        self.until("globalThis.report?.plots.every((plot) => plot.ratio && !plot.waiting)")

    def mouse(self, *steps):
        """Mouse steps: ("move", x, y), ("down",), ("up",), ("wheel", x, y, delta)."""
        for kind, *where in steps:
            source = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}}
            if kind == "wheel":
                action = {"type": "scroll", "x": where[0], "y": where[1], "deltaX": 0, "deltaY": where[2]}
                source = {"type": "wheel", "id": "wheel"}
            elif kind == "move":
                action = {"type": "pointerMove", "x": where[0], "y": where[1], "duration": 0}
            else:
                action = {"type": {"down": "pointerDown", "up": "pointerUp"}[kind], "button": 0}
            self.send("/actions", {"actions": [source | {"actions": [action]}]})

    def press(self, *keys):
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.send("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def click(self, name):
        self.run("document.getElementById(arguments[0]).click()", name)

    def place(self, spot, plot=0):
        """Where a spot is in the window, after scrolling to its plot."""
        code = "report.plots[arguments[1]].marks.scrollIntoView({ block: 'center' }); return inWindow(...arguments)"
        place = None
        while place != (place := self.run(code, spot, plot)):  # scrolling by the wheel takes a while
            time.sleep(0.1)
        return [round(one) for one in place]

    def color(self, spot, plot=0):
        """The color at the center of a spot, as #rrggbb."""
        return self.run("report.plots[arguments[1]].draw(); return color(...arguments)", spot, plot)

    def close(self):
        try:
            self.send("", method="DELETE")
        finally:
            self.process.terminate()
            self.process.wait()
            self.process.stdout.close()
