"""Questions about a rendered scene, with answers as a group of people would give them.

A template is asked only where its answer is unique: objects are named so that they can't be confused, and no word
appears twice in a scene. Most annotators give the true answer; some give part of it, misspell it or give up.
"""

import random
from dataclasses import dataclass

from lfpr.mini.scenes import CLASSES, COLOURS, LEXICON, Scene, Thing

TEMPLATES = {
    "say": ("what does the {ref} say?", "what is written on the {ref}?"),
    "number": ("what number is on the {ref}?", "which number is shown on the {ref}?"),
    "price": ("what is the price on the {ref}?", "how much does the {ref} cost?"),
    "brand": ("what brand is the {ref}?", "what is the brand name on the {ref}?"),
    "colour": ("what color is the thing that says {word}?", "what is the color of the object with the word {word}?"),
    "object": ("what object is {word} written on?", "what kind of thing says {word}?"),
    "yes/no": ("is {word} written on the {ref}?", "does the {ref} say {word}?"),
    "leftmost": ("what is written on the leftmost object?", "what does the object on the far left say?"),
    "first": ("what is the first word on the {ref}?", "what is the top word on the {ref}?"),
    "second": ("what is the second word on the {ref}?", "which word comes second on the {ref}?"),
}
"""TextVQA's kinds, each with two ways to ask; {ref} names an object, {word} is a word in the image."""

STVQA_TEMPLATES = {
    "say": ("what text is on the {ref}?", "what does the {ref} read?"),
    "number": ("what is the number on the {ref}?", "what digits are on the {ref}?"),
    "price": ("what is the price of the {ref}?", "what price does the {ref} show?"),
    "brand": ("what is the brand of the {ref}?", "which company made the {ref}?"),
    "first": ("what is the first word of the {ref}?", "what is the upper word on the {ref}?"),
    "second": ("what is the last word of the {ref}?", "what is the lower word on the {ref}?"),
    "by colour": ("what is written on the {colour} object?", "what does the {colour} thing read?"),
    "rightmost": ("what is written on the rightmost object?", "what does the object on the right read?"),
    "highest": ("what is written on the highest object?", "what does the object at the top read?"),
    "partner": ("which word is next to {word}?", "what else is on the object that reads {word}?"),
}
"""ST-VQA's kinds: every answer is written in the image; {colour} is one object's alone."""

MAX_QUESTIONS = 5
"""Every scene with words has at least this many different questions of `TEMPLATES`."""

_GIVING_UP = ("unanswerable", "answering does not require reading text in the image", "not sure")


@dataclass(frozen=True)
class Question:
    """A question, its true answer and its kind (a key of `TEMPLATES`), all in lower case."""

    text: str
    answer: str
    kind: str


def make_questions(
    scene: Scene, count: int, rng: random.Random, templates: dict[str, tuple[str, str]] = TEMPLATES
) -> list[Question]:
    """`count` different questions about `scene`, of different kinds as far as possible.

    With `STVQA_TEMPLATES` there can be fewer: a scene of one short word has little to ask about.

    Raises:
        ValueError: `count` is not from 1 to `MAX_QUESTIONS`, or the scene has no words to ask about.
    """
    if not 1 <= count <= MAX_QUESTIONS:
        raise ValueError(f"count is {count!r}, must be 1 to {MAX_QUESTIONS}")
    if not any(thing.words for thing in scene.objects):
        raise ValueError(f"scene {scene.seed} has no words to ask about")
    candidates: dict[str, list[Question]] = {}
    for question in _candidates(scene, rng, templates):
        candidates.setdefault(question.kind, []).append(question)
    for questions in candidates.values():
        rng.shuffle(questions)
    selected: list[Question] = []
    while len(selected) < count and any(candidates.values()):
        kinds = [kind for kind, questions in candidates.items() if questions]
        for kind in rng.sample(kinds, min(len(kinds), count - len(selected))):
            selected.append(candidates[kind].pop())
    return selected


