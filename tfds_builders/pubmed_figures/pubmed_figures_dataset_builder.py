"""Builder of figures of open-access articles; README.md beside it describes the data."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxvqa.data import pictures
from jaxvqa.errors import DataError
from jaxvqa.inputs import read_json
from tfds_builders import checks
from tfds_builders.manual import ManualFile, find_files

HOME = "https://pmc.ncbi.nlm.nih.gov"
FIGURES = ManualFile(
    ("figures.json",), HOME, 'Made by: python -m tfds_builders.pubmed_figures collect DIR --query="brain MRI"'
)
SPLITS = {"train": range(6), "val": range(6, 7), "test": range(7, 8)}
"""Split -> which of eight parts of the articles."""

Record = dict[str, Any]

_FORM = [
    {"file": str, "license": str, "source": str, "attribution?": str, "title?": str, "caption?": str, "article?": str}
    | {"figure_id?": str, "subcaptions?": {str: str}, "panels?": ({str: [int]}, type(None))}
]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Figures and panels with their captions: `captions`, and the `images` they describe."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="captions", description="A caption of each figure, a sub-caption of each panel."),
        tfds.core.BuilderConfig(name="images", description="The figures and panels, as PNG."),
    ]
    workers = 1
    """Threads that read pictures; the build command sets it."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "A folder that the collector made; see tfds_builders/pubmed_figures/README.md."

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns what the builder needs at the least."""
        return [FIGURES]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        text = features.Text()
        images = self.builder_config.name == "images"
        columns: dict[str, Any] = {"image_id": np.int64, "figure_id": text, "panel": text}
        if images:
            columns |= {"image": features.Image(encoding_format="png"), "image_w": np.int32, "image_h": np.int32}
            columns |= {"box": features.Tensor(shape=(4,), dtype=np.int32)}
        else:
            columns |= {"question_id": np.int64, "caption": text, "question_type": text}
        columns |= {"licence": text, "source": text, "attribution": text}
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns),
            homepage=HOME,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(image_ids={}) if images else None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = Path(dl_manager.manual_dir)
        splits = read_splits(folder)
        if self.builder_config.name == "captions":
            return {split: self._generate_examples(map(_caption, records)) for split, records in splits.items()}
        once = {split: list({r["image_id"]: r for r in reversed(rs)}.values())[::-1] for split, rs in splits.items()}
        self.info.metadata["image_ids"] |= {split: [r["image_id"] for r in rs] for split, rs in once.items()}
        named = {split: [(str(r["file"]), r) for r in records] for split, records in once.items()}
        advice = "Fetch these figures again, or take them out of figures.json."
        examples = checks.picture_examples("pubmed_figures", named, _image, advice, self.workers)
        return {split: self._generate_examples(of_split) for split, of_split in examples.items()}

    def _generate_examples(self, examples: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(examples)


def read_splits(folder: Path) -> dict[str, list[Record]]:
    """Reads the figures: one record for each, and one for each panel with a sub-caption.

    Articles are divided, not figures, so that no article is in two splits: three quarters are for training.

    Args:
      folder: With `figures.json`.

    Returns:
      By split, without those that have none: `question_id`, `image_id`, `figure_id`, `panel`, `box` (None: all of
      it), `caption`, `file`, …

    Raises:
      DataError: Fields are missing or of another type, files are missing, or no figure has a caption; names all of it.
    """
    path = FIGURES.require(folder)
    figures = read_json(path, "figures as the collector writes them", _FORM)
    faults: list[str] = []
    records: list[Record] = []
    names: dict[str, int] = {}
    # Only where a name is not there: two figures of an article may differ by case alone.
    alike = find_files((figure["file"] for figure in figures if not (folder / figure["file"]).exists()), folder)
    for number, figure in enumerate(figures, 1):
        file = alike.get(figure["file"], folder / figure["file"])
        wrong = _faults(folder, file, figure)
        name = str(figure.get("figure_id") or Path(str(figure.get("file"))).stem)
        if name in names:
            wrong.append(f"figure_id {name!r} is also that of figure {names[name]}")
        names[name] = number
        faults += [f"{path}, figure {number}: {fault}" for fault in wrong]
        if not wrong:
            records += _records(name, file, figure)
    if faults:
        advice = "Write the folder again: python -m tfds_builders.pubmed_figures write DIR"
        raise checks.error_of(f"pubmed_figures: {len(faults)} fault(s) in {path}", faults, advice)
    if not records:
        raise DataError(f"{path}: no figure has a caption; nothing to build.")
    ids: dict[Any, int] = {}
    for number, record in enumerate(records):
        # Texts of one picture share it: the figure's own, and those of panels without a box.
        record["image_id"] = ids.setdefault((record["figure_id"], record["box"] and tuple(record["box"])), len(ids))
        record["question_id"] = number
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in records:
        part = hashlib.sha256(record["article"].encode()).digest()[0] % 8
        splits[next(split for split, parts in SPLITS.items() if part in parts)].append(record)
    because = "articles are divided by their names, and these are few"
    checks.filled_splits("pubmed_figures", splits, because, partial=True)
    return {split: of_split for split, of_split in splits.items() if of_split}


def _faults(folder: Path, file: Path, figure: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with a figure's file and boxes."""
    faults = []
    if not file.resolve().is_relative_to(folder.resolve()):
        faults.append(f"file {figure['file']!r} leads out of the folder")
    elif not file.is_file():
        faults.append(f"file {figure['file']!r} is not there")
    for label, box in (figure.get("panels") or {}).items():
        if len(box) != 4 or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            faults.append(f"panel {label!r} is {str(box)[:40]}, expected [left, top, right, bottom] in pixels")
    if not figure["license"].strip():
        faults.append("license is empty")
    return faults


