"""The page in a real browser, where there is one."""

import base64
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from blda_cli.commands import cli
from blda_cli.core.methods import AlignmentSettings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
    "--virtual-time-budget=20000",
]
WIDTHS = {"desktop": 1280, "phone": 375}

LISTENERS = """<head><script>
window.problems = [];
addEventListener("error", (event) => problems.push("error: " + event.message), true);
addEventListener("securitypolicyviolation", (event) => problems.push("refused: " + event.blockedURI));
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

slow = pytest.mark.slow


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def browse(page: str, folder: Path, scheme: str) -> tuple[dict[str, Any], list[str]]:
    """Open a page at each width; what the probe found, and the addresses that the browser asked for."""
    (folder / "report.html").write_text(page.replace("<head>", LISTENERS, 1), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("probe.js"), folder)
    frames = "".join(
        f'<iframe name="{name}" src="report.html" style="width:{width}px;height:900px"></iframe>'
        for name, width in WIDTHS.items()
    )
    (folder / "index.html").write_text(f"<!doctype html><body>{frames}<script src=probe.js></script>", encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log = folder / "net.json"
    try:
        dom = subprocess.run(
            [
                str(CHROMIUM),
                *FLAGS,
                f"--user-data-dir={folder / 'profile'}",
                f"--log-net-log={log}",
                f"--blink-settings=preferredColorScheme={1 if scheme == 'light' else 0}",
                "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/index.html",
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
    finally:
        server.shutdown()
        server.server_close()
    found = re.search('<pre id="result">([^<]*)</pre>', dom)
    assert found, dom[-2000:]
    result: dict[str, Any] = json.loads(base64.b64decode(found[1]))
    own = f"http://127.0.0.1:{server.server_port}"
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    asked = {event["url"] for event in events if event.get("initiator") == own and "url" in event}
    assert f"{own}/probe.js" in asked  # the log does show what pages ask for
    return result, sorted(url for url in asked if not url.startswith(f"{own}/"))


@pytest.fixture(scope="module")
def pages(make_domain: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    made: dict[int, str] = {}

    def page(count: int) -> str:
        if count not in made:
            domain = make_domain(count, labelled=True)
            folders = [
                domain.align("aligned", AlignmentSettings()),
                domain.align("adjusted", AlignmentSettings(method="logit-adjust", tau=0.5)),
            ]
            output = tmp_path_factory.mktemp("report")
            arguments = ["report", "--stats", str(domain.stats), "--labels", str(domain.folder / "labels")]
            arguments += [word for folder in folders for word in ("--aligned", str(folder))]
            result = CliRunner().invoke(cli, [*arguments, "--compare", "--quiet", "--output", str(output)])
            assert result.exit_code == 0, result.output
            made[count] = (output / "report.html").read_text(encoding="utf-8")
        return made[count]

    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("count", [pytest.param(11), pytest.param(19, marks=slow), pytest.param(150, marks=slow)])
def test_page_in_a_browser(count: int, scheme: str, pages: Callable[[int], str], tmp_path: Path) -> None:
    page = pages(count)
    assert len(page.encode()) < 3_000_000
    found, outside = browse(page, tmp_path, scheme)
    assert outside == []
    for width in WIDTHS:
        view = found[width]
        assert view["problems"] == []
        assert view["resources"] == []
        assert view["broken"] == 0
        assert view["dark"] == (scheme == "dark")
        assert view["overflowing"] == []
        assert width == "desktop" or view["outOfSight"] == []
        assert view["unreadable"]["texts"] > 20 * count
        assert view["unreadable"]["found"] == {}
        check_sorting(view["sorted"])
        assert view["compared"] == ["inset(0px 0px 0px 50%)", "inset(0px 0px 0px 90%)"]
        check_filter(view["filtered"], count)
        if count > 24:
            assert view["readOut"].count(f"class {count - 1}") == 2
            assert " more classes</summary>" in page  # of the legend
        else:
            assert view["readOut"] is None


def check_filter(filtered: dict[str, Any] | None, count: int) -> None:
    if count <= 12:
        assert filtered is None
        return
    assert filtered is not None
    assert not filtered["hidden"]
    assert filtered["all"]  # none stays hidden once nothing is filtered
    found = filtered["found"]
    named = {f"class {number}" for number in range(count) if number % 3 and str(number).startswith("1")}
    assert set(found["CLASS 1"]["classes"]) == named
    assert found["CLASS 1"]["count"] == f"{len(named)} of {count}"
    assert 0 < len(found["verdict"]["classes"]) < count
    assert found[""]["count"] == ""


def check_sorting(orders: dict[str, Any]) -> None:
    names = orders["class"]
    assert names["sort"] == "ascending"
    assert names["second"] == names["first"][::-1]
    for column in ("estimate", "bias, points"):
        first = [float(value) for value in orders[column]["first"] if value]
        assert orders[column]["sort"] == "descending"
        assert first == sorted(first, reverse=True)
        second = orders[column]["second"]
        assert [float(value) for value in second if value] == sorted(first)
        assert second[-1] == ""  # a class without an estimate comes last either way


def test_probe_finds_faults(tmp_path: Path) -> None:
    bad = """<!doctype html><html><head></head><body style="background:#fff">
    <table class="classes"><thead><tr><th><button>class</button></th><th><button>estimate</button></th>
    <th><button>bias, points</button></th></tr></thead>
    <tbody><tr><td data-value="a">a</td><td data-value="1">1</td><td data-value="1">1</td></tr></tbody></table>
    <p style="color:#999">faint</p><div style="width:3000px">wide</div><img src="http://127.0.0.1:9/x.png">
    <script>undefinedName()</script></body></html>"""
    found, outside = browse(bad, tmp_path, "light")
    assert outside == ["http://127.0.0.1:9/x.png"]
    view = found["phone"]
    assert any("undefinedName" in problem for problem in view["problems"])
    assert view["resources"] == ["http://127.0.0.1:9/x.png"]
    assert list(view["unreadable"]["found"]) == ["P.null: faint"]
    assert "the page" in view["overflowing"]
    assert view["broken"] == 1
