"""`make run`: the embedded data set, RWSAN and its question-only baseline trained on it, a report, and how to ask it."""

import datetime
import shlex
import sys
import time
from pathlib import Path

from jaxvqa import configs, logs, train
from jaxvqa.ask import sample
from jaxvqa.errors import install, run_command
from jaxvqa.logs import log
from jaxvqa.main import use_compilation_cache
from jaxvqa.report.page import write
from jaxvqa.runs import Run
from tfds_builders import build

NEXT = """
Report: {report}

Ask it about an image of the validation split, where the answer is {answers}
  {ask}

What to try next
  {python} -m jaxvqa.explain --workdir={run} --output={run}/explained     attention on single questions
  {python} -m jaxvqa.main --mode=predict --workdir={run} --split=test     predictions with ids, EvalAI result file
  {python} -m jaxvqa.main --config=configs/rwsan.py:proposed --workdir={folder}/proposed   regions of any image, then
  {python} -m jaxvqa.ask --workdir={folder}/proposed IMAGE "is there a mass?"              images of your own
  {python} -m jaxvqa.main --config=configs/rwsan.py --help                every field of the config
  {python} -m jaxvqa.main --config=configs/rwsan.py --config.optim.lr=5e-4
  {python} -m tfds_builders.build easy_vqa                                 shapes and colours (first: {install})
  {python} -m jaxvqa.main --config=configs/rwsan.py:vqa_v2 --help         the paper's recipe on VQA v2
"""


def offer(workdir: Path) -> tuple[str, str]:
    """Writes an image of a run's own evaluation, and returns the command that asks about it, and the annotators' answers."""
    asked = sample.write(Run.open(workdir), workdir / "asked")
    answers = " or ".join(f'"{answer}"' for answer in asked.answers)
    return shlex.join([sys.executable, "-m", "jaxvqa.ask", *asked.words(workdir)]), answers


def main() -> int:
    """Runs the tour and returns its exit code."""
    return run_command("jaxvqa", _tour)


def _tour() -> int:
    logs.setup()
    began = time.perf_counter()
    if code := build.main(["phantom_vqa"]):
        return code
    folder = Path("runs") / f"{datetime.datetime.now():%Y-%m-%d_%H%M%S}_first_run"
    results = {}
    for name, variant in (("blind", "blind,brief"), ("rwsan", "")):
        log.info("")
        log.info("training %s", "the question-only baseline" if name == "blind" else "RWSAN")
        config = configs.load(f"configs/rwsan.py:{variant}")
        use_compilation_cache(config.compilation_cache)
        command = f"python -m jaxvqa.main --config=configs/rwsan.py{':' if variant else ''}{variant}"
        values = train.train(config, folder / name, command)
        results[name] = values[f"{configs.main_evaluation(config)}/accuracy"]
    page = write(folder / "rwsan", baseline=folder / "blind")
    print(
        f"\nValidation accuracy: RWSAN {results['rwsan']:.1f} %, the question alone {results['blind']:.1f} % "
        f"({time.perf_counter() - began:.0f} s in all)"
    )
    ask, answers = offer(folder / "rwsan")
    names = {"report": page, "folder": folder, "run": folder / "rwsan", "python": sys.executable}
    print(NEXT.format(**names, ask=ask, answers=answers, install=install("demo")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
