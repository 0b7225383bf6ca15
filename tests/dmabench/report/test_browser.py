"""The report in a real browser, headless: nothing but this shows that a page fits a phone, a keyboard and a printer.

Chromium is found by playwright: the file that DMABENCH_BROWSER names, one on the PATH, or playwright's own. Where none
starts, the tests are skipped with the reason; DMABENCH_BROWSER_REQUIRED=1 (`.ci/run`, as root) makes that a failure.
"""

import io
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from dmabench.report.page import write_report
from dmabench.store import runs
from dmabench.tasks import registry
from dmabench.workload.masks import distribution_rows

REFERENCE = Path(__file__).parents[3] / "results" / "reference" / "h100"
STORED = ("*-kernels-8f9ea37", "20261125T014141Z-kernels-*", "*-mqar-765a8ad")
"""Committed runs with forwards, decoding in kernels and in layers, and models on recall."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
THEMES = ("light", "dark")
pytestmark = pytest.mark.timeout(300)  # the first test builds the page, on a machine that may be busy
LONG = "a-name-that-somebody-gave-a-run-and-that-has-no-place-to-break-" + "x" * 80


def start(playwright):
    """The first browser that starts. A program of the name may be a stub that only says how to install one."""
    named = os.environ.get("DMABENCH_BROWSER")
    found = [named] if named else [path for path in map(shutil.which, NAMES) if path]
    own = playwright.chromium.executable_path
    if not named and Path(own).exists():
        found.append(own)
    reasons = [] if found else ["no Chromium on the PATH (Debian: apt-get install chromium)"]
    for path in found:
        try:
            # Chromium refuses its sandbox to root, and a container's /dev/shm may be too small for it.
            arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--force-color-profile=srgb"]
            return playwright.chromium.launch(executable_path=path, args=arguments, timeout=30_000)
        except Exception as error:
            reasons.append(f"{path} does not start: {str(error).splitlines()[0]}")
    raise FileNotFoundError("; ".join(reasons))


@pytest.fixture(scope="module")
def browser():
    required = os.environ.get("DMABENCH_BROWSER_REQUIRED") == "1"
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            started = start(playwright)
            yield started
            started.close()
    except (ImportError, FileNotFoundError) as error:
        if required:
            pytest.fail(f"DMABENCH_BROWSER_REQUIRED=1, and no browser: {error}", pytrace=False)
        pytest.skip(f"no browser: {error}")


@pytest.fixture(scope="module")
def report(tmp_path_factory, trained):
    """The page of committed runs, of made-up ones for what is not measured yet, and of what can go wrong."""
    folder = tmp_path_factory.mktemp("report")
    paths = [path for name in STORED for path in sorted(REFERENCE.glob(f"*/{name}"))]
    assert len(paths) == len(STORED), "a committed run that this test shows is gone"
    environment = runs.read_manifest(paths[0])["environment"]
    made = trained.made_up
    # The page asks a task for its axes; loading the real ones, with all that trains a model, takes many seconds.
    tasks = {"mqar": trained.MQAR, "patterns": trained.PATTERNS, "needle": trained.NEEDLE}
    kinds = ("mha", "swa", "mla", "nsa", "dma")
    rows = {
        "patterns": [
            made(trained.PATTERNS, kind, 0.98 - 0.1 * at, pattern=pattern, seed=seed)
            for at, kind in enumerate(kinds)
            for pattern in ("copy", "select", "induce")
            for seed in range(3)
        ],
        "needle": [
            made(trained.NEEDLE, kind, 0.95 / (1 + at * (length > 1024)), test_len=length, depth=depth)
            for at, kind in enumerate(kinds)
            for length in (512, 1024, 2048)
            for depth in (0, 50, 100)
        ],
        "mask": [row for cell in distribution_rows(["iid", "rising"], [512], [64], 2, 0, {}) for row in cell],
    }
    # The first chart needs times of a layer on the device, and at the length, of the made-up scores.
    layer = {"level": "layer", "device": "Made-up GPU", "seqlen": 256, "cell": "layer"}
    stored = [row for row in runs.read_rows(paths[0])[0] if row["seqlen"] == 8192 and row["window"] in (None, 1024)]
    rows["kernels"] = [{**row, **layer, "window": row["window"] and 64} for row in stored]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.environment_module, "gpu_state", lambda: [])
        patch.setattr(registry, "get", tasks.__getitem__)
        for command, lines in rows.items():
            run = runs.Run.start(folder / "results", command, [command, "--label", LONG], {}, environment)
            for line in lines:
                run.append({name: value for name, value in line.items() if name not in ("run", "schema")})
            paths.append(run.path)  # never finished: the page says so
        with open(paths[-1] / "rows.jsonl", "a") as file:
            file.write('{"schema": 1, "cel')
        paths.append(folder / "gone")
        return write_report(paths, folder / "report.html")


@pytest.fixture
def opened(browser, report):
    """(width and height, theme) -> the report in a new window, which has loaded with no error and no request."""
    contexts, told, asked = [], [], []

    def go(size, theme="light", address=None):
        contexts.append(browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce"))
        page = contexts[-1].new_page()
        page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address or report.as_uri(), wait_until="load")
        return page

    yield go
    for context in contexts:
        context.close()
    assert told == []
    assert [one[:90] for one in asked if not one.startswith("data:") and one.split("#")[0] != report.as_uri()] == []


def luminance(page, element):
    """Mean lightness of an element as drawn, 0 to 1, and how far its pixels are from each other."""
    from matplotlib.image import imread

    picture = imread(io.BytesIO(element.screenshot()), format="png")[..., :3]
    return float(picture.mean()), float(picture.std())


def test_every_chart_is_drawn_and_says_in_words_what_it_shows(opened):
    page = opened(DESKTOP)
    found = page.eval_on_selector_all(
        "img, svg, canvas",
        "all => all.map(one => ({tag: one.tagName, alt: one.alt, wide: one.clientWidth, high: one.clientHeight,"
        " drawn: one.complete && one.naturalWidth, ratio: one.naturalWidth / one.naturalHeight}))",
    )
    assert len(found) >= 10 and {one["tag"] for one in found} == {"IMG"}
    for one in found:
        assert one["drawn"] > 100 and one["wide"] > 300 and one["high"] > 100, one
        assert abs(one["wide"] / one["high"] / one["ratio"] - 1) < 0.02, "squeezed"
        assert len(one["alt"].split()) >= 8 and re.search(r"\b(Lines|In it|Points|Bars): \S", one["alt"]), one["alt"]
    alts = [one["alt"] for one in found]
    assert page.locator("#quality img").count() >= 1, "the first chart is among them"
    assert len(set(alts)) == len(alts), "two charts with the same words: nobody can tell them apart by ear"


def test_links_lead_somewhere(opened, report):
    page = opened(DESKTOP)
    links = page.eval_on_selector_all("a[href]", "all => all.map(one => [one.getAttribute('href'), one.innerText])")
    inside = [link for link, _ in links if link.startswith("#")]
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == len(set(ids)) and len(inside) > 5
    assert [link for link in inside if link[1:] not in ids] == []
    others = [link for link, _ in links if not link.startswith("#")]
    assert [link for link in others if urlsplit(link).scheme or urlsplit(link).netloc] == [], "leads off the page"
    assert [link for link in others if not (report.parent / unquote(urlsplit(link).path)).exists()] == []
    assert [link for link, text in links if not text.strip()] == []
    places: dict[str, set[str]] = {}
    for link, text in page.eval_on_selector_all(
        "nav a[href]", "all => all.map(one => [one.getAttribute('href'), one.textContent])"
    ):
        places.setdefault(text, set()).add(link)
    assert [text for text, links in places.items() if len(links) > 1] == [], "the same words for two places"
    # A link does what it says: the place that it names comes into view.
    page.click(f"nav a[href='{[link for link in inside if link != '#claims'][-1]}']")
    page.click("nav a[href='#claims']")
    assert page.evaluate("Math.abs(document.getElementById('claims').getBoundingClientRect().top) < innerHeight")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(opened, width):
    page = opened({"width": width, "height": 844})
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        """width => [...document.querySelectorAll('body *')].filter(one => {
             const at = one.getBoundingClientRect();
             return at.width && at.right > width + 1 && !one.closest('.box, .scroll');
        }).map(one => one.tagName + ' ' + one.textContent.slice(0, 60))""",
        width,
    )
    assert beyond == []


def test_what_scrolls_sideways_on_a_phone_has_its_own_box_with_a_name(opened):
    page = opened(PHONE)
    loose, boxes = page.evaluate(
        """() => [
          [...document.querySelectorAll('table, img')].filter(one => !one.closest('.box, .scroll')).length,
          [...document.querySelectorAll('.box, .scroll')].map(one => ({
            scrolls: one.scrollWidth > one.clientWidth + 1, tab: one.tabIndex, role: one.getAttribute('role'),
            name: one.getAttribute('aria-label'), flow: getComputedStyle(one).overflowX}))]"""
    )
    assert loose == 0 and sum(box["scrolls"] for box in boxes) > 5
    for box in boxes:
        assert box["tab"] == 0 and box["role"] in ("region", "group") and box["name"] and box["flow"] == "auto", box


def test_small_words_and_close_links_do_not_hide_on_a_phone(opened):
    page = opened(PHONE)
    small = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(one => one.innerText && !one.children.length &&
             parseFloat(getComputedStyle(one).fontSize) < 12).map(one => one.innerText.slice(0, 60))"""
    )
    low = page.eval_on_selector_all(
        "nav a, summary", "all => all.filter(one => one.getBoundingClientRect().height < 24).map(one => one.innerText)"
    )
    assert small == [] and low == []