def _candidates(scene: Scene, rng: random.Random, templates: dict[str, tuple[str, str]]) -> list[Question]:
    """All questions that have one answer in this scene, each put in one of its two ways."""
    questions: list[Question] = []

    def ask(kind: str, answer: str, **names: str) -> None:
        if kind in templates:
            questions.append(Question(rng.choice(templates[kind]).format(**names), answer, kind))

    all_words = [word.text.lower() for thing in scene.objects for word in thing.words]
    for thing in scene.objects:
        words = [word.text.lower() for word in thing.words]
        if not words:
            continue
        ref = _refer(scene, thing, rng)
        ask("say", " ".join(words), ref=ref)
        for text, word in zip(words, thing.words, strict=True):
            if word.kind in ("number", "price", "brand"):  # an object has at most one of each
                ask(word.kind, text, ref=ref)
            ask("colour", thing.colour, word=text)
            ask("object", thing.name, word=text)
        for position, kind in enumerate(("first", "second")):
            if len(words) > 1:
                ask(kind, words[position], ref=ref)
        ask("yes/no", "yes", ref=ref, word=rng.choice(words))
        others = [word for word in all_words if word not in words] or [w for w in LEXICON["word"] if w not in words]
        ask("yes/no", "no", ref=ref, word=rng.choice(others))
        if sum(other.colour == thing.colour for other in scene.objects) == 1:
            ask("by colour", " ".join(words), colour=thing.colour)
        if len(words) == 2:
            for word, partner in (words, reversed(words)):
                ask("partner", partner, word=word)
    for kind, side, sign in (("leftmost", 0, 1), ("rightmost", 2, -1), ("highest", 1, 1)):
        first, *others = sorted(scene.objects, key=lambda thing: sign * thing.box[side])
        clear = others and abs(others[0].box[side] - first.box[side]) > 0.06 * scene.image.width
        if clear and first.words:
            ask(kind, " ".join(word.text.lower() for word in first.words))
    return questions


def _refer(scene: Scene, thing: Thing, rng: random.Random) -> str:
    """The object's colour and class, or sometimes its class alone if no other object shares it."""
    alone = sum(other.name == thing.name for other in scene.objects) == 1
    return thing.name if alone and rng.random() < 0.3 else f"{thing.colour} {thing.name}"


def human_answers(answer: str, rng: random.Random, count: int = 10) -> list[str]:
    """`count` annotators' answers to a question whose true answer is `answer`.

    Questions differ in how often people deviate (2 to 40 % of them), as in TextVQA; on average nine of ten agree.
    """
    deviating = rng.choices((0.02, 0.1, 0.4), (5, 4, 1))[0]
    return [_deviate(answer, rng) if rng.random() < deviating else answer for _ in range(count)]


def _deviate(answer: str, rng: random.Random) -> str:
    words = answer.split()
    if answer in ("yes", "no"):
        return rng.choice(("yes" if answer == "no" else "no", "unanswerable"))
    if answer in COLOURS:
        return rng.choice((*COLOURS, f"{answer} and white", f"mostly {answer}"))
    if answer in CLASSES:
        return rng.choice((*CLASSES, f"a {answer}", f"{answer}s"))
    if len(words) > 1 and rng.random() < 0.6:
        return rng.choice((words[0], words[-1], " ".join(reversed(words))))
    if rng.random() < 0.5:
        position = rng.randrange(len(answer))
        return (answer[:position] + answer[position + 1 :]).strip() or answer * 2
    return rng.choice(_GIVING_UP)


def misread(text: str, rng: random.Random, error: float) -> tuple[str, float]:
    """What text recognition makes of a drawn word, by chance `error` with a wrong character; and its confidence."""
    if rng.random() >= error:
        return text, round(rng.uniform(0.85, 1.0), 3)
    position = rng.randrange(len(text))
    character = text[position]
    pool = "0123456789" if character.isdigit() else "abcdefghijklmnopqrstuvwxyz"
    wrong = rng.choice([other for other in pool if other != character.lower()])
    wrong = wrong.upper() if character.isupper() else wrong
    return text[:position] + wrong + text[position + 1 :], round(rng.uniform(0.4, 0.95), 3)
