"""Times the input pipeline on stored region features of the published size, beside what a training step eats.

    python -m benchmarks.input_pipeline [--images=600] [--batches=60] [--step_json=FILE] [--json=FILE]

Builds a `vqa_v2` data set in a temporary folder from made feature files in the original's layout (100 regions x 2048,
float32 .npz; stored as float16), shuffles, tokenises, scores, pads and batches it by 64, and reports examples a second
for each number of threads. `--step_json` (of `benchmarks.train_step --json`) adds how many times faster that is.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxvqa import configs
from jaxvqa.data.batches import LoadBatch, Readers, read_ahead
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.order import TrainOrder
from jaxvqa.errors import run_command
from jaxvqa.tasks import make_task
from tfds_builders import build

BATCH = 64


def make_files(folder: Path, images: int) -> None:
    """Feature files, questions and annotations in the original's layout; two questions an image, ten answers each."""
    (folder / "vqa").mkdir(parents=True)
    (folder / "coco_extract" / "train2014").mkdir(parents=True)
    rng = np.random.default_rng(0)
    questions, annotations = [], []
    for image in range(1, images + 1):
        # About the share of zeros and the range of the published features.
        features = np.maximum(rng.normal(0.3, 1.0, (2048, 100)), 0).astype(np.float32)
        boxes = np.tile(np.asarray([0, 0, 100, 100], np.float32), (100, 1))
        file = folder / "coco_extract" / "train2014" / f"COCO_train2014_{image:012d}.jpg.npz"
        np.savez(file, x=features, bbox=boxes, num_bbox=100, image_h=480, image_w=640)
        for j in range(2):
            ids = {"question_id": 10 * image + j, "image_id": image}
            questions.append(ids | {"question": f"What is the colour of thing number {image % 50}?"})
            answers = [{"answer": f"answer {(image + k // 7) % 30}", "answer_id": k + 1} for k in range(10)]
            kind = {"question_type": "what is the", "answer_type": "other"}
            annotations.append(ids | kind | {"answers": answers, "multiple_choice_answer": answers[0]["answer"]})
    for name, content in (
        ("v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions}),
        ("v2_mscoco_train2014_annotations.json", {"annotations": annotations}),
    ):
        (folder / "vqa" / name).write_text(json.dumps(content))


def build_data(folder: Path, images: int) -> int:
    """Builds `vqa_v2` in `folder` from made files; returns the build command's exit code."""
    make_files(folder / "files", images)
    return build.main(
        ["vqa_v2", "--config=questions,features", f"--data_dir={folder}", f"--manual_dir={folder / 'files'}"]
    )


def measure(data_dir: Path, batches: int, threads: int) -> float:
    """Examples a second, after the first batches."""
    config = configs.load("configs/rwsan.py:vqa_v2")
    with config.unlocked():
        config.data.dir = str(data_dir)
        config.data.cache_mib = 0.0  # the real features are larger than any memory: read and decode them each time
        config.data.vocabulary_splits = config.data.answers.splits = "train"
    task = make_task(config, DataSet(config.data))
    source = DataSet(config.data).split("train")
    order = TrainOrder(len(source), BATCH, 0)
    load = LoadBatch(source, order, task.transforms(train=True), 0, 1)
    warm_up = 3
    stream = read_ahead(load, 0, warm_up + batches, Readers(threads=threads, prefetch_mib=256))
    for _ in range(warm_up):
        next(stream)
    start = time.perf_counter()
    count = sum(len(batch["id"]) for batch in stream)
    return count / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--step_json", default="")
    parser.add_argument("--json", default="")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="jaxvqa_input_pipeline_"))
    try:
        if code := build_data(folder, args.images):
            return code
        rates = {threads: measure(folder, args.batches, threads) for threads in args.threads}
    finally:
        shutil.rmtree(folder)
    eaten = json.loads(Path(args.step_json).read_text())["jaxvqa"]["examples_per_second"] if args.step_json else None
    print(f"100 x 2048 features, batch {BATCH}, {time.strftime('%Y-%m-%d')}")
    for threads, rate in rates.items():
        times = f"{rate / eaten:8.1f} x the training step's {eaten:.1f}" if eaten else ""
        print(f"{threads:3d} threads {rate:10.0f} examples/s {times}")
    if args.json:
        Path(args.json).write_text(json.dumps({"examples_per_second": rates, "step": eaten}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.input_pipeline", main))
