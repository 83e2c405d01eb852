"""JATS of strangers: figures, captions with their mark-up, licences; hostile files are refused by name."""

import pytest

from jaxvqa.errors import DataError

pytest.importorskip("lxml", reason="the extra pubmed is not installed: lxml")

from tfds_builders.pubmed_figures.collect import read
from tfds_builders.pubmed_figures.collect.read import licence_name, read_articles

ARTICLE = """<?xml version="1.0"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS 1.2//EN" "JATS-archivearticle1.dtd">
<article xmlns:xlink="http://www.w3.org/1999/xlink"><front>
<journal-meta><journal-title-group><journal-title>Journal of Heads</journal-title></journal-title-group></journal-meta>
<article-meta><article-id pub-id-type="pmc">123</article-id><article-id pub-id-type="doi">10.1/x</article-id>
<title-group><article-title>A <italic>rare</italic> tumour</article-title></title-group>
<contrib-group><contrib contrib-type="author">
<name><surname>Smith</surname><given-names>Ann-Marie B</given-names></name></contrib>
</contrib-group><pub-date><year>2020</year></pub-date><volume>7</volume><elocation-id>e4</elocation-id>
<permissions><license xlink:href="https://creativecommons.org/licenses/by/4.0/">
<license-p>Open.</license-p></license></permissions>
</article-meta></front><body><sec>
<fig id="f1"><label>Figure 1</label><caption><title>Brain.</title><p><bold>a</bold> Axial
  <xref>T1</xref>.</p><p><bold>b</bold> Coronal, 10<sup>2</sup>.</p></caption><graphic xlink:href="x-1"/></fig>
<fig id="f1"><caption><p>Second.</p></caption><graphic xlink:href="../../etc/passwd"/></fig>
</sec></body></article>"""


def test_an_article():
    (article,) = read_articles(ARTICLE.encode(), "x.xml")
    assert (article.article_id, article.doi, article.licence) == ("PMC123", "10.1/x", "CC BY")
    assert article.attribution == "Smith AMB. A rare tumour. Journal of Heads 2020;7:e4"
    first, second = article.figures
    assert (first.figure_id, first.label, first.title, first.graphics) == ("f1", "Figure 1", "Brain.", ("x-1",))
    assert first.caption.text == "a Axial T1. b Coronal, 102."
    assert [first.caption.text[a:b] for a, b in first.caption.bold] == ["a", "b"]
    assert second.figure_id == "f1-2"


def test_a_set_of_articles_and_a_bare_figure():
    body = ARTICLE.partition("<article ")[2]
    both = f"<pmc-articleset><article {body}<article {body}</pmc-articleset>"
    assert len(read_articles(both.encode(), "set.xml")) == 2
    (article,) = read_articles(b'<fig id="a"><label>1</label><graphic xlink:href="p.tif"/></fig>', "fig.xml")
    assert article.figures[0].graphics == ("p.tif",)
    assert article.licence == ""


BOMB = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
) + "]><article>&j;</article>"  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BOMB, "bad.xml declares entities|bad.xml is not XML"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><article>&x;</article>', "bad.xml declares entities"),
        ("<article><p>cut", "bad.xml is not XML that can be read"),
        ("", "bad.xml is not XML that can be read"),
        ("<html/>", "bad.xml: no article in it, the outer element is 'html'"),
        ("<article>" + "<sec>" * 5_000 + "</sec>" * 5_000 + "</article>", "bad.xml is not XML that can be read"),
        ("<article>" + "<fig/>" * (read.MOST_FIGURES + 1) + "</article>", "more than 500 figures"),
        ("<article>" + " " * read.MOST_BYTES + "</article>", "bad.xml: 30,0.* bytes of XML"),
    ],
    ids=["bomb", "external", "cut", "empty", "html", "deep", "figures", "huge"],
)
def test_hostile_files_are_refused_by_name(data, message):
    with pytest.raises(DataError, match=message):
        read_articles(data.encode(), "bad.xml")


def test_a_caption_of_a_megabyte_refuses_its_figure():
    long = ARTICLE.replace("Second.", "word " * 200_000)
    first, second = read_articles(long.encode(), "x.xml")[0].figures
    assert "999,999 characters" in second.refused
    assert len(second.caption.text) < 300
    assert not first.refused


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("http://creativecommons.org/licenses/by/2.0", "CC BY"),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", "CC BY-NC-ND"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0"),
        ("distributed under the Creative Commons Attribution License, which permits unrestricted use", "CC BY"),
        ("Creative Commons Attribution-NonCommercial-NoDerivs 3.0 Unported", "CC BY-NC-ND"),
        ("Creative Commons Attribution Non-Commercial License", "CC BY-NC"),
        ("a Creative Commons Attribution 4.0 License, for commercial and non-commercial use", "CC BY"),
        ("CC BY NC SA", "CC BY-NC-SA"),
        ("All rights reserved", ""),
        ("", ""),
    ],
)
def test_licences(text, name):
    assert licence_name(text) == name


def test_the_stricter_licence_holds():
    both = ARTICLE.replace("Open.", "Creative Commons Attribution Non-Commercial License")
    assert read_articles(both.encode(), "x.xml")[0].licence == "CC BY-NC"
    assert read_articles(ARTICLE.replace("/by/4.0/", "").encode(), "x.xml")[0].licence == ""


def test_published_figures(jaxvqa_data):
    import json

    folder = jaxvqa_data / "data/pmc_figures"
    figures = [f for f in json.loads((folder / "figures.json").read_text(encoding="utf-8")) if "jats" in f]
    assert len(figures) == 7
    for figure in figures:
        (article,) = read_articles((folder / figure["jats"]).read_bytes(), figure["jats"])
        assert (article.figures[0].title, article.figures[0].caption.text) == (figure["title"], figure["caption"])
