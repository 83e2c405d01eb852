"""The Snowball stemmer of English ("Porter 2"), which the official BLEU of VQA-Med applies to every word.

Written from the algorithm's description, https://snowballstem.org/algorithms/english/stemmer.html, as it stood before its
revisions of 2024 and later, which stem words such as "internal", "lateral" and "emergency" in another way: scores are
comparable only with the same stems, those of NLTK 3.2.2.
"""

import functools
import re

_VOWELS = "aeiouy"
_DOUBLES = ("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")
_BEFORE_LI = "cdeghkmnrt"
_APOSTROPHES = str.maketrans("\u2018\u2019\u201b", "'''")

_IRREGULAR = {
    "skis": "ski",
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "idly": "idl",
    "gently": "gentl",
    "ugly": "ugli",
    "early": "earli",
    "only": "onli",
    "singly": "singl",
    **dict.fromkeys(("sky", "news", "howe", "atlas", "cosmos", "bias", "andes")),
}
"""Words with stems of their own; None for those that stay as they are."""

_DONE_AFTER_PLURAL = frozenset(
    ("inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"),
)

_NOWHERE = 1 << 30

_REGION = re.compile(f"[{_VOWELS}][^{_VOWELS}]")
_LATE_REGION = re.compile("gener|commun|arsen")
_SHORT_END = re.compile(f"(?:^|.*[^{_VOWELS}])[{_VOWELS}][^{_VOWELS}wxY]|[{_VOWELS}][^{_VOWELS}]", re.DOTALL)

# Suffix -> (what takes its place, what the letter before it must be, "" for any).
_STEP_2 = {
    "tional": ("tion", ""),
    "enci": ("ence", ""),
    "anci": ("ance", ""),
    "abli": ("able", ""),
    "entli": ("ent", ""),
    "izer": ("ize", ""),
    "ization": ("ize", ""),
    "ational": ("ate", ""),
    "ation": ("ate", ""),
    "ator": ("ate", ""),
    "alism": ("al", ""),
    "aliti": ("al", ""),
    "alli": ("al", ""),
    "fulness": ("ful", ""),
    "ousli": ("ous", ""),
    "ousness": ("ous", ""),
    "iveness": ("ive", ""),
    "iviti": ("ive", ""),
    "biliti": ("ble", ""),
    "bli": ("ble", ""),
    "ogi": ("og", "l"),
    "fulli": ("ful", ""),
    "lessli": ("less", ""),
    "li": ("", _BEFORE_LI),
}
_STEP_3 = {
    "tional": "tion",
    "ational": "ate",
    "alize": "al",
    "icate": "ic",
    "iciti": "ic",
    "ical": "ic",
    "ful": "",
    "ness": "",
    "ative": "",
}
_STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ism", "ate", "iti", "ous"),
    *("ive", "ize", "ion"),
)


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Returns the stem of a lower-case word: "lesions" -> "lesion", "calcified" -> "calcifi".

    Words of one or two letters stay as they are. Typographic apostrophes count as plain ones.
    """
    if len(word) <= 2:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word] or word
    word = word.translate(_APOSTROPHES).removeprefix("'")
    word = _mark_consonant_y(word)
    # The regions' beginnings; words only get shorter behind them, or change within a suffix.
    first = late.end() if (late := _LATE_REGION.match(word)) else _region(word, 0)
    second = _region(word, first)
    word = _plural(word.removesuffix(_longest(word, ("'", "'s", "'s'"))))
    if word in _DONE_AFTER_PLURAL:
        return word
    word = _past(word, first)
    if word[-1:] in ("y", "Y") and len(word) > 2 and word[-2] not in _VOWELS:
        word = word[:-1] + "i"
    word, second = _derived(word, first, second)
    word = _final(word, first, second)
    return word.replace("Y", "y")


def _mark_consonant_y(word: str) -> str:
    """Writes "Y" for a y that is a consonant: the first letter, or after a vowel."""
    letters = list(word)
    for i, letter in enumerate(letters):
        if letter == "y" and (i == 0 or letters[i - 1] in _VOWELS):
            letters[i] = "Y"
    return "".join(letters)


def _region(word: str, start: int) -> int:
    """Where the region begins that follows the first consonant after a vowel; the word's end where there is none."""
    found = _REGION.search(word, start)
    return found.end() if found else len(word)


def _longest(word: str, suffixes: tuple[str, ...] | dict[str, object]) -> str:
    """The longest of the suffixes that the word has, or "": a step looks at no other, even if that one changes nothing."""
    return max((suffix for suffix in suffixes if word.endswith(suffix)), key=len, default="")


def _has_vowel(text: str) -> bool:
    return any(letter in _VOWELS for letter in text)


def _plural(word: str) -> str:
    """Step 1a."""
    suffix = _longest(word, ("sses", "ied", "ies", "us", "ss", "s"))
    if suffix == "sses":
        return word[:-2]
    if suffix in ("ied", "ies"):
        return word[:-2] if len(word) > 4 else word[:-1]
    if suffix == "s" and _has_vowel(word[:-2]):
        return word[:-1]
    return word


def _past(word: str, first: int) -> str:
    """Step 1b."""
    suffix = _longest(word, ("eed", "eedly", "ed", "edly", "ing", "ingly"))
    rest = word[: len(word) - len(suffix)]
    if suffix in ("eed", "eedly"):
        return f"{rest}ee" if len(rest) >= first else word
    if not suffix or not _has_vowel(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return f"{rest}e"
    if rest.endswith(_DOUBLES):
        return rest[:-1]
    return f"{rest}e" if len(rest) <= first and _SHORT_END.fullmatch(rest) else rest


def _derived(word: str, first: int, second: int) -> tuple[str, int]:
    """Steps 2 to 4; also returns where the second region begins after them."""
    suffix = _longest(word, tuple(_STEP_2))
    rest = word[: len(word) - len(suffix)]
    if suffix and len(rest) >= first:
        new, before = _STEP_2[suffix]
        if not before or rest[-1:] in tuple(before):
            word = rest + new
            if new == "ize" and len(rest) < second:
                # NLTK, unlike the description, has no second region any more after replacing its beginning by this
                # suffix: "quantization" -> "quantize", not "quantiz".
                second = _NOWHERE
    suffix = _longest(word, tuple(_STEP_3))
    rest = word[: len(word) - len(suffix)]
    if suffix and len(rest) >= (second if suffix == "ative" else first):
        word = rest + _STEP_3[suffix]
    suffix = _longest(word, _STEP_4)
    rest = word[: len(word) - len(suffix)]
    if suffix and len(rest) >= second and (suffix != "ion" or rest.endswith(("s", "t"))):
        word = rest
    return word, second


def _final(word: str, first: int, second: int) -> str:
    """Step 5."""
    rest = word[:-1]
    if word.endswith("e") and (len(rest) >= second or (len(rest) >= first and not _SHORT_END.fullmatch(rest))):
        return rest
    if word.endswith("ll") and len(rest) >= second:
        return rest
    return word
