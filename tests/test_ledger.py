"""The paper ledger: each number is printed, each sentence of the appendix is carried, no slip."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from cells import ROOT

from talk3d.ledger import (
    Ledger,
    Printed,
    Sentence,
    Statement,
    appendix_paragraphs,
    load_ledgers,
    load_sentences,
    normalised,
    split_sentences,
)

FOLDER = ROOT / "figures" / "reference"
LEDGERS = load_ledgers(FOLDER)
SENTENCES = load_sentences(FOLDER)
NUMBERS = [number for ledger in LEDGERS.values() for number in ledger.numbers]
CLAIMS = [claim for ledger in LEDGERS.values() for claim in ledger.claims]

TARGETS = "figA1 figC2 tabC1 tabD2 figF3 figF4 tabF3 tabF4 tabF5 figG5 secB secH audit".split()

# Cells of each table: methods times scores, less what the paper leaves out.
CELLS = {
    "Table C.1": 5 * 2 * 3,  # the ground truth and four methods, two test sets, three scores
    "Table D.2": 3 * 3 * 6 - 3 * 2,  # no novel views by the two methods of pictures
    "Table F.3": 2 * 5 + 3,  # the ground truth has no PSNR and no LPIPS
    "Table F.4": 5 * 5 + 3,
    "Table F.5": 5 * 5 + 3,
}
WORDS = {"single": 1, "scalar": 1, "two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def appendix(shared) -> str:
    return (shared / "APPENDIX.txt").read_text(encoding="utf-8")


def printed(number: Printed) -> bool:
    return number.source == "appendix"


def in_picture(entry: Printed | Statement) -> bool:
    """A cell of a table or a word in a figure: in no sentence."""
    return entry.where.startswith(("Table ", "Figure "))


def repeated(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


# The numbers.


def stands_in(text: str, page: str) -> bool:
    """Whether a text is in a page as a whole: no digit or letter goes on before or after it."""
    return re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(text)}(?!\w|[.,]\d)", page) is not None


def said(text: str) -> float | None:
    """The number a text says, by digits or in words."""
    if digits := re.search(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?", text):
        return float(digits[0].replace(",", ""))
    return next((float(WORDS[word]) for word in text.split() if word in WORDS), None)


def value_problems(number: Printed) -> list[str]:
    """A value that its text does not say, without a doubt or with other digits."""
    if said(number.text) == number.value:
        return []
    digits = f"{number.value:.3f}".replace(".", "")  # all cells but zeros have three decimals
    cell = number.where.startswith("Table ")
    excused = number.doubt and (not cell or re.sub(r"\D", "", number.text) == digits)
    return [] if excused else [f"{number.id}: {number.text!r} is not {number.value}"]


def test_each_text_stands_in_the_appendix(appendix):
    page = normalised(appendix)
    assert [n.id for n in NUMBERS if printed(n) and not stands_in(n.text, page)] == []


def test_each_value_is_what_its_text_says():
    assert [problem for number in NUMBERS for problem in value_problems(number)] == []


def table_rows() -> dict[tuple[str, str], list[str]]:
    """The texts of each row of each table, by table and row, in the order of the columns."""
    rows = defaultdict(list)
    for number in NUMBERS:
        if number.where.startswith("Table "):
            parts = number.id.split("/")
            row = "/".join(parts[1:3]) if parts[0] == "tabD2" else parts[1]
            rows[number.where.split(",")[0], row].append(number.text)
    return dict(rows)


def test_each_row_of_a_table_is_a_line_of_the_appendix(appendix):
    lines = [" ".join(line.split()) for line in appendix.splitlines()]
    missing = {
        row: texts
        for row, texts in table_rows().items()
        if not any(line.endswith(" " + " ".join(texts)) for line in lines)
    }
    assert missing == {}


def test_the_tables_are_complete():
    cells = [number.where.split(",")[0] for number in NUMBERS if in_picture(number)]
    assert {table: cells.count(table) for table in CELLS} == CELLS
    assert {len(texts) for (table, _), texts in table_rows().items() if table == "Table C.1"} == {6}


def test_numbers_of_the_main_paper_are_marked_and_complete():
    main = [number for number in NUMBERS if not printed(number)]
    assert all(number.where.startswith("main paper, ") for number in main)
    tables = [number.where.split(", ")[1] for number in main]
    assert tables.count("novel-view table") == 4 * 4 * 3  # methods, views, scores
    assert tables.count("self-driven table") == 2 * 8 + 1 + 2  # two whole rows, and parts of two
    assert not any(number.where.startswith("main paper") for number in NUMBERS if printed(number))


def test_what_is_zero_or_doubtful_in_print_is_not_compared():
    assert not any(n.tolerance for n in NUMBERS if n.value == 0)
    shifted = {n.id for n in NUMBERS if "shifted" in n.doubt}
    rows = [
        f"tabF4/{row}/{score}"
        for row in ("ground-truth", "without-null")
        for score in ("lmd", "aue")
    ]
    assert shifted == set(rows)
    assert all(n.tolerance is None for n in NUMBERS if n.id in shifted)


def test_scores_of_one_name_have_one_direction_and_one_unit():
    kinds = defaultdict(set)
    for number in NUMBERS:
        name = number.id.rpartition("/")[2]
        kinds[name].add((number.better, number.unit))
    scores = {"psnr": "up", "ssim": "up", "lpips": "down", "fid": "down", "lmd": "down"}
    scores |= {"aue": "down", "sync": "up", "idsim": "up"}
    assert {name: {better for better, _ in kinds[name]} for name in scores} == {
        name: {better} for name, better in scores.items()
    }
    assert repeated([name for name in scores for _ in kinds[name]]) == []


# The sentences.


def carried_by(sentences: tuple[Sentence, ...]) -> dict[str, list[str]]:
    """The texts of the sentences that cite an entry, by its id."""
    found = defaultdict(list)
    for sentence in sentences:
        for entry in sentence.entries:
            found[entry].append(sentence.text)
    return found


def sentence_problems(sentence: Sentence) -> list[str]:
    """A kind that what the sentence cites, or its reason, does not bear out."""
    numbers, claims = {n.id for n in NUMBERS}, {c.id for c in CLAIMS}
    cites = {"number": numbers, "checkable": claims}.get(sentence.kind, set())
    what = sentence.text[:50]
    problems = []
    if cites and not cites & set(sentence.entries):
        problems.append(f"{what}: {sentence.kind}, but cites none")
    if sentence.kind == "checkable" and numbers & set(sentence.entries):
        problems.append(f"{what}: cites numbers, so it is of kind number")
    if (sentence.kind == "not checkable") != bool(sentence.reason):
        problems.append(f"{what}: a reason belongs to what is not checkable, and to nothing else")
    if sentence.kind == "not checkable" and sentence.entries:
        problems.append(f"{what}: not checkable, but cites entries")
    return problems + [f"{what}: cites {entry} twice" for entry in repeated(list(sentence.entries))]


def uncited(sentences: tuple[Sentence, ...]) -> list[str]:
    """Claims, and numbers of sentences, that no sentence cites."""
    numbers = [n.id for n in NUMBERS if printed(n) and not in_picture(n)]
    found = carried_by(sentences)
    return [id for id in [*numbers, *(claim.id for claim in CLAIMS)] if id not in found]


def wording_problems(claim: Statement, sentences: tuple[Sentence, ...]) -> list[str]:
    """A claim whose words are in none of the sentences that cite it."""
    texts = carried_by(sentences)[claim.id]
    quoted = in_picture(claim) or any(claim.text in text for text in texts)
    return [] if quoted else [f"{claim.id}: {claim.text!r} is in no sentence that cites it"]


def test_the_sentences_are_those_of_the_appendix(appendix):
    expected = [
        (section, sentence)
        for section, paragraphs in appendix_paragraphs(appendix).items()
        for paragraph in paragraphs
        for sentence in split_sentences(paragraph)
    ]
    assert [(sentence.section, sentence.text) for sentence in SENTENCES] == expected
    assert repeated([sentence.text for sentence in SENTENCES]) == []


def words(text: str) -> Counter:
    """Words in small letters, counted: those of prose, not of equations and names."""
    return Counter(re.findall(r"\b[a-z]{3,}\b", text))


# Words of the pages that are in no sentence: the axis of a figure, two headings inside their
# paragraphs, and the rows of Tables D.2, F.3, F.4 and F.5.
LEFT = "degrees network resolution module "
LEFT += "sync sync sync view audio driven driven sync null vec eye feature landmark angle "
LEFT += "deltaplane attention wjo split wjo rollout"


def test_no_words_of_the_appendix_are_lost(appendix):
    """Counted without looking for blocks: pages = sentences + headings + what is listed above."""
    headings = [line for line in appendix.splitlines() if re.match(r"Appendix [A-H]\.", line)]
    told = words(" ".join([s.text for s in SENTENCES] + headings))
    pages = words(normalised(appendix))
    assert pages - told == words(LEFT)
    assert words(" ".join(s.text for s in SENTENCES)) - pages == Counter()
    assert len(headings) == 8 + 12  # sections A to H, and those below B, F and H


def test_each_sentence_is_carried_or_says_why_not():
    assert [problem for sentence in SENTENCES for problem in sentence_problems(sentence)] == []


def test_each_claim_and_each_number_of_a_sentence_is_cited():
    assert uncited(SENTENCES) == []


def test_the_words_of_a_claim_are_those_of_the_paper(appendix):
    assert [problem for claim in CLAIMS for problem in wording_problems(claim, SENTENCES)] == []
    page = normalised(appendix)
    assert [claim.id for claim in CLAIMS if in_picture(claim) and claim.text not in page] == []


def test_numbers_of_a_sentence_stand_in_it():
    texts = carried_by(SENTENCES)
    wrong = [
        number.id
        for number in NUMBERS
        if number.id in texts and not all(stands_in(number.text, t) for t in texts[number.id])
    ]
    assert wrong == []


# The ledger as a whole.


def needs_problems(claims: list[Statement]) -> list[str]:
    """More than one claim in three that the embedded world cannot judge."""
    needy = [claim.id for claim in claims if claim.needs]
    return needy if 3 * len(needy) > len(claims) else []


def test_all_targets_are_there():
    assert sorted(LEDGERS) == sorted(TARGETS)
    assert all(ledger.claims for ledger in LEDGERS.values())


def test_ids_are_unique_and_readable():
    ids = [entry.id for entry in [*NUMBERS, *CLAIMS]]
    assert repeated(ids) == []
    assert [id for id in ids if not re.fullmatch(r"\w+(/-?[A-Za-z0-9-]+)+", id)] == []
    assert {number.better for number in NUMBERS} == {"up", "down", ""}


def test_most_claims_can_be_judged_here():
    assert needs_problems(CLAIMS) == []


def test_says_is_one_sentence():
    wrong = [claim.id for claim in CLAIMS if len(split_sentences(claim.says)) != 1]
    assert wrong + [claim.id for claim in CLAIMS if not claim.says.endswith(".")] == []


def key_order(value) -> list:
    """The names of an object and of those in it, in the order of the file."""
    if isinstance(value, dict):
        return [*value, *(key_order(item) for item in value.values())]
    return [key_order(item) for item in value] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_files_have_one_form(path: Path):
    text = path.read_text(encoding="utf-8")
    value = json.loads(text)
    assert text == json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    read = SENTENCES if path.stem == "sentences" else [LEDGERS[path.stem]]
    expected = [asdict(entry) for entry in read]
    assert key_order(value) == key_order(expected if path.stem == "sentences" else expected[0])


# Each check is tried on an entry that is good but for one thing.


def changed(entry, **changes):
    return replace(entry, **changes)


def number_named(id: str) -> Printed:
    return next(number for number in NUMBERS if number.id == id)


@pytest.mark.parametrize(
    "id, changes",
    [
        ("tabC1/talk3d/A/sync", {"value": 6.828}),  # not what the text says
        ("tabC1/talk3d/A/lmd", {"doubt": ""}),  # a point that is lost without a word
        ("tabC1/talk3d/A/lmd", {"value": 53.52}),  # other digits, 53.520
        ("tabF3/without-sync/lmd", {"value": 3.194}),
        ("secB/video-frames", {"value": 600.0}),
        ("figF4/planes", {"value": 2.0}),
    ],
)
def test_a_wrong_value_is_found(id, changes):
    assert value_problems(number_named(id)) == []
    assert len(value_problems(changed(number_named(id), **changes))) == 1


@pytest.mark.parametrize("text", ["6.82", "827", "6.8277", "5.352", "13 frames per minute"])
def test_a_text_that_is_not_printed_is_found(appendix, text):
    assert not stands_in(text, normalised(appendix))


GOOD = Sentence("A", "It is wide.", "checkable", "", ("figA1/wider-yaw",))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "number"},
        {"kind": "checkable", "entries": ("secB/gpus",)},
        {"entries": ("figA1/wider-yaw", "secB/gpus")},
        {"reason": "because"},
        {"kind": "not checkable", "reason": "a hope"},
        {"entries": ("figA1/wider-yaw", "figA1/wider-yaw")},
    ],
)
def test_a_sentence_of_the_wrong_kind_is_found(changes):
    assert sentence_problems(GOOD) == []
    assert sentence_problems(changed(GOOD, **changes)) != []


def test_what_no_sentence_cites_is_found():
    found = uncited(tuple(s for s in SENTENCES if "figC2/depth-everywhere" not in s.entries))
    assert found == ["figC2/one-piece", "figC2/depth-everywhere", "figC2/background-depth"]


def test_other_words_than_those_of_the_paper_are_found():
    claim = next(claim for claim in CLAIMS if claim.id == "secH/no-temporal-part")
    assert wording_problems(claim, SENTENCES) == []
    other = changed(claim, text=claim.text.replace("does not", "does"))
    assert len(wording_problems(other, SENTENCES)) == 1


def test_too_many_needs_are_found():
    claim = next(claim for claim in CLAIMS if claim.needs)
    able = changed(claim, needs="")
    assert needs_problems([claim, able, able]) == []
    assert len(needs_problems([claim, claim, able, able])) == 2


def test_a_ledger_is_read_as_it_is_written():
    assert all(isinstance(ledger, Ledger) for ledger in LEDGERS.values())
    path = FOLDER / "tabD2.json"
    assert json.loads(path.read_text())["numbers"] == [asdict(n) for n in LEDGERS["tabD2"].numbers]
