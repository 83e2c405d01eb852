"""Collects figures of open-access articles: `python -m tfds_builders.pubmed_figures COMMAND FOLDER [options]`.

Commands, in their order; each goes on where an earlier run of it stopped, and `collect` runs them all:

- `find`: searches by keyword and enters what it finds into FOLDER/journal.sqlite;
- `fetch`: fetches articles and pictures;
- `split`: finds panels, letters and sub-captions;
- `write`: writes FOLDER/figures.json, which the builder reads, and the original's training files;
- `page`: writes FOLDER/page.html, a page to look at;
- `status`: says how many articles and figures are in which state.

Exit codes: 0 done, 2 a wrong option or file, 75 a service stays busy: start the same command again later.
"""

import argparse
import collections
import fcntl
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence

from jaxvqa.errors import DataError, StorageError, run_command
from jaxvqa.inputs import user_path
from tfds_builders.pubmed_figures.collect import client, fetch, find, page, split, write
from tfds_builders.pubmed_figures.collect.journal import Journal
from tfds_builders.pubmed_figures.collect.letters import Tesseract

COMMANDS = ("collect", "find", "fetch", "split", "write", "page", "status")
_STEPS = COMMANDS[1:-1]


def _parser() -> argparse.ArgumentParser:
    defaults = find.Services()
    parser = argparse.ArgumentParser(
        prog="python -m tfds_builders.pubmed_figures",
        description="Collects figures of open-access articles, and splits them into panels with sub-captions.",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folder", type=user_path, help="where everything is kept")
    parser.add_argument("--query", default="", help='what to search for, such as "brain MRI"')
    parser.add_argument("--articles", type=int, default=100, help="articles (of Open-i: figures) to find (default 100)")
    parser.add_argument("--figures", type=int, help="begin no article once this many figures are at hand")
    parser.add_argument("--source", choices=("pmc", "openi"), default="pmc", help="the search service (default pmc)")
    parser.add_argument(
        "--licences", default=",".join(find.LICENCES), help="licences of what is kept (default %(default)s)"
    )
    parser.add_argument("--email", default="", help="whom the services may write to; the E-utilities ask for it")
    parser.add_argument("--api_key", default="", help="of the E-utilities: 10 requests a second instead of 3")
    parser.add_argument("--rate", type=float, help="requests a second (default 3, with a key 10)")
    parser.add_argument(
        "--rules", choices=("sound", "original"), default="sound", help="how panels and texts are joined"
    )
    parser.add_argument("--stop", choices=("sound", "original"), default="sound", help="how Open-i's pages are counted")
    parser.add_argument("--again", action="store_true", help="split also what was split before")
    parser.add_argument("--eutils", default=defaults.eutils, help="E-utilities (default %(default)s)")
    parser.add_argument("--bucket", default=defaults.bucket, help="PubMed Central's bucket (default %(default)s)")
    parser.add_argument("--openi", default=defaults.openi, help="Open-i (default %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
      argv: Arguments without the program's name; None for those of the process.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    steps = _STEPS if args.command == "collect" else (args.command,)
    rate = args.rate if args.rate is not None else client.RATE_WITH_KEY if args.api_key else client.RATE
    faults = [
        text
        for wrong, text in (
            (args.articles < 1, f"--articles={args.articles}: at least 1"),
            (args.figures is not None and args.figures < 1, f"--figures={args.figures}: at least 1"),
            (not 0 < rate <= client.RATE_WITH_KEY, f"--rate={rate}: above 0, at most {client.RATE_WITH_KEY:g}"),
            ("find" in steps and not args.query.strip(), '--query is needed, such as --query="brain MRI"'),
            ("find" not in steps and not args.folder.is_dir(), f"{args.folder} is not a folder: run find first"),
        )
        if wrong
    ]
    if faults:
        raise DataError("; ".join(faults))
    args.folder.mkdir(parents=True, exist_ok=True)
    with open(args.folder / ".lock", "w") as lock, Journal(args.folder / "journal.sqlite") as journal:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"Another process works in {args.folder}. Wait for it, or stop it.") from None
        try:
            for step in steps:
                _STEP[step](args, journal, rate)
        except sqlite3.Error as error:
            raise StorageError(
                f"{args.folder / 'journal.sqlite'}: {error}. Free space, then start again: it goes on."
            ) from error


def _client(args: argparse.Namespace, rate: float) -> client.Client:
    agent = "jaxvqa (pubmed_figures" + (f"; {args.email}" if args.email else "") + ")"
    return client.Client(rate=rate, agent=agent)


def _services(args: argparse.Namespace) -> find.Services:
    return find.Services(args.eutils, args.bucket, args.openi, email=args.email, api_key=args.api_key)


def _licences(args: argparse.Namespace) -> list[str]:
    return [licence.strip() for licence in args.licences.split(",") if licence.strip()]


def _find(args: argparse.Namespace, journal: Journal, rate: float) -> None:
    with _client(args, rate) as asked:
        what = (journal, asked, _services(args), args.query, args.articles, _licences(args))
        if args.source == "pmc":
            print(f"found {find.find_articles(*what)} articles")
        else:
            print(f"found {find.find_openi(*what, as_written=args.stop == 'original')} figures")


def _fetch(args: argparse.Namespace, journal: Journal, rate: float) -> None:
    with _client(args, rate) as asked:
        fetch.fetch(args.folder, journal, asked, _services(args), _licences(args), args.figures, _progress("fetching"))
    _status(args, journal, rate)


def _split(args: argparse.Namespace, journal: Journal, rate: float) -> None:
    original_rules = args.rules == "original"
    split.split_figures(
        args.folder,
        journal,
        Tesseract(),
        original_rules=original_rules,
        again=args.again,
        progress=_progress("splitting"),
    )
    _status(args, journal, rate)


def _write(args: argparse.Namespace, journal: Journal, rate: float) -> None:
    counts = write.write(args.folder, journal)
    print(f"wrote {args.folder / 'figures.json'}: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    print(f"build the data set: python -m tfds_builders.build pubmed_figures --manual_dir={args.folder}")


def _page(args: argparse.Namespace, journal: Journal, rate: float) -> None:
    refused = [*journal.items("refused", figures=False), *journal.items("refused", figures=True)]
    count = page.write_page(args.folder / "page.html", args.folder, write.figures_json(journal), refused)
    print(f"wrote {args.folder / 'page.html'}: {count} figures")


def _status(args: argparse.Namespace, journal: Journal, rate: float) -> None:
    for kind, states in journal.counts().items():
        print(f"{kind}: " + (", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "none"))
    reasons = collections.Counter(
        item["why"].partition(":")[0] for figures in (False, True) for item in journal.items("refused", figures=figures)
    )
    for why, number in reasons.most_common(10):
        print(f"  refused {number}: {why}")


_STEP: dict[str, Callable[[argparse.Namespace, Journal, float], None]] = {
    "find": _find, "fetch": _fetch, "split": _split, "write": _write, "page": _page, "status": _status,
}  # fmt: skip


def _progress(what: str, every: float = 2.0) -> Callable[[str], None]:
    """Returns what prints, every few seconds, how many were done and which is at work."""
    start = told = time.monotonic()
    count = 0

    def step(name: str) -> None:
        nonlocal count, told
        count += 1
        now = time.monotonic()
        if count == 1 or now - told >= every:
            told = now
            print(f"{what} {name} ({count}, {now - start:.0f} s)", file=sys.stderr, flush=True)

    return step


if __name__ == "__main__":
    sys.exit(main())
