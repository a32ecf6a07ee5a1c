"""What exists in the rendered world: objects, relations, verbs, and how people speak of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from .vocabulary import Vocabulary

_ANIMALS = (
    "🐶 dog, 🐱 cat, 🐴 horse, 🐮 cow, 🐷 pig, 🐭 mouse, 🐰 rabbit, 🦊 fox, 🐻 bear, "
    "🐼 panda, 🐯 tiger, 🦁 lion, 🐵 monkey, 🐔 chicken, 🐧 penguin, 🦉 owl, "
    "🐸 frog, 🐢 turtle, 🐘 elephant, 🦒 giraffe, 🐑 sheep, 🦆 duck, 🦓 zebra"
)
_VEHICLES = (
    "🚗 car, 🚕 taxi, 🚚 truck, 🚜 tractor, 🚲 bicycle, 🚂 train, ⛵ boat, "
    "🚑 ambulance, 🚁 helicopter, 🚀 rocket, 🚌 bus"
)
_THINGS = (
    "🍎 apple, 🍌 banana, 🍇 grapes, 🍉 melon, 🍔 burger, 🍩 donut, 🎂 cake, "
    "🪑 chair, 🛏️ bed, 📺 television, 📷 camera, ⏰ clock, 📚 books, ⚽ ball, "
    "🎸 guitar, 🎩 hat, ☂️ umbrella, 🔑 key, 🏆 trophy, 🪣 bucket, 🎁 gift, "
    "🥕 carrot, 🍾 bottle, 🛋️ couch, 🍕 pizza, 🏸 racket, 🧳 suitcase, 📻 radio"
)
HELD_OUT = ("bottle", "bus", "couch", "pizza", "racket", "suitcase", "zebra", "radio")
SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"couch": ("sofa",), "suitcase": ("luggage",)}
)
RELATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "beside": ("beside", "near", "by"),
        "on": ("on", "atop"),
        "above": ("above", "over"),
        "under": ("under", "below"),
    }
)
GENERIC = "stands"
# relation -> (verb of an upright object by kind, verb of a tilted one)
VERBS: Mapping[str, tuple[Mapping[str, str], str]] = MappingProxyType(
    {
        "beside": ({"animal": "waits", "vehicle": "parks", "thing": "rests"}, "leans"),
        "on": ({"animal": "sits", "vehicle": "stops", "thing": "balances"}, "sleeps"),
        "above": ({"animal": "flies", "vehicle": "hovers", "thing": "floats"}, "dives"),
        "under": ({"animal": "hides", "vehicle": "shelters", "thing": "lies"}, "falls"),
    }
)


@dataclass(frozen=True)
class Thing:
    """A nameable object: its word, the emoji that draws it, its kind."""

    word: str
    emoji: str
    kind: str


def _parse(text: str, kind: str) -> list[Thing]:
    return [Thing(w, e, kind) for e, w in (part.split() for part in text.split(", "))]


THINGS: tuple[Thing, ...] = (
    *_parse(_ANIMALS, "animal"),
    *_parse(_VEHICLES, "vehicle"),
    *_parse(_THINGS, "thing"),
)
NAMES = MappingProxyType({t.word: SYNONYMS.get(t.word, ()) for t in THINGS})
RICH_VERBS = frozenset(
    verb for upright, tilted in VERBS.values() for verb in (*upright.values(), tilted)
)

# kind of word -> classes of words that mean the same: what a judge is taught to tell apart
SWAPPABLE = (
    [[verb] for verb in (GENERIC, *sorted(RICH_VERBS))],
    [list(words) for words in RELATIONS.values()],
    [[word, *others] for word, others in NAMES.items()],
)


@dataclass(frozen=True)
class Event:
    """One object in relation to another, upright or tilted."""

    first: Thing
    second: Thing
    relation: str
    tilted: bool

    @property
    def verb(self) -> str:
        """The verb that describes what is seen."""
        upright, tilted = VERBS[self.relation]
        return tilted if self.tilted else upright[self.first.kind]


def world_vocabulary() -> Vocabulary:
    """Return every word of the world's captions, tags and corpus."""
    function = ["a", "the", "one", "there", "is", "and", "with", "photo", "of", GENERIC, "that"]
    places = [p for words in RELATIONS.values() for p in words]
    nouns = [t.word for t in THINGS] + [s for names in SYNONYMS.values() for s in names]
    return Vocabulary(dict.fromkeys([*function, *places, *sorted(RICH_VERBS), *nouns]))


def draw_event(
    g: np.random.Generator, things: list[Thing], novel: list[Thing], count: int
) -> Event:
    """Draw two different objects, ``count`` of them novel, and a relation."""
    pools = [novel if i < count else things for i in range(2)]
    first = pools[0][g.integers(len(pools[0]))]
    rest = [t for t in pools[1] if t is not first]
    pair = [first, rest[g.integers(len(rest))]]
    if g.random() < 0.5:
        pair.reverse()
    relation = list(RELATIONS)[g.integers(len(RELATIONS))]
    return Event(pair[0], pair[1], relation, bool(g.random() < 0.35))


def _noun(g: np.random.Generator, thing: Thing) -> str:
    names = (thing.word, *SYNONYMS.get(thing.word, ()))
    return names[0] if len(names) == 1 or g.random() < 0.8 else names[1]


def describe_event(g: np.random.Generator, event: Event, rich: float, style: int = 0) -> str:
    """Return one caption as a person might give it.

    Parameters
    ----------
    g : numpy Generator
        Source of the choices.
    event : Event
        What is seen.
    rich : float
        Probability of the specific verb instead of the generic one.
    style : 0 or 1
        Template family: 0 for captions and the judge's text, 1 for the corpus and the evaluator.
    """
    places = RELATIONS[event.relation]
    where = places[0] if g.random() < 0.7 else places[g.integers(len(places))]
    a, b = (("a", "the", "one")[int(g.choice(3, p=[0.75, 0.2, 0.05]))] for _ in range(2))
    verb = event.verb if g.random() < rich else GENERIC
    core = f"{a} {_noun(g, event.first)} {verb} {where} {b} {_noun(g, event.second)}"
    if style == 1 and g.random() < 0.5:
        front = ("there is", "photo of")[g.integers(2)]
        return f"{front} {core.replace(f' {verb} ', f' that {verb} ', 1)}"
    return core
