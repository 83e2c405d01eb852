"""Asks a trained or converted run about images of your own.

    python -m jaxvqa.ask --workdir=RUN IMAGE "is there a mass?"               the best answers, their probabilities, the time
    python -m jaxvqa.ask --workdir=RUN IMAGE "is there a mass?" --explain=out.png    where the model looked
    python -m jaxvqa.ask --workdir=RUN IMAGE                                  questions from standard input, one a line
    python -m jaxvqa.ask --workdir=RUN FOLDER "is there a mass?" --output=answers.csv    all images of a folder
    python -m jaxvqa.ask --workdir=RUN questions.csv --output=answers.jsonl   a table with the columns image and question

IMAGE is PNG, JPEG, TIFF or another format that Pillow reads. Several images and several questions are asked each about each. A
model of captions, or one that classifies the image alone, takes no question. A model that reads the regions of a detector takes
them by --regions=FILE.npz: x [width, R], bbox [R, 4] (x1, y1, x2, y2 in pixels), or by a folder with NAME.npz for NAME.png.

A run whose config.data.shots is not 0 is asked as it is evaluated: examples of config.data.shots_split stand before each prompt
and are printed below the answers; the data set has to be built. --explain draws the question without them.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxvqa import logs
from jaxvqa.ask import results
from jaxvqa.ask.given import Question, images_in, is_image_name, pairs, read_table
from jaxvqa.ask.model import Model, load
from jaxvqa.data import tables
from jaxvqa.errors import ConfigError, DataError, UserError, os_errors, run_command
from jaxvqa.inputs import user_path
from jaxvqa.logs import log
from jaxvqa.main import use_compilation_cache


def main(argv: Sequence[str]) -> int:
    """Runs the command with the given arguments (without the program's name) and returns its exit code."""
    return run_command("jaxvqa.ask", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args = _parser().parse_intermixed_args(argv)
    logs.setup()
    asked = _asked(args)
    if args.output:
        results.check_output(args.output)
    log.info("reading %s …", args.workdir)
    model = load(args.workdir, args.predict)
    use_compilation_cache(model.run.final.compilation_cache)
    if model.task.reads == "nothing":
        log.warning("%s reads the question alone: the image changes nothing.", args.workdir)
    if len(asked) == 1 and not asked[0].question and model.task.asks == "question":
        _conversation(model, asked[0], args)
        return
    if len(asked) == 1:
        answers = [model.answer(asked[0].image, asked[0].question, asked[0].regions)]
    else:
        answers = model.answer_many(asked, batch_size=args.batch_size)
    if args.explain:
        _explain(model, asked[0], args.explain)
    if args.output:
        results.write(args.output, answers)
        print(args.output)
    elif len(answers) == 1:
        print(results.text_of(answers[0]))
    else:
        print("\n".join(map(results.line_of, answers)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxvqa.ask",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "words", nargs="+", metavar="IMAGE … [QUESTION …]", help="images, folders, or a table; questions"
    )
    parser.add_argument("--workdir", required=True, type=user_path, help="the folder of the run")
    parser.add_argument("--predict", default="", help="how to answer; default: as the run's main evaluation does")
    parser.add_argument(
        "--regions", type=user_path, help="a file with the image's regions, or a folder with one an image"
    )
    parser.add_argument("--explain", type=user_path, metavar="FILE", help="draws where the model looked")
    parser.add_argument("--output", type=user_path, metavar="FILE", help="writes the answers: .csv or .jsonl")
    parser.add_argument("--batch_size", type=int, default=16, help="questions at once, of many")
    return parser


def _asked(args: argparse.Namespace) -> list[Question]:
    """What the command line asks.

    Raises:
      UserError: lists all faults.
    """
    paths = [user_path(word) for word in args.words if _is_path(word)]
    questions = [word for word in args.words if not _is_path(word)]
    faults, images, asked = [], [], []
    if args.batch_size < 1:
        faults.append(f"--batch_size={args.batch_size}: expected at least 1")
    if not paths:
        faults.append("no image: name a file, a folder or a table that is there")
    listed = [path for path in paths if path.suffix.lower() in tables.ENDINGS]
    if listed and (questions or args.regions or len(paths) > 1):
        faults.append(f"{listed[0]} holds images and questions, and regions where there are any; leave out the others")
    for path in paths:
        try:
            if path in listed:
                asked = read_table(path)
            else:
                images += images_in(path) if path.is_dir() else [path]
        except UserError as error:
            faults.append(str(error))
    if not listed and images and not faults:
        try:
            asked = pairs(images, questions, args.regions)
        except UserError as error:
            faults.append(str(error))
    if args.explain and len(asked) > 1:
        faults.append(
            f"--explain={args.explain} draws one answer, and {len(asked)} are asked for; see jaxvqa.explain for many"
        )
    if faults:
        raise ConfigError("Nothing can be asked so:\n  " + "\n  ".join(faults) + "\nSee --help.")
    return asked


def _is_path(word: str) -> bool:
    """Whether a word is a path: something is there, or it looks like one, as a question does not."""
    path = Path(os.path.expanduser(word))  # a question may begin with ~ too
    try:
        there = path.exists()
    except OSError:  # a question may be longer than a name can be
        there = False
    return there or (
        not any(map(str.isspace, word)) and (is_image_name(path) or "/" in word or path.suffix in tables.ENDINGS)
    )


def _conversation(model: Model, about: Question, args: argparse.Namespace) -> None:
    """Answers questions from standard input until its end, each at once.

    Raises:
      ConfigError: there was none.
    """
    if args.explain or args.output:
        raise ConfigError(
            f"{about.name}: the question is missing; --explain and --output take one, behind the image: "
            f'python -m jaxvqa.ask --workdir={args.workdir} {about.name} "…"'
        )
    model.checked([Question(about.image, "?", about.regions)])
    silent = True
    for line in _lines():
        silent = False
        print(results.text_of(model.answer(about.image, line, about.regions)), flush=True)
    if silent:
        raise ConfigError(
            f'{about.name}: the question is missing. Write it behind the image, as in "is there a mass?", or on standard input.'
        )


def _lines() -> Iterator[str]:
    """The lines of standard input that say something; a person is asked for each.

    Raises:
      DataError: they are not in UTF-8.
    """
    person = sys.stdin.isatty()
    if person:
        print("Ask; an empty line ends.", file=sys.stderr)
    while True:
        if person:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline().removeprefix("\ufeff")  # as files of Windows begin
        except UnicodeDecodeError as error:
            raise DataError(f"standard input is not in UTF-8 ({error}). Write the questions as UTF-8.") from error
        if not line or (person and not line.strip()):
            return
        if line.strip():
            yield line.strip()


def _explain(model: Model, asked: Question, file: Path) -> None:
    from jaxvqa.explain import overlay  # it brings matplotlib, which other answers need not wait for

    page = overlay.figure(model.explain(asked.image, asked.question, asked.regions))
    known = page.canvas.get_supported_filetypes()
    if file.suffix.lstrip(".").lower() not in known:
        raise ConfigError(f"--explain={file}: the ending is {file.suffix!r}; choose one of {', '.join(sorted(known))}.")
    with os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        page.savefig(file)
    log.info("drawn: %s", file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
