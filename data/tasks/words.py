"""The vocabularies that inputs are drawn from: common words of one or two tokens, no word in two categories.

Names are given names without another meaning in English: a name in an answer is a name.
"""

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words(
    """Anna Maria Jessica Victoria Margaret Barbara Betty Sally Jenny Julie Emma Laura Sarah Julia Clara Nina Alice
    Diana Helen Lucy Martha Rachel Vera Amy Eva Hannah Jane Karen Linda Monica Nancy Susan Teresa Emily Kate Lisa
    Mary Ruth Sandra Molly Naomi Olivia"""
)
BOYS = _words(
    """Tom Peter Paul David Simon Martin Oscar Victor Leo Max Adam Ben Carl Daniel Eric George Henry Ivan James Kevin
    Lucas Marco Nathan Oliver Philip Robert Samuel Thomas Walter Alan Brian Edward Frank Gary Harold Jacob Keith
    Luke Michael Noah Ralph Steven Tony William Andrew Dennis Ethan"""
)
NAMES = GIRLS + BOYS
SURNAMES = _words(
    """Stone Miller Baker Carter Fisher Cooper Turner Walker Parker Morgan Collins Foster Kelly Murphy Nelson Perry
    Quinn Rogers Sanders Taylor Watson Young Adams Brooks Clark Dixon Ellis Fletcher Graham Harris Irving Jordan
    Knight Lewis"""
)
CITIES = _words(
    """Rome Paris London Berlin Madrid Vienna Oslo Athens Boston Chicago Denver Dallas Seattle Toronto Moscow Delhi
    Tokyo Cairo Lima Geneva Milan Naples Hamburg Oxford Glasgow Miami Portland Detroit Nairobi Istanbul
    Venice"""
)
ANIMALS = _words(
    """fox owl cat dog horse cow goat sheep lion tiger bear wolf rabbit mouse rat duck goose eagle hawk frog snake
    turtle whale shark seal monkey elephant camel deer pig hen spider bee ant zebra panda crow parrot penguin
    beaver lizard crab"""
)
FOODS = _words(
    """bread cheese apple pear banana rice soup cake butter honey potato carrot onion tomato lemon grape peach plum
    cherry salad pasta sugar egg bean pea corn garlic pepper cookie pie jam sandwich"""
)
TOOLS = _words("hammer saw drill wrench rake axe knife scissors ladder brush needle broom file clamp")
CLOTHES = _words("shirt coat hat glove sock shoe boot dress skirt jacket belt tie cap vest robe")
COLOURS = _words("red blue green yellow black white brown pink purple grey silver gold")
THINGS = _words(
    """lamp chair table book pen cup plate spoon bottle box key clock phone camera bike car boat drum kite ball doll
    piano violin flute mirror basket bag wallet ring candle pillow blanket window door desk bell map letter stamp
    coin ticket tent rope bucket vase bowl fan radio"""
)
PLACES = _words(
    """park school market station library museum garden beach church bank hotel office river bridge castle farm
    forest lake harbour theatre hospital airport bakery kitchen stadium"""
)

CATEGORIES = {"animal": ANIMALS, "food": FOODS, "tool": TOOLS, "clothing": CLOTHES}

MONTHS = _words("January February March April May June July August September October November December")

OPPOSITES = {
    adjective: tuple(opposites.split(","))
    for adjective, opposites in (
        pair.split("/")
        for pair in _words("""hot/cold,cool big/small,little,tiny old/new,young fast/slow long/short wet/dry full/empty
        dark/light,bright soft/hard heavy/light,lightweight clean/dirty,filthy open/closed,shut rich/poor
        strong/weak,fragile high/low thick/thin loud/quiet,silent,soft wide/narrow cheap/expensive,costly deep/shallow
        early/late rough/smooth sharp/blunt,dull sweet/bitter,sour safe/dangerous,unsafe tidy/messy,untidy
        tight/loose huge/tiny,small ugly/beautiful,pretty tall/short happy/sad,unhappy broken/whole,fixed,intact
        bright/dark,dim warm/cold,cool simple/complex,complicated modern/ancient,old public/private""")
    )
}
"""An adjective and its opposites, the usual one first."""

PRAISE = _words("great lovely wonderful excellent perfect fantastic superb charming brilliant amazing")
BLAME = _words("awful terrible horrible bad boring dreadful disappointing poor useless nasty")
REVIEWED = _words(
    """soup film hotel book coffee service concert cake waiter room game lesson trip meal song play pizza museum bus
    phone dress party show beach garden"""
)


@dataclass(frozen=True)
class Verb:
    base: str
    third: str
    past: str


def _verbs(text: str) -> tuple[Verb, ...]:
    return tuple(Verb(*forms.split("/")) for forms in text.split())


VERBS_OF_MOTION = _verbs(
    """walk/walks/walked run/runs/ran drive/drives/drove go/goes/went ride/rides/rode hurry/hurries/hurried
    travel/travels/travelled return/returns/returned move/moves/moved jog/jogs/jogged fly/flies/flew
    come/comes/came"""
)
"""Followed by "to the park"."""

VERBS_WITH_OBJECT = _verbs(
    """like/likes/liked need/needs/needed want/wants/wanted buy/buys/bought sell/sells/sold clean/cleans/cleaned
    carry/carries/carried find/finds/found lose/loses/lost hide/hides/hid paint/paints/painted take/takes/took
    bring/brings/brought draw/draws/drew choose/chooses/chose drop/drops/dropped see/sees/saw move/moves/moved"""
)
"""Followed by "the lamp"."""

TOPICS = {
    "sport": (
        _words("striker goalkeeper coach runner swimmer boxer cyclist referee"),
        ["won the match", "scored twice", "trained for the race", "lost the final", "joined the team"],
    ),
    "music": (
        _words("singer drummer pianist violinist band choir guitarist orchestra"),
        ["played a song", "recorded an album", "gave a concert", "tuned the guitar", "wrote a melody"],
    ),
    "cooking": (
        _words("chef cook baker grandmother waiter butcher uncle aunt"),
        ["fried the fish", "baked a cake", "boiled the rice", "salted the soup", "peeled the onions"],
    ),
    "weather": (
        _words("storm wind rain snow sky fog cloud thunder"),
        ["covered the valley", "grew darker at noon", "cooled the air", "brought a flood", "lasted all night"],
    ),
}

_IRREGULAR = {
    "sheep": "sheep", "mouse": "mice", "goose": "geese", "deer": "deer", "wolf": "wolves", "knife": "knives",
    "potato": "potatoes", "tomato": "tomatoes", "scissors": "scissors",
}  # fmt: skip


def plural(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(phrase: str) -> str:
    """ "an apple", "a lamp"; the vocabularies hold no word like "hour" or "unit"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


_ONES = _words("""zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""")
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")


def spelled(number: int) -> str:
    """A number from 0 to 99 in words."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
