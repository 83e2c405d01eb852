"""MedVL's rules on figures, which no network takes part in: crops, records of retrieval, the paging of Open-i.

docs/originals/blip.md, section 16.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxvqa.data.blip_text import pre_caption
from jaxvqa.golden.cases import Case, Results, Row


def _recognised(content: Mapping[str, Any]) -> bool:
    return bool(content.keys() & SECTIONS.keys())


def run(case: Case) -> Iterator[Row]:
    """The rows of a file of such cases: one of each section that it has."""
    comments = ("image_size_w_h", "box_format")
    yield from case.unknown(case.manifest, (*SECTIONS, *comments))
    for name, check in SECTIONS.items():
        if name in case.manifest:
            yield case.counted(name, check(case.manifest))


def _chosen(name: str) -> Callable[[Mapping[str, Any]], Results]:
    def results(content: Mapping[str, Any]) -> Results:
        # Only here: it brings the builders' dependencies along.
        from tfds_builders.pubmed_figures.collect import original

        width, height = content["image_size_w_h"]
        for number, one in enumerate(content[name]):
            label = [one["Sub_ID"]] if name == "subfigure_choice" else []
            ours = getattr(original, name)(one["boxes"], *label, (width, height))
            yield f"crop {number}", list(ours), one["chosen"]
            if "caption" in one:  # as the loader returns it: cleaned, so that cleaning it again changes nothing
                yield f"caption {number}", pre_caption(one["caption"], len(one["caption"])), one["caption"]

    return results


def _records(content: Mapping[str, Any]) -> Results:
    from tfds_builders.pubmed_figures.collect import original

    expected, records = content["retrieval_records"], content["retrieval_records"]["annotation"]
    ids = original.figure_ids(records)
    texts = [pre_caption(record["text"], 200) for record in records]
    images = [record["Img_id"].rpartition(".")[0] for record in records]
    ours = {
        "train_img_ids": ids,
        "eval_text": texts,
        "eval_image": images,
        "eval_txt2img": {str(i): i for i in range(len(records))},
        "eval_img2txt": {str(i): [i] for i in range(len(records))},
        "items": len(records),
    }
    ours |= {
        key: [texts[int(number)], ids[images[int(number)]]]
        for key in expected
        if (number := key.removeprefix("train_item").partition("_")[0]).isdigit()
    }
    for key, value in expected.items():
        if key != "annotation":
            yield key, ours.get(key, "the runner does not know this"), value


def _paging(content: Mapping[str, Any]) -> Results:
    from tfds_builders.pubmed_figures.collect import original

    for case in content["openi"]:
        asked: list[str] = []

        def get(url: str, case: Mapping[str, Any] = case, asked: list[str] = asked) -> Mapping[str, Any]:
            """Answers as the service of the cases did."""
            asked.append(url)
            if len(asked) > 2 + case["wanted"] // original.PAGE:
                raise ValueError(f"the original never ends with {case['wanted']} wanted of {case['available']}")
            first, last = (int(part.partition("=")[2]) for part in url.split("&") if part[:2] in ("m=", "n="))
            numbers = range(first, min(last, case["available"]) + 1)
            entries = [{"imgLarge": f"/imgs/512/{n}.png", "image": {"caption": f"caption {n}"}} for n in numbers]
            return {"total": case["available"], "list": entries}

        figures = list(original.openi_figures(case["query"], case["wanted"], get, as_written=True))
        ours: dict[str, Any] = {"urls": asked, "records": len(figures)}
        for name, figure in (("first", figures[0]), ("last", figures[-1])) if figures else ():
            ours[name] = {"caption": figure.caption, "img_file": figure.img_file, "img_url": figure.img_url}
        for key, value in case.items():
            if key not in ("query", "wanted", "available"):
                yield f"{case['query']}, {case['wanted']}: {key}", ours.get(key, "the runner does not know this"), value


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], Results]] = {
    "subfigure_choice": _chosen("subfigure_choice"),
    "first_box_choice": _chosen("first_box_choice"),
    "retrieval_records": _records,
    "openi": _paging,
}
"""Section of a file -> what checks it."""

RUNNERS = ((_recognised, run),)
"""What recognises a file of cases by its content -> what runs it."""
