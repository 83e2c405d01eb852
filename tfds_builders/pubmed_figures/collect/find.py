"""Finds articles by keyword in PubMed Central, or figures in Open-i, and enters them into the journal."""

import dataclasses
import re
from collections.abc import Collection

from jaxvqa.errors import DataError
from tfds_builders.pubmed_figures.collect import original
from tfds_builders.pubmed_figures.collect.client import Client, ServiceError
from tfds_builders.pubmed_figures.collect.journal import Journal
from tfds_builders.pubmed_figures.collect.read import licence_name

PAGE = 200
LICENCES = ("CC BY", "CC0")
"""Licences of which figures are kept, unless others are asked for."""

_FILTERS = {
    "CC BY": "cc by license",
    "CC0": "cc0 license",
    "CC BY-SA": "cc by-sa license",
    "CC BY-NC": "cc by-nc license",
    "CC BY-NC-SA": "cc by-nc-sa license",
    "CC BY-ND": "cc by-nd license",
    "CC BY-NC-ND": "cc by-nc-nd license",
}
"""Licence -> the filter of PubMed Central's search."""


@dataclasses.dataclass(frozen=True)
class Services:
    """Addresses of the services, as they were documented in November 2026; any of them can be another host.

    Attributes:
      eutils: E-utilities, for `esearch.fcgi` (https://www.ncbi.nlm.nih.gov/books/NBK25499/).
      bucket: PubMed Central's bucket, one folder for each version of an article: PMC123.1/PMC123.1.xml and its pictures
        (https://pmc.ncbi.nlm.nih.gov/tools/pmcaws/).
      openi: Open-i (https://openi.nlm.nih.gov/services).
      tool, email, api_key: Whom the E-utilities may write to, and the key that allows 10 requests a second.
    """

    eutils: str = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
    bucket: str = "https://pmc-oa-opendata.s3.amazonaws.com"
    openi: str = original.OPENI
    tool: str = "jaxvqa"
    email: str = ""
    api_key: str = ""


def search_term(query: str, licences: Collection[str]) -> str:
    """Returns a query with the filters for open access and licences.

    Raises:
      DataError: The query is empty, or a licence has no filter.
    """
    unknown = [licence for licence in licences if licence not in _FILTERS]
    if not query.strip() or unknown or not licences:
        what = f"licences {', '.join(unknown)}; known: {', '.join(_FILTERS)}" if query.strip() else "an empty query"
        raise DataError(f"Nothing to search for: {what}.")
    named = " OR ".join(f'"{_FILTERS[licence]}"[filter]' for licence in licences)
    return f'({query}) AND "open access"[filter] AND ({named})'


def find_articles(
    journal: Journal, client: Client, services: Services, query: str, wanted: int, licences: Collection[str] = LICENCES
) -> int:
    """Searches PubMed Central.

    Args:
      journal: Articles that are not known are entered as found.
      client: Asks.
      services: Where.
      query: What to search for, in PubMed Central's own syntax.
      wanted: Articles at the most.
      licences: Of these licences.

    Returns:
      How many were found, known ones counted.
    """
    fixed = {
        "db": "pmc",
        "term": search_term(query, licences),
        "retmode": "json",
        "sort": "relevance",
        "tool": services.tool,
    }
    fixed |= {key: value for key in ("email", "api_key") if (value := getattr(services, key))}
    count = 0
    while count < wanted:
        page = {"retstart": str(count), "retmax": str(min(PAGE, wanted - count))}
        answer = client.get_json(f"{services.eutils}/esearch.fcgi", fixed | page)
        try:
            result = answer["esearchresult"]
            numbers, total = [str(number) for number in result["idlist"]], int(result["count"])
        except (KeyError, TypeError, ValueError):
            error = str(answer)[:200]
            raise ServiceError(f"{services.eutils}/esearch.fcgi: not the expected answer, but {error}") from None
        for number in numbers:
            name = f"PMC{number.removeprefix('PMC')}"
            if re.fullmatch(r"PMC\d{1,12}", name) and journal.get(name) is None:
                journal.put(name, "found", query=query)
        count += len(numbers)
        if not numbers or count >= total:
            break
    return count


def find_openi(
    journal: Journal,
    client: Client,
    services: Services,
    query: str,
    wanted: int,
    licences: Collection[str] = LICENCES,
    *,
    as_written: bool = False,
) -> int:
    """Searches Open-i, as the original did.

    Args:
      journal: Figures are entered as found, or refused where the service names no licence that is asked for.
      client: Asks.
      services: Where.
      query: Words.
      wanted: Figures at the most.
      licences: Of these licences.
      as_written: The original's paging, which can go beyond `wanted` and on for ever, and its captions with HTML tags.

    Returns:
      How many were found.
    """
    count = 0
    figures = original.openi_figures(query, wanted, client.get_json, host=services.openi, as_written=as_written)
    try:
        for figure in figures:
            entry, count = figure.entry, count + 1
            uid = re.sub(r"[^\w-]", "-", str(entry.get("uid") or figure.img_file.rpartition(".")[0]))[:80]
            number = re.search(r"\d{1,12}", str(entry.get("pmcid") or ""))
            article = f"PMC{number.group()}" if number else "openi"
            licence, url = licence_name(str(entry.get("licenseURL") or "")), str(entry.get("licenseURL") or "")
            why = "" if licence in licences else f"its licence is {licence}" if licence else "it states no licence"
            name = f"{article}/{uid}"
            known = journal.get(name)
            if known is not None and known["state"] != "found":
                continue
            journal.put(
                name,
                "refused" if why else "found",
                why,
                query=query,
                caption=figure.caption if as_written else original.without_tags(figure.caption),
                picture_url=figure.img_url,
                original_name=figure.img_file,
                title=str(entry.get("title") or ""),
                source=str(entry.get("journal_title") or ""),
                attribution=str(entry.get("authors") or entry.get("title") or ""),
                licence=licence,
                licence_url=url,
            )
    except (KeyError, TypeError) as error:
        raise ServiceError(f"{services.openi}: not the expected answer ({error!r})") from None
    return count
