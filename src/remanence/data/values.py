"""Random values of all kinds (name, number, date, place, code, word), from the words of a split."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from remanence.data.wordlists import of_split, syllables, words, words_of

CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


def invented(rng: Random, split: str, count: int = 2) -> str:
    """An invented, capitalised name of `count` syllables that belongs to the split."""
    while True:
        word = syllables(rng, count).capitalize()
        if of_split(word, split):
            return word


def first_name(rng: Random, split: str) -> str:
    if rng.random() < 0.1:
        return invented(rng, split)
    return rng.choice(words_of(rng.choice(("firstname_f", "firstname_m")), split))


def last_name(rng: Random, split: str) -> str:
    form = rng.random()
    if form < 0.1:
        return invented(rng, split)
    if form < 0.35:
        return split_checked(lambda: rng.choice(words("town_start")) + rng.choice(words("lastname_end")), split)
    return rng.choice(words_of("lastname", split))


def person(rng: Random, split: str) -> str:
    kind = rng.random()
    if kind < 0.1:
        return f"{rng.choice(('Dr.', 'Mr.', 'Mrs.', 'Ms.', 'Professor', 'Captain'))} {last_name(rng, split)}"
    return f"{first_name(rng, split)} {last_name(rng, split)}"


def town(rng: Random, split: str) -> str:
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(words_of("town", split))
    if kind < 0.45:
        return invented(rng, split)
    return split_checked(lambda: rng.choice(words("town_start")) + rng.choice(words("town_end")), split)


def split_checked(make: Callable[[], str], split: str) -> str:
    """Draws until the string belongs to the split."""
    while True:
        value = make()
        if of_split(value, split):
            return value


def company(rng: Random, split: str) -> str:
    lead = rng.choice((last_name, town, last_name))(rng, split)
    if rng.random() < 0.2:
        return f"{lead} & {last_name(rng, split)}"
    return f"{lead} {rng.choice(words('org_noun'))}"


def address(rng: Random, split: str) -> str:
    street = rng.choice((last_name, town, _plain_noun))(rng, split)
    return f"{rng.randint(1, 240)} {street} {rng.choice(words('street_noun'))}"


def _plain_noun(rng: Random, split: str) -> str:
    return rng.choice(words_of("noun", split)).capitalize()


def title(rng: Random, split: str) -> str:
    adjective, noun = rng.choice(words("adjective")).capitalize(), _plain_noun(rng, split)
    form = rng.randrange(3)
    if form == 0:
        return f"The {adjective} {noun}"
    return f"{adjective} {noun}" if form == 1 else f"The {noun} of {town(rng, split)}"


def email(rng: Random, split: str) -> str:
    name = first_name(rng, split).lower()
    return f"{name}@{last_name(rng, split).lower()}.{rng.choice(('com', 'org', 'net'))}"


def password(rng: Random, split: str) -> str:
    form = rng.randrange(4)
    if form == 0:
        return f"{rng.choice(words_of('noun', split))}-{rng.choice(words_of('animal', split))}-{rng.randint(10, 99)}"
    if form == 1:
        return f"{invented(rng, split)}{rng.randint(10, 9999)}"
    if form == 2:
        return f"{rng.choice(words('adjective'))} {rng.choice(words_of('noun', split))}"
    return invented(rng, split).lower()


def code(rng: Random) -> str:
    letters = "".join(rng.choice(CODE_LETTERS) for _ in range(rng.choice((1, 2, 2, 3))))
    digits = str(rng.randint(10, 9999))
    return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", f"{digits}-{letters}", f"{letters} {digits}"))


def number(rng: Random) -> str:
    value = rng.randint(10 ** (digits := rng.choice((1, 2, 3, 3, 4, 5))), 10 ** (digits + 1) - 1)
    return f"{value:,}" if value >= 1000 and rng.random() < 0.4 else str(value)


def money(rng: Random) -> str:
    value = rng.choice((rng.randint(2, 99), rng.randint(100, 999), rng.randint(1000, 99999)))
    amount = f"{value:,}" if value >= 1000 and rng.random() < 0.5 else str(value)
    amount += f".{rng.randint(0, 99):02d}" if value < 100 and rng.random() < 0.3 else ""
    form = rng.random()
    return f"{rng.choice('$€£')}{amount}" if form < 0.3 else f"{amount} {rng.choice(words('currency'))}"


def date(rng: Random) -> str:
    day, month = rng.randint(1, 28), rng.choice(words("month"))
    year = f" {rng.randint(1900, 2035)}" if rng.random() < 0.3 else ""
    if rng.random() < 0.5:
        return f"{day} {month}{year}"
    return f"{month} {day}{',' + year if year else ''}"


def clock_time(rng: Random) -> str:
    minute = rng.choice((0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, rng.randint(0, 59)))
    if rng.random() < 0.3:
        return f"{rng.randint(1, 12)}:{minute:02d} {rng.choice(('am', 'pm'))}"
    return f"{rng.randint(0, 23)}:{minute:02d}"


def day_time(rng: Random) -> str:
    form = rng.random()
    day = rng.choice(words("weekday"))
    if form < 0.5:
        return f"{day} at {clock_time(rng)}"
    return f"{day}, {date(rng)}" if form < 0.75 else f"{date(rng)} at {clock_time(rng)}"


def phone(rng: Random) -> str:
    form = rng.randrange(3)
    if form == 0:
        return f"555-{rng.randint(0, 9999):04d}"
    if form == 1:
        return f"0{rng.randint(10, 99)} {rng.randint(1000, 9999)}"
    return str(rng.randint(100000, 999999))


def room_number(rng: Random) -> str:
    letter = rng.choice(CODE_LETTERS[:8]) if rng.random() < 0.3 else ""
    return f"{letter}{rng.randint(1, 999)}"


def location(rng: Random, split: str) -> str:
    noun = rng.choice(words_of("place_noun", split))
    where = rng.choice(("in", "in", "behind", "next to", "under", "near", "above", "outside", "opposite", "beside"))
    adjective = f"{rng.choice(words('adjective'))} " if rng.random() < 0.4 else ""
    return f"{where} the {adjective}{noun}"


NAMES: dict[str, Callable[[Random, str], str]] = {
    "person": person,
    "firstname": first_name,
    "petname": lambda rng, split: rng.choice((first_name, invented, _plain_noun))(rng, split),
    "town": town,
    "river": lambda rng, split: invented(rng, split) if rng.random() < 0.4 else f"{town(rng, split)} River",
    "company": company,
    "address": address,
    "title": title,
    "email": email,
    "password": password,
    "location": location,
    "team": lambda rng, split: f"{town(rng, split)} {rng.choice(words('team_noun'))}",
    "award": lambda rng, split: f"{last_name(rng, split)} {rng.choice(words('award_noun'))}",
}
NUMBERS: dict[str, Callable[[Random], str]] = {
    "number": number,
    "small_number": lambda rng: str(rng.randint(3, 120)),
    "year": lambda rng: str(rng.randint(1400, 2035)),
    "money": money,
    "date": date,
    "time": clock_time,
    "daytime": day_time,
    "phone": phone,
    "room_number": room_number,
    "code": code,
    "weight": lambda rng: f"{number(rng)} {rng.choice(words('unit_weight'))}",
    "length": lambda rng: f"{number(rng)} {rng.choice(words('unit_length'))}",
    "speed": lambda rng: f"{rng.randint(5, 900)} {rng.choice(('km/h', 'miles per hour', 'knots'))}",
}


def value(kind: str, rng: Random, split: str) -> str:
    """A value of a kind: a key of NAMES or NUMBERS, or a section of `words.txt`."""
    if kind in NAMES:
        return NAMES[kind](rng, split)
    if kind in NUMBERS:
        return split_checked(lambda: NUMBERS[kind](rng), split)
    return rng.choice(words_of(kind, split))


OPEN_KINDS = ("person", "firstname", "town", "number", "code", "colour", "password", "title", "animal", "object_one")


def open_value(rng: Random, split: str) -> str:
    """A value of any kind, or one or two invented words: for attributes without a kind."""
    form = rng.random()
    if form < 0.6:
        return value(rng.choice(OPEN_KINDS), rng, split)
    if form < 0.8:
        return rng.choice(words_of("noun", split)) + " " + rng.choice(words_of("noun", split))
    text = invented(rng, split, rng.choice((1, 2, 3)))
    return text if form < 0.9 else text.lower()
