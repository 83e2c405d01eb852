"""From a keyword to a data set, against a local server: paging, faults, limits, licences, killed runs, hostile files."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.errors import DataError

pytest.importorskip("lxml", reason="the extra pubmed is not installed: lxml")

from tests.picture_files import noise, turned
from tests.pubmed_service import NC, Service, article, picture
from tfds_builders.pubmed_figures import __main__ as command
from tfds_builders.pubmed_figures.collect import client, fetch, find
from tfds_builders.pubmed_figures.collect.journal import Journal


@pytest.fixture
def service():
    served = Service()
    yield served
    served.close()


@pytest.fixture
def collected(service, tmp_path):
    """Runs a step against the server, at a rate that tests can wait for."""

    def run(*steps, **options):
        options = {"rate": 1e6, "retries": 3, "sleep": lambda seconds: slept.append(seconds)} | options
        services = find.Services(f"{service.url}/eutils", f"{service.url}/bucket", service.url, email="a@b.c")
        with client.Client(**options) as asked, Journal(tmp_path / "journal.sqlite") as journal:
            for step in steps:
                step(journal, asked, services)
            items = {item["id"]: item for figures in (False, True) for item in journal.items(figures=figures)}
        return items

    slept = run.slept = []
    run.folder = tmp_path
    return run


def search(wanted=1000, licences=find.LICENCES):
    return lambda journal, asked, services: find.find_articles(journal, asked, services, "brain", wanted, licences)


def fetching(folder, **options):
    return lambda journal, asked, services: fetch.fetch(folder, journal, asked, services, **options)


def files(number, *names, form="jpg", **options):
    """The bucket's files of an article with these figures."""
    folder = f"PMC{number}.1"
    names = names or ("f1",)
    xml = article(number, figures=names, **options)
    return {f"{folder}/PMC{number}.1.xml": xml} | {f"{folder}/{name}.{form}": picture() for name in names}


def test_search_pages_and_filters(service, collected):
    for number in range(1, 451):
        service.add(number, {})
    items = collected(search(wanted=430))
    assert len(items) == 430
    assert items["PMC1"]["state"] == "found"
    pages = [path for path in service.asked if "esearch" in path]
    assert [int(path.partition("retstart=")[2].partition("&")[0]) for path in pages] == [0, 200, 400]
    assert "tool=jaxvqa" in pages[0]
    assert "email=a@b.c" in pages[0]
    assert '"cc+by+license"[filter]+OR+"cc0+license"[filter]' in pages[0]
    assert len(collected(search(wanted=900))) == 450  # known ones are not entered twice; the end is seen
    with pytest.raises(DataError, match="licences CC BYE; known: CC BY"):
        collected(search(licences=["CC BYE"]))


def test_articles_and_pictures_are_fetched(service, collected):
    service.add(7, files(7, "f1", "f2"))
    service.articles[7]["PMC7.1/f1.gif"] = b"a thumbnail"
    service.articles[7]["PMC7.2/PMC7.2.xml"] = article(7)  # the newest version counts, and what lies in it
    service.articles[7]["PMC7.2/f1.png"] = picture("PNG")
    items = collected(search(), fetching(collected.folder))
    assert items["PMC7"]["state"] == "fetched"
    figure = items["PMC7/f1"]
    assert (figure["state"], figure["file"], figure["licence"]) == ("fetched", "images/PMC7_f1.png", "CC BY")
    assert figure["attribution"] == "On 7"
    assert (collected.folder / figure["file"]).read_bytes() == picture("PNG")
    before = len(service.asked)
    collected(fetching(collected.folder))
    assert len(service.asked) == before  # nothing is fetched twice


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: files(1, licence=""), "it states no usable licence"),
        (lambda: files(1, licence=NC), "its licence is CC BY-NC"),
        (lambda: {}, "no XML of it"),
        (lambda: files(1) | {"PMC1.1/PMC1.1.xml": b"<article><cut"}, "PMC1 is not XML"),
        (
            lambda: files(1) | {"PMC1.1/PMC1.1.xml": b'<!DOCTYPE a [<!ENTITY a "b">]><article/>'},
            "PMC1 declares entities",
        ),
    ],
    ids=["no licence", "non-commercial", "no files", "cut", "entities"],
)
def test_articles_are_refused_by_name(service, collected, made, why):
    service.add(1, made())
    service.add(2, files(2))
    items = collected(search(), fetching(collected.folder))
    assert items["PMC1"]["state"] == "refused"
    assert why in items["PMC1"]["why"]
    assert items["PMC2/f1"]["state"] == "fetched"  # the others go on
    assert sorted(path.name for path in (collected.folder / "articles").iterdir()) == ["PMC2.xml"]