def test_everything_is_reached_by_keyboard_and_shows_that_it_is(opened):
    page = opened(DESKTOP)
    page.keyboard.press("Tab")
    first = page.evaluate("[document.activeElement.innerText, document.activeElement.getBoundingClientRect().top]")
    assert first[0].startswith("Skip to") and first[1] >= 0, "the first stop leads past the list of runs, in sight"
    wanted = page.evaluate(
        """() => [...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
             .filter(one => one.checkVisibility()).map((one, at) => one.dataset.stop = at).length"""
    )
    seen, unmarked = [], []
    for _ in range(wanted + 5):
        at, shown = page.evaluate(
            """() => { const one = document.activeElement, look = getComputedStyle(one);
                 const shown = look.outlineStyle != 'none' && parseFloat(look.outlineWidth) >= 2;
                 return [one.dataset.stop ?? null, shown]; }"""
        )
        if at is None:
            break
        seen.append(int(at))
        if not shown:
            unmarked.append(page.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
        page.keyboard.press("Tab")
    assert seen == list(range(wanted)), "every stop once, in the order of the page"
    assert unmarked == []


def test_keys_open_scroll_and_skip(opened):
    page = opened(PHONE)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash && document.querySelector(location.hash).tagName") == "MAIN"
    page.keyboard.press("Tab")
    assert page.evaluate("!!document.activeElement.closest('main')")
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.eval_on_selector("details", "one => one.open")
    # A wide table moves under the arrow keys.
    page.evaluate(
        "[...document.querySelectorAll('.box')].find(one => one.scrollWidth > one.clientWidth + 100)"
        ".setAttribute('data-wide', '')"
    )
    page.focus("[data-wide]")
    page.keyboard.press("ArrowRight")
    for _ in range(50):  # the movement is drawn over some frames; the page's own policy forbids waiting inside it
        if moved := page.evaluate("document.querySelector('[data-wide]').scrollLeft"):
            break
        page.wait_for_timeout(50)
    assert moved > 0


def test_headings_and_landmarks_are_in_order(opened):
    page = opened(DESKTOP)
    levels = page.eval_on_selector_all("h1, h2, h3, h4, h5, h6", "all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels)), levels
    assert page.locator("main").count() == 1 and page.locator("html[lang=en]").count() == 1
    assert page.title() and page.locator("nav[aria-label]").count() == page.locator("nav").count() == 1
    headless = page.eval_on_selector_all(
        "main section", "all => all.filter(one => !one.matches('[aria-label]') && !one.querySelector('h2, h3')).length"
    )
    columns = page.eval_on_selector_all("th", "all => all.filter(one => !one.scope).length")
    assert headless == 0 and columns == 0


CONTRASTS = """() => {
  const linear = x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(x => linear(x / 255))
    .reduce((sum, x, at) => sum + x * [.2126, .7152, .0722][at], 0);
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const paper = one => { for (; one; one = one.parentElement) {
    const colour = parts(getComputedStyle(one).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour; } };
  const found = new Map();
  for (const one of document.querySelectorAll('body *')) {
    if (![...one.childNodes].some(node => node.nodeType == 3 && node.data.trim()) || !one.checkVisibility()) continue;
    const ink = light(parts(getComputedStyle(one).color)), under = light(paper(one));
    const contrast = (Math.max(ink, under) + .05) / (Math.min(ink, under) + .05);
    const kind = one.tagName + '.' + one.className;
    found.set(kind, Math.min(contrast, found.get(kind) ?? 99));
  }
  return [...found];
}"""


@pytest.mark.parametrize("theme", THEMES)
def test_both_themes_can_be_read(opened, theme):
    page = opened(DESKTOP, theme)
    contrasts = dict(page.evaluate(CONTRASTS))
    assert len(contrasts) > 10 and {kind: one for kind, one in contrasts.items() if one < 4.5} == {}
    images = page.locator("img")
    for number in range(0, images.count(), 4):
        mean, spread = luminance(page, images.nth(number))
        assert (mean > 0.8) if theme == "light" else (mean < 0.3), "a chart has the paper of its page"
        assert spread > 0.05, "and something on it"


@pytest.mark.parametrize("theme", THEMES)
def test_on_paper_it_is_dark_on_white_and_nothing_is_cut_off(opened, theme):
    # A4 less the margins that the style sheet asks for, in CSS pixels.
    page = opened({"width": 698, "height": 1000}, theme)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 698
    cut = page.eval_on_selector_all(
        ".box, .scroll",
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1)"
        ".map(one => [one.scrollWidth, one.clientWidth, one.textContent.slice(0, 60)])",
    )
    assert cut == []
    assert dict(page.evaluate(CONTRASTS)) and page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    assert {kind: one for kind, one in page.evaluate(CONTRASTS) if one < 4.5} == {}
    assert luminance(page, page.locator("img").first)[0] > 0.8
    folded = page.eval_on_selector_all(
        "details", "all => all.filter(one => !one.lastElementChild.checkVisibility()).length"
    )
    assert folded == 0, "paper cannot be unfolded"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_a_page_without_runs_is_whole_too(opened, tmp_path_factory, browser):
    empty = write_report([], tmp_path_factory.mktemp("empty") / "report.html")
    context = browser.new_context(viewport=PHONE, color_scheme="dark")
    page = context.new_page()
    page.goto(empty.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert "dmabench kernels --quick" in page.inner_text("main") and page.evaluate(CONTRASTS)
    context.close()
