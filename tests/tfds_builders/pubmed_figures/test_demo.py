"""The local service: its articles are found, fetched, split as they were composed, and refused where they state no licence."""

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.data.data_set import DataSet
from tfds_builders.pubmed_figures import __main__ as command
from tfds_builders.pubmed_figures import demo
from tfds_builders.pubmed_figures.collect import client

ROOT = Path(__file__).parents[3]


def test_articles_are_the_same_again_and_found_by_their_words():
    made = demo.articles(9)
    assert made == demo.articles(9)
    service = demo.Service(made)
    try:
        found = {
            words: len(service.search(f'({words}) AND "open access"[filter]'))
            for words in ("brain MRI", "RADIOGRAPH", "abdomen")
        }
        assert found == {"brain MRI": 6, "RADIOGRAPH": 3, "abdomen": 0}
        with urllib.request.urlopen(f"{service.url}/eutils/esearch.fcgi?term=(brain)&retstart=4&retmax=9") as answer:
            listed = json.load(answer)["esearchresult"]
        assert (listed["count"], len(listed["idlist"])) == ("6", 2)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{service.url}/bucket/PMC1.1/PMC1.1.xml")
    finally:
        service.close()


def test_wrong_options(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert demo.main([f"--port={port}", "--articles=1"]) == 2
    assert f"--port={port}: Address already in use. Take another one" in capsys.readouterr().err
    assert demo.main(["--port=70000", "--articles=0"]) == 2
    assert "--port=70000: 0 to 65535, 0 for any that is free; --articles=0: at least 1" in capsys.readouterr().err


def test_the_command_says_what_to_run_and_stops(tmp_path):
    words = [sys.executable, "-m", "tfds_builders.pubmed_figures.demo", "--port=0", "--articles=1"]
    # Where the tests run in a shell's background, interrupts are ignored, in what they start too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        address = lines[1].rpartition("--bucket=")[2].strip()
        with urllib.request.urlopen(f"{address}/?prefix=PMC{demo.FIRST}.") as answer:
            assert answer.read().count(b"<Key>") == 2
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        process.stdout.close()
    assert f"--eutils={address.removesuffix('/bucket')}/eutils" in lines[1]


def test_what_is_collected_is_what_was_composed_and_can_be_trained_on(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lxml", reason="the extra pubmed is not installed: lxml")
    pytest.importorskip("tesserocr", reason="the extra pubmed is not installed: tesserocr")
    from jaxvqa import configs
    from jaxvqa.tasks import make_task
    from tfds_builders.build import build

    monkeypatch.setattr(client, "RATE_WITH_KEY", 1e6)  # what a service is spared, tests would wait for
    folder = tmp_path / "figures"
    made = demo.articles(15)
    service = demo.Service(made)
    try:
        where = [f"--eutils={service.url}/eutils", f"--bucket={service.url}/bucket", "--rate=1e6"]
        assert command.main(["collect", str(folder), "--query=brain MRI", *where]) == 0
    finally:
        service.close()
    output = capsys.readouterr().out
    assert "found 10 articles" in output
    assert "refused 1: it states no usable licence" in output
    figures = json.loads((folder / "figures.json").read_text())
    assert len(figures) == 9
    for figure in figures:
        number = int(figure["article"].removeprefix("PMC"))
        count = 2 + (number - demo.FIRST) % 3
        assert list(figure["subcaptions"]) == [*"ABCD"[:count]]
        assert all(
            text in made[number][f"PMC{number}.1/PMC{number}.1.xml"].decode() for text in figure["subcaptions"].values()
        )
        step, across = demo.PANEL + demo.GUTTER, 2 if count == 4 else count
        for i, label in enumerate(figure["subcaptions"]):
            x, y = i % across * step, i // across * step
            expected = (x, y, x + demo.PANEL, y + demo.PANEL)
            assert np.abs(np.subtract(figure["panels"][label], expected)).max() <= 3, (figure["figure_id"], label)

    for part in ("captions", "images"):
        build("pubmed_figures", part, manual_dir=folder, data_dir=tmp_path / "tfds")
    config = configs.load("configs/blip_pretrain.py:pubmed,small")
    configs.override(config, [("data.dir", str(tmp_path / "tfds"))])
    data = DataSet(config.data)
    task = make_task(config, data)
    source, row = data.split("val"), config.evals.val
    (example,) = source.read([0])
    for transform in task.transforms(train=False):
        example = transform(example)
    assert (example["image"].shape, example["text"].shape) == ((32, 32, 3), (24,))
    (record,) = source.read_records([0])
    for transform in task.text_transforms(row.max_tokens):
        record = transform(record)
    assert record["text"].shape == record["text_mask"].shape == (35,)
    assert list(record["text"][:23]) == list(example["text"][:23])  # the last token of a text that is cut is the end