def png(width, height):
    """The head of a PNG that claims a size."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 99)
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: b"GIF89a no picture", "cannot be read"),
        (lambda: picture()[:3000], "its picture"),
        (lambda: png(60_000, 60_000), "its picture is too large: Image size (3600000000 pixels)"),
        (lambda: png(8_000, 6_000), "8000 x 6000 pixels: too large"),
        (lambda: picture(size=(10, 10)), "too small"),
        (lambda: picture("BMP"), "is a BMP file"),
    ],
    ids=["none", "damaged", "bomb", "huge", "icon", "form"],
)
def test_pictures_are_refused_by_name(service, collected, made, why):
    service.add(1, files(1, "f1", "f2") | {"PMC1.1/f1.jpg": made()})
    items = collected(search(), fetching(collected.folder))
    assert items["PMC1/f1"]["state"] == "refused"
    assert why in items["PMC1/f1"]["why"]
    assert items["PMC1/f2"]["state"] == "fetched"
    assert [path.name for path in (collected.folder / "images").iterdir()] == ["PMC1_f2.jpg"]


def test_missing_pictures_and_names_that_climb(service, collected):
    service.add(1, files(1, "../../../tmp/x", "f2", "f3"))
    del service.articles[1]["PMC1.1/f3.jpg"]
    items = collected(search(), fetching(collected.folder))
    climbing = items["PMC1/---------tmp-x"]
    assert climbing["state"] == "refused"
    assert "its picture is not there: f3" in items["PMC1/f3"]["why"]
    inside = {path for path in collected.folder.rglob("*") if path.is_file()}
    assert {path.name for path in inside} == {"journal.sqlite", "PMC1.xml", "PMC1_f2.jpg"}


@pytest.mark.parametrize(
    ("faults", "waits"),
    [
        ([(429, {"Retry-After": "7"}, b"slow down")], [7.0]),
        ([(500, {}, b""), (503, {}, b"")], [1.0, 2.0]),
        (["cut"], [1.0]),
        ([(429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, b"")], [1.0]),
        ([(429, {"Retry-After": "86400"}, b"")], [120.0]),
    ],
)
@pytest.mark.parametrize("place", ["/eutils/", "/bucket/", "/bucket/PMC1.1/PMC1", "/bucket/PMC1.1/f1"])
def test_busy_services_are_asked_again(service, collected, place, faults, waits):
    service.add(1, files(1))
    service.faults[place] = list(faults)
    items = collected(search(), fetching(collected.folder))
    assert items["PMC1/f1"]["state"] == "fetched"
    assert [seconds for seconds in collected.slept if seconds > 0.5] == waits
    assert (collected.folder / "images/PMC1_f1.jpg").read_bytes() == picture()


def test_a_service_that_stays_busy_ends_the_run_and_the_next_goes_on(service, collected):
    service.add(1, files(1, "f1", "f2"))
    service.faults["/bucket/PMC1.1/f2"] = [(503, {}, b"")] * 4
    with pytest.raises(client.ServiceError, match=r"f2\.jpg: HTTP 503, 4 times\. Start the same command again"):
        collected(search(), fetching(collected.folder))
    with Journal(collected.folder / "journal.sqlite") as journal:
        assert journal.get("PMC1/f1")["state"] == "fetched"
        assert journal.get("PMC1/f2")["state"] == "found"
    before = len(service.asked)
    items = collected(fetching(collected.folder))
    assert items["PMC1/f2"]["state"] == items["PMC1"]["state"] == "fetched"
    assert not any(path.endswith(("f1.jpg", "PMC1.1.xml")) for path in service.asked[before:])


def test_who_is_not_let_in_refuses_no_article(service, collected):
    service.add(1, files(1))
    service.faults["/bucket/"] = [(403, {}, b"")]
    with pytest.raises(client.ServiceError, match="HTTP 403: the service does not let this machine in"):
        collected(search(), fetching(collected.folder))
    assert collected(fetching(collected.folder))["PMC1/f1"]["state"] == "fetched"


@pytest.mark.parametrize("rate", [3.0, 10.0])
def test_the_rate_holds(service, collected, rate):
    service.add(1, files(1, *(f"f{i}" for i in range(8))))
    service.faults["/bucket/PMC1.1/f3"] = [(500, {}, b"")]
    now, begun = [0.0], []

    def sleep(seconds):
        now[0] += seconds

    def clock():
        begun.append(now[0])
        return now[0]

    collected(search(), fetching(collected.folder), rate=rate, sleep=sleep, clock=clock, longest_wait=0.01)
    # On a clock on which nothing but waiting takes time: the first request at once, each other one in its turn.
    assert len(service.asked) == len(begun) == 16
    assert now[0] == pytest.approx(15 / rate, abs=0.02)


def test_a_long_answer_is_not_read_to_its_end(service, collected):
    service.add(1, files(1) | {"PMC1.1/PMC1.1.xml": b"<article>" + b" " * 31_000_000 + b"</article>"})
    items = collected(search(), fetching(collected.folder))
    assert "31,000,019 bytes, more than 30,000,000" in items["PMC1"]["why"]


def test_enough_figures_end_it(service, collected):
    for number in range(1, 6):
        service.add(number, files(number, "f1", "f2"))
    items = collected(search(), fetching(collected.folder, most_figures=3))
    assert sum(item["state"] == "fetched" and "/" in name for name, item in items.items()) == 4


def test_openi_needs_a_licence(service, collected):
    entry = {"imgLarge": "/imgs/1.png", "image": {"caption": "<b>brain</b> MRI (A) x. (B) y."}}
    service.openi = [
        entry | {"uid": "one", "pmcid": "12", "licenseURL": "http://creativecommons.org/licenses/by/2.0/"},
        entry | {"uid": "two", "licenseURL": NC},
        entry | {"uid": "../three"},
    ]

    def step(journal, asked, services):
        find.find_openi(journal, asked, services, "brain", 10)

    items = collected(step, fetching(collected.folder))
    assert items["PMC12/one"]["state"] == "fetched"
    assert items["PMC12/one"]["caption"] == "brain MRI (A) x. (B) y."
    assert items["openi/two"]["why"] == "its licence is CC BY-NC"
    assert items["openi/---three"]["why"] == "it states no licence"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["find", "--articles=0"], "--articles=0: at least 1; --query is needed"),
        (["fetch"], "is not a folder: run find first"),
        (["find", "--query=x", "--rate=99"], "--rate=99.0: above 0, at most 10"),
        (["find", "--query=x", "--licences=mine"], "licences mine; known"),
    ],
)
def test_wrong_options(tmp_path, capsys, options, message):
    assert command.main([options[0], str(tmp_path / "none"), *options[1:]]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_journal_is_named(tmp_path, capsys):
    (tmp_path / "journal.sqlite").write_bytes(b"no database at all" * 100)
    assert command.main(["status", str(tmp_path)]) == 2
    assert "journal.sqlite is not a journal" in capsys.readouterr().err


def at(service):
    """Options of the command that lead to the server."""
    return [f"--eutils={service.url}/eutils", f"--bucket={service.url}/bucket", f"--openi={service.url}", "--rate=10"]


def test_a_killed_fetch_goes_on(service, tmp_path):
    for number in range(1, 8):
        service.add(number, files(number))
    assert command.main(["find", str(tmp_path), "--query=brain", *at(service)]) == 0
    root = Path(__file__).parents[3]
    words = [sys.executable, "-m", "tfds_builders.pubmed_figures", "fetch", str(tmp_path), *at(service)]
    process = subprocess.Popen(words, cwd=root, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("images/PMC2*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    fetched = {path.name for path in tmp_path.glob("images/*.jpg")}
    assert 2 <= len(fetched) < 7
    before = len(service.asked)
    assert command.main(["fetch", str(tmp_path), *at(service)]) == 0
    assert {path.name for path in tmp_path.glob("images/*.jpg")} == {f"PMC{number}_f1.jpg" for number in range(1, 8)}
    again = [path for path in service.asked[before:] if path.endswith("f1.jpg")]
    assert len(again) <= 7 - len(fetched) + 1  # at most the one that was on its way
    assert not list(tmp_path.rglob("*.part"))
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        assert database.execute("select count(*) from items where state = 'fetched'").fetchone() == (14,)
    database.close()


def test_from_a_keyword_to_a_data_set(service, tmp_path, capsys):
    pytest.importorskip("tesserocr", reason="the extra pubmed is not installed: tesserocr")
    from jaxvqa.data.data_set import Split
    from jaxvqa.data.records import Records
    from tfds_builders.build import build

    for number in range(1, 5):
        service.add(number, files(number))
    service.add(9, files(9, licence=NC))
    folder = tmp_path / "figures"
    assert command.main(["collect", str(folder), "--query=brain", *at(service)]) == 0
    output = capsys.readouterr().out
    assert "found 5 articles" in output
    assert "refused 1: its licence is CC BY-NC" in output
    figures = json.loads((folder / "figures.json").read_text())
    assert [figure["subcaptions"] for figure in figures] == [{"A": "Axial CT.", "B": "Coronal MRI."}] * 4
    for box, expected in zip(figures[0]["panels"].values(), ((0, 0, 200, 160), (206, 0, 406, 160)), strict=True):
        assert np.abs(np.subtract(box, expected)).max() <= 2
    page = (folder / "page.html").read_text()
    assert page.count("<figure>") == 4
    assert "its licence is CC BY-NC" in page
    parts = json.loads((folder / "original/med_captions_processed.json").read_text())
    assert parts[0] == {"Img_id": "PMC1_f1.jpg", "Sub_ID": "a", "text": "Axial CT."}
    boxes = json.loads((folder / "original/boxes/PMC1_f1.jpg.json").read_text())
    assert [box["OCR"] for box in boxes] == [["a"], ["b"]]

    for config in ("captions", "images"):
        build("pubmed_figures", config, manual_dir=folder, data_dir=tmp_path / "tfds")
    splits = Records("pubmed_figures/captions", "train", folder=str(tmp_path / "tfds"))
    images = Records("pubmed_figures/images", "train", folder=str(tmp_path / "tfds"))
    source = Split(splits, [images])
    examples = source.read(range(len(source)))
    assert {e["panel"] for e in examples} == {"", "A", "B"}
    panel = next(e for e in examples if e["panel"] == "B")
    assert (panel["caption"], panel["question_type"], panel["licence"]) == ("Coronal MRI.", "panel", "CC BY")
    assert (panel["image_w"], panel["image_h"]) == (
        panel["box"][2] - panel["box"][0],
        panel["box"][3] - panel["box"][1],
    )
    only = Split(splits, [images], question_types=("figure",))
    assert all(e["panel"] == "" for e in only.read(range(len(only))))

    # The original's rule: a word that equals the letter, or the whole figure.
    assert command.main(["split", str(folder), "--again", "--rules=original"]) == 0
    assert command.main(["write", str(folder)]) == 0
    for figure in json.loads((folder / "figures.json").read_text()):
        whole = [0, 0, figure["width"], figure["height"]]
        for label, box in figure["panels"].items():
            named = [b["box"] for b in figure["boxes"] if label.lower() in b["words"]]
            assert box == (named[0] if named and len(figure["boxes"]) != 1 else whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../x.png"}, "leads out of the folder"),
        ({"file": "none.png"}, "'none.png' is not there"),
        ({"caption": None}, "caption"),
        ({"license": ""}, "license is empty"),
        ({"panels": {"A": [5, 5, 5, 9]}}, "panel 'A' is"),
        ({"panels": {"A": [0, 0, 900, 9]}, "subcaptions": {"A": "x"}}, "406 x 160 pixels; panel 'A'"),
        ({"subcaptions": {"A": 5}}, "subcaptions"),
        ({"caption": ""}, "no figure has a caption"),
    ],
)
def test_a_wrong_figures_json_is_reported(tmp_path, change, message):
    from tfds_builders.build import build

    (tmp_path / "x.png").write_bytes(picture("PNG"))
    figure = {"file": "x.png", "license": "CC BY", "source": "here", "caption": "A brain."} | change
    (tmp_path / "figures.json").write_text(json.dumps([figure]))
    with pytest.raises(DataError, match=message):
        build("pubmed_figures", "images", manual_dir=tmp_path, data_dir=tmp_path / "tfds")
    assert not list(tmp_path.rglob("*array_record*"))


def test_splits_without_an_article_are_reported(tmp_path, caplog):
    from tfds_builders.pubmed_figures.pubmed_figures_dataset_builder import read_splits

    (tmp_path / "x.png").write_bytes(picture("PNG"))
    figure = {"file": "x.png", "license": "CC BY", "source": "here", "caption": "A brain.", "subcaptions": {"A": " "}}
    (tmp_path / "figures.json").write_text(json.dumps([figure]))
    (found,) = read_splits(tmp_path).values()
    assert [record["caption"] for record in found] == ["A brain."]
    assert "pubmed_figures: no record for the splits" in caplog.text


def test_a_picture_has_the_size_in_which_it_is_shown():
    assert fetch.checked_picture(turned(noise(), 6)) == ("JPEG", 70, 90)