def _records(name: str, file: Path, figure: Mapping[str, Any]) -> Iterator[Record]:
    caption = " ".join(part for part in (figure.get("title"), figure.get("caption")) if part)
    common = {
        "figure_id": name,
        "file": file,
        "article": figure.get("article") or figure["source"],
        "licence": figure["license"],
        "source": figure["source"],
        "attribution": figure.get("attribution") or "",
    }
    if caption.strip():
        yield common | {"panel": "", "box": None, "caption": caption}
    boxes = figure.get("panels") or {}
    for label, text in (figure.get("subcaptions") or {}).items():
        box = boxes.get(label)
        if text.strip():
            all_of_it = box == [0, 0, figure.get("width"), figure.get("height")]
            yield common | {"panel": label, "box": None if all_of_it else box, "caption": text}


def _caption(record: Record) -> Record:
    kept = {
        key: record[key] for key in ("image_id", "figure_id", "panel", "caption", "licence", "source", "attribution")
    }
    return kept | {"question_id": record["question_id"], "question_type": "panel" if record["panel"] else "figure"}


def _image(name: str, record: Record) -> Record:
    """Cuts a record's picture out of its figure."""
    content = checks.read_bytes(record["file"])
    try:
        picture = pictures.decode(content)
    except DataError as error:
        raise DataError(f"{name} {error}") from error
    left, top, right, bottom = record["box"] or (0, 0, *picture.size)
    if right > picture.width or bottom > picture.height:
        raise DataError(
            f"{name} has {picture.width} x {picture.height} pixels; panel {record['panel']!r} is {record['box']}"
        )
    file = io.BytesIO()
    picture.crop((left, top, right, bottom)).save(file, "PNG")
    kept = {key: record[key] for key in ("image_id", "figure_id", "licence", "source", "attribution")}
    kept["panel"] = record["panel"] if record["box"] else ""
    size = {"image_w": right - left, "image_h": bottom - top}
    return kept | size | {"image": file.getvalue(), "box": np.asarray([left, top, right, bottom], np.int32)}
