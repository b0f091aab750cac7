"""``headrace bench compare``: joined rows, the rule of noise, the PNG, the page in a browser."""

from __future__ import annotations

import random
import shutil
import struct
import sys
import zlib
from pathlib import Path

import msgspec
import pytest

from headrace.benchmark.comparison.join import compare, label, varying
from headrace.benchmark.comparison.noise import difference, median_interval
from headrace.benchmark.comparison.plots import LIGHT, records_digest
from headrace.benchmark.record import Record, Row, median_row
from headrace.cli.main import main
from headrace.link.errors import ConfigurationError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def ms(*samples: float, metric: str = "decode_step_ms", **facts: object) -> Row:
    return median_row(metric, list(samples), "ms", **facts)


def record(device: str, rows: list[Row], system: str = "headrace") -> Record:
    return Record(
        device=device,
        versions={"python": "3.11"},
        commit="0123456789abcdef",
        command="headrace bench latency <b>",
        system=system,
        rows=rows,
    )


def sweep(device: str, factor: float) -> Record:
    rows = []
    for batch in (1, 8, 64):
        base = 5.0 + batch / 32
        for metric, gain in (("prefill_ms", 8.0), ("decode_step_ms", factor)):
            samples = [base * gain * share for share in (0.999, 1.0, 1.001)]
            rows.append(ms(*samples, metric=metric, batch=batch, context=128, weights="bf16"))
    rows.append(ms(900 * factor, metric="train_step_ms", batch=2))
    return record(device, rows)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "h100-a.json", tmp_path / "h200-a.json"]
    sweep("NVIDIA H100 80GB HBM3", 1.0).write(paths[0])
    sweep("NVIDIA H200", 0.5).write(paths[1])
    return [str(path) for path in paths]


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["bench", "compare", *arguments])
    return int(end.value.code or 0)


def test_the_interval_of_a_median_is_that_of_the_sign_test() -> None:
    # Ranks from the binomial distribution, as tabulated for the sign test at 95 %.
    for count, rank in ((5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (25, 8)):
        low, high = median_interval(list(range(1, count + 1)))
        assert (low, high) == (rank, count + 1 - rank)


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    chance = random.Random(0)
    for count in (15, 1001):
        covered = 0
        for _ in range(400):
            low, high = median_interval([chance.expovariate(1.0) for _ in range(count)])
            covered += low <= 0.6931 <= high
        assert 0.93 <= covered / 400 <= 1.0


@pytest.mark.parametrize(
    ("first", "other", "gain", "noise"),
    [
        (ms(10, 10, 10), ms(5, 5, 5), 2.0, False),
        (ms(10, 10, 10), ms(10.2, 10.2, 10.2), 10 / 10.2, True),
        (ms(9, 10, 13), ms(11, 12, 14), 10 / 12, True),
        (ms(9, 10, 10.5), ms(11, 12, 14), 10 / 12, False),
        (median_row("r", [4.0], "1/s"), median_row("r", [6.0], "1/s"), 1.5, False),
        (ms(1.0), ms(1.0), 1.0, True),
    ],
    ids=["twice", "below 3 %", "overlap", "apart", "rate", "equal"],
)
def test_when_a_difference_is_noise(first, other, gain, noise) -> None:
    found = difference(first, other)
    assert found.gain == pytest.approx(gain)
    assert found.within_noise is noise
    assert str(found).endswith("≈") is noise


def test_rows_are_joined_on_equal_conditions_only() -> None:
    one = record("NVIDIA H100", [ms(1, batch=1, kv="bf16"), ms(2, batch=2, conditions={"x": 1})])
    two = record("NVIDIA H200", [ms(3, batch=1, kv="fp8"), ms(4, batch=2, conditions={"x": 1})])
    (line,) = compare([("a", one), ("b", two)]).lines
    assert line.facts == {"batch": 2, "x": 1}
    assert [row and row.value for row in line.rows] == [2, 4]


def test_series_are_told_apart_by_as_little_as_it_takes() -> None:
    def labels(*pairs: tuple[str, str]) -> tuple[str, ...]:
        rows = [ms(1.0)]
        named = [(f"f{i}", record(d, rows, s)) for i, (d, s) in enumerate(pairs)]
        return compare(named).labels

    assert labels(("NVIDIA H100", "a"), ("NVIDIA H200", "a")) == ("H100", "H200")
    assert labels(("NVIDIA H100", "a"), ("NVIDIA H100", "b")) == ("a", "b")
    assert labels(("NVIDIA H100", "a"), ("NVIDIA H100", "a")) == ("f0", "f1")


def test_series_of_different_commits_are_said_to_be() -> None:
    def said(*facts: dict[str, str]) -> str:
        rows = [ms(1.0, batch=1)]
        made = [record(device, rows) for device in ("NVIDIA H100", "NVIDIA H200")]
        changed = zip(made, facts, strict=True)
        records = [("f", msgspec.structs.replace(one, **fact)) for one, fact in changed]
        return compare(records).software()

    first, second = {"commit": "a" * 40}, {"commit": "b" * 40}
    assert said(first, first) == ""
    assert said(first, second) == "different commits: H100 aaaaaaa, H200 bbbbbbb"
    assert said(first, {**second, "system": "vllm"}) == ""


def test_lines_are_labelled_by_what_differs_and_ordered_by_batch() -> None:
    one = sweep("NVIDIA H100", 1.0)
    lines = compare([("a", one), ("b", sweep("NVIDIA H200", 1.0))]).of("prefill_ms")
    names = varying(lines)
    assert names == ["batch"]
    assert [label(line.facts, names) for line in lines] == ["1", "8", "64"]


def test_tables_say_gains_and_the_rule(files, capsys) -> None:
    assert bench(*files) == 0
    shown = capsys.readouterr().out
    for word in ("decode_step_ms", "H100", "against H100", "2.00×", "1.00× ≈", "95 % intervals"):
        assert word in shown


def texts_of_png(content: bytes) -> dict[str, str]:
    texts, place = {}, 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind = content[place + 4 : place + 8]
        body = content[place + 8 : place + 8 + length]
        if kind == b"tEXt":
            name, _, value = body.partition(b"\0")
            texts[name.decode()] = value.decode("latin-1")
        place += 12 + length
    return texts


def test_the_png_has_both_series_and_says_what_it_was_drawn_from(files, tmp_path) -> None:
    picture = tmp_path / "deeper" / "p.png"
    assert bench(*files, "--png", str(picture)) == 0
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert texts_of_png(content)["Records"] == records_digest([Path(f) for f in files])
    import matplotlib.image

    pixels = (matplotlib.image.imread(picture)[:, :, :3] * 255).round().astype(int)
    for colour in ("#2f6fb0", "#d9822b"):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - rgb).sum(axis=2) < 6).mean() > 0.01


