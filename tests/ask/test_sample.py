"""What is written out to be asked about is what the evaluation reads, and the command takes it."""

import numpy as np
import pytest

from jaxvqa.ask import __main__ as command
from jaxvqa.ask import sample
from jaxvqa.runs import Run
from tfds_builders.vqa_v2.region_files import read_region_file


@pytest.mark.parametrize(("name", "regions"), [("rwsan", True), ("proposed", False), ("sysu_hcp", False)])
def test_image_question_and_regions_are_those_of_the_evaluation(asked_run, tmp_path, name, regions):
    run = Run.open(asked_run(name))
    written = sample.write(run, tmp_path / "new/folder")
    (example,) = run.data.split("val").read([0])
    assert written.image.read_bytes() == example["image"]
    assert set(written.answers) == set(example["answers"])
    assert written.question == ("" if name == "sysu_hcp" else example["question"])
    assert (written.regions is not None) == regions
    if written.regions:
        features, boxes, _, _ = read_region_file(written.regions, width=example["features"].shape[1])
        np.testing.assert_array_equal(features, example["features"])
        np.testing.assert_array_equal(boxes, example["boxes"])
    (asked,) = command._asked(command._parser().parse_intermixed_args(written.words(run.folder)))
    assert (asked.image, asked.question, asked.regions or None) == (written.image, written.question, written.regions)