def luminance(css: str) -> float:
    channels = [int(part) / 255 for part in css[css.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_in_a_browser(files, tmp_path) -> None:
    """No console error, no request but the page, figures visible and legible in both themes."""
    assert CHROMIUM, "chromium is needed"
    from playwright.sync_api import sync_playwright

    path = tmp_path / "page.html"
    assert bench(*files, "--html", str(path)) == 0
    assert "<b>" not in path.read_text().partition("<h2>Runs")[2]
    complaints: list[str] = []
    requests: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            view = browser.new_page(viewport={"width": 900, "height": 900}, color_scheme=theme)
            view.on("console", lambda message: complaints.append(message.text))
            view.on("pageerror", lambda error: complaints.append(str(error)))
            view.on("request", lambda request: requests.append(request.url))
            view.goto(path.as_uri())
            figures = view.locator("figure svg")
            assert figures.count() == 3
            for index in range(3):
                box = figures.nth(index).bounding_box()
                assert box
                assert box["width"] > 500
                assert box["height"] > 150
            paper = view.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (luminance(paper) < 0.1) == (theme == "dark")
            inks = view.evaluate(
                "[...document.querySelectorAll('figure svg text, h1, td, p')]"
                ".map(e => e.closest('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color)"
            )
            assert len(inks) > 40
            assert min(contrast(ink, paper) for ink in inks) > 7
            bars = view.evaluate(
                "[...document.querySelectorAll('figure svg path[style*=\"--series\"]')]"
                ".map(e => getComputedStyle(e).fill)"
            )
            assert len(set(bars)) == 2
            assert min(contrast(bar, paper) for bar in bars) > 2.5
            gains = view.locator("figure svg text", has_text="2.00×")
            assert gains.count() == 4
            assert gains.first.is_visible()
            assert view.locator("table").count() == 4
            shot = view.screenshot(path=str(tmp_path / f"{theme}.png"), full_page=True)
            assert len(zlib.compress(shot)) > 10_000
            assert view.evaluate("document.documentElement.scrollWidth") <= 900
        browser.close()
    assert complaints == []
    assert set(requests) == {path.as_uri()}
    assert not any(colour in path.read_text().partition("<body>")[2] for colour in LIGHT.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ONE"], "at least two records"),
        (["ONE", "no-such.json"], "No such file"),
        (["ONE", "OTHER"], "schema version 7"),
        (["ONE", "HALF"], "not a whole record"),
        (["ONE", "ELSE"], "no figure was measured under equal conditions in h100-a, else"),
        (["ONE", "TWO", "--metric", "speed"], "no speed was measured"),
        (["ONE", "TWO", "--noise", "-1"], "--noise"),
        ([], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_status_2_and_no_picture(files, tmp_path, capsys, arguments, says):
    whole = Path(files[0]).read_text()
    named = {"ONE": files[0], "TWO": files[1]}
    for name, text in (
        ("OTHER", whole.replace('"schema": 1', '"schema": 7')),
        ("HALF", whole[:500]),
    ):
        path = tmp_path / f"{name.lower()}.json"
        path.write_text(text)
        named[name] = str(path)
    record("NVIDIA H200", [ms(1.0, metric="x")]).write(tmp_path / "else.json")
    named["ELSE"] = str(tmp_path / "else.json")
    before = set(tmp_path.iterdir())
    outputs = ["--png", str(tmp_path / "p.png"), "--html", str(tmp_path / "p.html")]
    assert bench(*(named.get(argument, argument) for argument in arguments), *outputs) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("headrace: ")
    assert says in error
    assert "\n" not in error
    assert set(tmp_path.iterdir()) == before


def test_without_matplotlib_the_tables_still_work(files, tmp_path, capsys, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert bench(*files) == 0
    assert bench(*files, "--png", str(tmp_path / "p.png")) == 2
    assert "pip install 'headrace[bench]'" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(files, tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    assert bench(*files, "--png", str(tmp_path / "file" / "p.png")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_different_conditions_of_one_metric_stay_apart() -> None:
    with pytest.raises(ConfigurationError, match="equal conditions"):
        compare(
            [
                ("a", record("NVIDIA H100", [ms(1, batch=1)])),
                ("b", record("NVIDIA H200", [ms(1, batch=2)])),
            ]
        )
