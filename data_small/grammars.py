"""The text of the two corpora: connected numbers, and sentences from a grammar of our own.

A grammar here is a function that draws one utterance, a list of capital words. All chance comes from
the generator `rng` that the caller hands in.

    python data_small/grammars.py        some utterances of each
"""

import re
from collections import Counter

import numpy as np

# --- numbers: 34 words, 3 to 8 in an utterance --------------------------------------------------

DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
TEENS = "TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN".split()
TENS = "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY".split()


def below_hundred(n):
    """
    >>> " ".join(below_hundred(42))
    'FORTY TWO'
    """
    if n < 10:
        return [DIGITS[n]]
    if n < 20:
        return [TEENS[n - 10]]
    return [TENS[n // 10 - 2]] + ([DIGITS[n % 10]] if n % 10 else [])


def cardinal(n):
    """
    >>> " ".join(cardinal(23406))
    'TWENTY THREE THOUSAND FOUR HUNDRED AND SIX'
    """
    words = []
    if n >= 1000:
        words += cardinal(n // 1000) + ["THOUSAND"]
        n %= 1000
        if 0 < n < 100:
            words += ["AND"]
    if n >= 100:
        words += [DIGITS[n // 100], "HUNDRED"]
        n %= 100
        if n:
            words += ["AND"]
    if n or not words:
        words += below_hundred(n)
    return words


def some_digits(rng, count):
    """Digits as people read them out: zero is ZERO or OH, and a repeated digit may be DOUBLE."""
    zero = "OH" if rng.random() < 0.5 else "ZERO"
    words, before = [], None
    while len(words) < count:
        digit = int(rng.integers(10))
        if words[-2:-1] == ["DOUBLE"] and digit == before:
            continue  # not DOUBLE EIGHT EIGHT
        before = digit
        word = DIGITS[digit] if digit else zero
        if digit and count - len(words) >= 2 and rng.random() < 0.11:
            words += ["DOUBLE", word]
        else:
            words.append(word)
    return words


def numbers(rng):
    """A function that draws one utterance of the numbers corpus."""

    def draw():
        while True:
            kind = rng.random()
            if kind < 0.27:  # FOUR OH SEVEN DOUBLE NINE
                words = some_digits(rng, int(rng.integers(3, 8)))
            elif kind < 0.50:  # TWELVE THOUSAND AND SIXTY
                top = (1000, 10_000, 100_000, 1_000_000)[int(rng.integers(4))]
                words = cardinal(int(rng.integers(top // 10, top)))
            elif kind < 0.64:  # SEVENTEEN POINT FOUR TWO
                whole = below_hundred(int(rng.integers(100)))
                words = whole + ["POINT"] + some_digits(rng, int(rng.integers(1, 4)))
            else:  # NINETEEN EIGHTY FOUR TWELVE
                words = []
                for _ in range(int(rng.integers(2, 5))):
                    low = 10 if rng.random() < 0.6 else 20
                    words += below_hundred(int(rng.integers(low, 20 if low == 10 else 100)))
            if 3 <= len(words) <= 8:
                return words

    return draw


# --- sentences ----------------------------------------------------------------------------------
# CAPITALS are words, small letters name a slot below, (A | B) is a choice, (A |) may be nothing.
# Agreement is built into the templates: `he` stands where the verb ends in -S, `they` where it does
# not. A becomes AN where the next word wants it.

SLOTS = {
    "name": "ANNA | DAVID | EMMA | LUCY | PETER",
    "kin": "MOTHER | FATHER | SISTER | BROTHER | TEACHER | FRIEND",
    "my": "MY | YOUR | HIS | HER | OUR | THEIR",
    "he": "HE | SHE | name | name | my kin",
    "him": "HIM | HER | THEM | name | my kin",
    "us": "ME | US | him",
    "they": "I | WE | THEY | THE CHILDREN | my kin AND I | name AND name",
    "day": "MONDAY | TUESDAY | WEDNESDAY | THURSDAY | FRIDAY | SATURDAY | SUNDAY",
    "city": "LONDON | PARIS | BOSTON | BERLIN",
    "room": "KITCHEN | BEDROOM | GARDEN | OFFICE",
    "shop": "MARKET | MUSEUM | LIBRARY | STATION",
    "place": "STATION | MARKET | SCHOOL | LIBRARY | MUSEUM | PARK | BEACH",
    "ride": "BUS | TRAIN | BOAT",
    "thing": "BOOK | CUP | PHONE | BAG | COAT | UMBRELLA | TICKET | LETTER",
    "things": "BOOKS | CUPS | TICKETS",
    "color": "RED | BLUE | GREEN | BLACK | WHITE",
    "kind": "OLD | NEW | BIG | SMALL | BEAUTIFUL",
    "food": "BREAD | CHEESE | RICE | FISH | APPLES | EGGS",
    "drink": "COFFEE | TEA | MILK | WATER",
    "meal": "BREAKFAST | LUNCH | DINNER",
    "animal": "DOG | CAT | HORSE | BIRD",
    "gate": "DOOR | WINDOW",
    "seat": "TABLE | CHAIR | BED",
    "where": "ON THE seat | UNDER THE seat | BEHIND THE seat | NEAR THE gate | IN THE room",
    "sky": "SUNNY | COLD | WARM | HOT | WET",
    "fall": "RAIN | SNOW",
    "feeling": "HUNGRY | TIRED | HAPPY",
    "two": "TWO | THREE | FOUR | FIVE | SIX | SEVEN | EIGHT | NINE | TEN",
    "several": "two | MANY",
    "clock": "AT two O'CLOCK | AT two | AT HALF PAST two",
    "soon": "TODAY | TONIGHT | TOMORROW | TOMORROW MORNING | ON day | THIS AFTERNOON | THIS EVENING | "
    "NEXT (WEEK | MONTH | YEAR) | AFTER meal | BEFORE meal | clock",
    "ago": "YESTERDAY | YESTERDAY MORNING | LAST NIGHT | LAST (WEEK | MONTH | YEAR) | ON day",
    "usual": "EVERY (DAY | MORNING | EVENING | WEEK | day) | AFTER meal | BEFORE meal",
    "often": "ALWAYS | OFTEN | NEVER",
    "do": "READ A BOOK | READ my LETTER | PLAY A GAME | COOK meal | WASH THE (CUPS | CAR) | WRITE A LETTER | "
    "HELP him | VISIT him | WALK TO THE place | BUY SOME food | CALL him | SWIM IN THE RIVER | "
    "WATCH A MOVIE | CLEAN THE room | GO TO city | MEET him AT THE place",
    "doing": "READING A (BOOK | LETTER) | PLAYING A GAME | COOKING meal | WASHING THE (CUPS | CAR) | "
    "WATCHING (A | THE kind) MOVIE | SLEEPING | WAITING FOR him | "
    "WALKING TO THE place | EATING food | LOOKING FOR my thing",
}

TEMPLATES = """
TURN (ON | OFF) THE (LIGHT | RADIO) (IN THE room | PLEASE | NOW | soon)
TURN OFF THE (LIGHT | RADIO | MUSIC | ALARM) IN THE room (PLEASE | NOW)
PLEASE TURN (ON | OFF) THE (LIGHT | MUSIC | ALARM)
PLEASE (OPEN | CLOSE) THE color gate
(OPEN | CLOSE) THE gate (PLEASE | NOW | OF THE room)
COULD YOU (OPEN | CLOSE) THE gate (PLEASE | OF THE room)
COULD YOU do soon
PLAY (SOME MUSIC | A SONG | THE kind SONG) (IN THE room | PLEASE | AGAIN | soon)
PLAY SOME (OLD | NEW | BEAUTIFUL | MORE) MUSIC (FOR us | soon)
STOP THE (MUSIC | ALARM | RADIO) (NOW | PLEASE | IN THE room)
STOP THE (CAR | BUS) (NEAR | BEHIND) THE place
PLEASE STOP doing
TAKE THE color thing TO THE (room | place)
TAKE my thing (HOME | TO SCHOOL | TO us) PLEASE
WAIT FOR us (HERE | AT THE place | soon)
BRING my thing HERE (PLEASE | NOW | soon)
SET (AN | THE) ALARM FOR (HALF PAST two | two O'CLOCK | TOMORROW MORNING | two ON day)
CALL us (NOW | AGAIN | PLEASE | soon)
SEND A MESSAGE TO us (NOW | PLEASE | soon)
SEND us (A MESSAGE | A LETTER | THE color thing) (NOW | PLEASE | soon)
TELL us ABOUT THE (WEATHER | MOVIE | kind place)
TELL ME (THE TIME | ABOUT THE WEATHER) (PLEASE | IN city)
SHOW ME THE kind (place | thing) PLEASE
SHOW us THE kind thing
PLEASE BRING ME (A | THE) color thing
BRING us (SOME | MORE) drink PLEASE
DON'T (OPEN | CLOSE) THE gate (NOW | AGAIN | soon)
DON'T WAIT FOR us (TODAY | TONIGHT | HERE)
PUT THE color thing where
PUT (THE | SOME) food ON THE TABLE
WHAT TIME IS (IT (NOW | IN city) | meal soon)
WHAT TIME WILL he ARRIVE soon
WHAT TIME DOES THE (ride LEAVE | ride ARRIVE | shop OPEN | shop CLOSE)
WHAT (IS | WAS) THE WEATHER LIKE (IN city | AT THE BEACH)
WHAT WILL THE WEATHER BE LIKE (TOMORROW | ON day | NEXT WEEK)
WHAT DID (YOU | HE | SHE | THEY | name) (BUY | FIND | SEE | EAT) ago
WHAT (ARE (THE CHILDREN | THEY | name AND name) | IS he) DOING (NOW | IN THE room | AT THE place | soon)
WHAT IS THE NAME OF (THE | THIS) (SONG | MOVIE | GAME | RIVER | BOOK | place | animal)
WHERE IS my color thing
WHERE IS THE kind (place | thing)
DO (YOU | THEY | name AND name) LIVE (IN city | NEAR THE (place | RIVER))
they LIVE (IN A kind HOUSE | IN city | NEAR THE place)
WHERE DOES he (LIVE | WORK)
WHERE CAN I (BUY | FIND) (SOME food | A kind thing)
WHEN DOES THE ride (FROM | TO) city (LEAVE | ARRIVE)
WHEN (WILL | DID) he (ARRIVE | LEAVE | COME HOME)
WHO IS doing
WHO (LOST | FOUND | BOUGHT) THE color thing
WHO LIVES IN THE color HOUSE
WHY IS THE (gate | shop) (OPEN | CLOSED)
WHY IS he doing
WHY DID (YOU | THEY | he) (LEAVE | COME HOME) ago
HOW MUCH IS (THE | THIS) color thing
HOW MANY (things | BIRDS | PEOPLE) (DO YOU (NEED | SEE | WANT) | ARE THERE)
HOW FAR IS IT (TO THE place | FROM city TO city)
IS THE place FAR FROM (HERE | city | THE (place | RIVER))
HOW LONG IS THE (kind |) (MOVIE | GAME | SONG)
HOW LONG (MUST | WILL) (WE | THEY | he) WAIT (HERE | TODAY | FOR him)
HOW LONG WILL THE (ride | CAR) TAKE (TO city |)
CAN YOU do soon
CAN he (SWIM | COOK | COME) (TODAY | TOMORROW | soon)
WILL he do
WILL IT fall soon
IS IT sky IN city (TODAY | NOW | TONIGHT)
IS he doing
IS THE (shop | PARK) (OPEN | CLOSED) (NOW | soon)
THE (shop | PARK) (IS | WAS) CLOSED ON day
ARE THERE MORE (things | BIRDS | APPLES | EGGS) where
IS THERE MORE drink where
(ARE | WHY ARE) (YOU | THEY | THE CHILDREN | name AND name) feeling (NOW | AGAIN | TODAY)
DO YOU (WANT | NEED) (SOME | MORE) (drink | food)
DO YOU LIKE (food WITH food | drink OR drink)
DO THEY HAVE A color (thing | CAR | BOAT)
DOES he (LIKE food | HAVE A kind animal)
DID YOU (SEE | FIND | BUY) THE kind (thing | HOUSE)
WOULD YOU LIKE (SOME | MORE) (drink | food)
CAN WE TAKE THE ride OR THE ride
I WOULD LIKE A CUP OF drink
I WOULD LIKE TO do soon
I WANT TO do
I DON'T (LIKE | WANT | EAT) food (TODAY | VERY MUCH | FOR meal)
I DON'T KNOW WHERE my thing IS
I CAN'T FIND my kind thing
I CAN'T do soon
I THINK IT WILL fall soon
I THINK he IS (feeling | AT SCHOOL | AT HOME)
I AM doing
they SAW him AT THE place ago
they WENT TO (THE place | city) (BY ride | WITH him | ago)
they BOUGHT (A color thing | SOME food | several things) ago
they WILL ARRIVE (soon | AT THE place)
they (NEED | WANT) (A kind thing | SOME food | MORE TIME)
they (LOST | FOUND) my thing (where | ago)
they often (DRINK drink | EAT food) (IN THE MORNING | FOR meal)
they often GO TO THE place usual
they HAVE several (color | kind) (BIRDS | BOOKS)
they MUST do soon
he often (DRINKS drink | EATS food) (IN THE (MORNING | EVENING) | AT NIGHT | FOR meal)
he LIKES food (AND | WITH) food
he LIKES THE kind (animal | HOUSE | PARK | SONG)
he (LIVES | WORKS) IN city (NOW | WITH him)
he (LIVES | WORKS) NEAR THE kind (place | RIVER)
he GOES TO (SCHOOL | WORK) BY (BUS | TRAIN | BOAT | CAR) usual
he GOES TO THE place usual
he HAS (A kind (animal | HOUSE | CAR | BOAT) | several (BIRDS | BOOKS | CHILDREN))
he IS doing
he (IS VERY feeling (TODAY | NOW | TONIGHT) | IS feeling AGAIN | WAS feeling ago)
he WILL do soon
he LEFT my thing (AT THE place | ON THE ride | where)
he WAS (HERE | AT HOME | AT SCHOOL | AT WORK) ago
he (IS | WAS) LATE (AGAIN | FOR (SCHOOL | WORK | meal)) (TODAY | ago)
IT (WAS | IS) (COLD | WARM | HOT) AND (SUNNY | WET) IN city
THE WEATHER (IN city | AT THE BEACH) (WAS sky ago | WILL BE sky soon)
IT WILL BE sky soon
IT IS (TOO | VERY) sky (TODAY | HERE | IN THE room)
THERE WAS fall IN city ago
THERE IS A (color | kind) (thing | animal) where
THERE ARE several (PEOPLE | BIRDS | CHILDREN) (AT THE place | NEAR THE RIVER)
THE ride (TO | FROM) city LEAVES clock
THE ride WAS LATE (ago | AGAIN)
THE color thing IS where
THE animal IS SLEEPING where
THE kind animal WALKED (TO THE (place | RIVER) | BEHIND THE HOUSE)
THE animal DRINKS (MILK | WATER) usual
THE kind (place | HOUSE) IS (NEAR | BEHIND) THE (place | RIVER)
THE (meal | drink) (IS | WAS) (VERY | TOO) (GOOD | HOT | COLD)
THE NAME OF my (animal | FRIEND | TEACHER) IS name
THE (PEOPLE | CHILDREN) ARE doing
THE room IS (TOO | VERY) (WARM | COLD | SMALL)
THIS thing IS (TOO | VERY) (OLD | BIG | SMALL)
my kin (AND | OR) my kin WILL do
my thing IS color AND color
THANK YOU FOR THE (kind thing | BEAUTIFUL SONG | meal)
THANK YOU FOR doing
GOOD (MORNING | EVENING | AFTERNOON) name (HOW ARE YOU |)
"""


def parse(text):
    """A template as a list of tokens: words, slot names, and choices as lists of such lists.

    >>> parse("STOP (IT | the thing) NOW")
    ['STOP', [['IT'], ['the', 'thing']], 'NOW']
    """
    stack = [[[]]]  # open choices; the lowest is the template itself
    for token in re.findall(r"[A-Za-z']+|[(|)]", text):
        if token == "(":
            stack.append([[]])
        elif token == "|":
            stack[-1].append([])
        elif token == ")":
            choices = stack.pop()
            stack[-1][-1].append(choices)
        else:
            stack[-1][-1].append(token)
    return stack[0][0] if len(stack[0]) == 1 else [stack[0]]


def sentences(rng):
    """A function that draws one utterance of the sentences corpus.

    It makes six new ones and keeps the one whose rarest word has been said least so far. Left to
    chance, a word deep in the grammar would stay too rare to be learned.
    """
    slots = {name: parse(text) for name, text in SLOTS.items()}
    templates = [parse(line) for line in TEMPLATES.strip().splitlines()]
    said, known = Counter(), set()
    may_repeat = set("A AN THE TO AND IN MY YOUR HIS HER OUR THEIR".split())

    def expand(tokens):
        words = []
        for token in tokens:
            if isinstance(token, list):
                words += expand(token[rng.integers(len(token))])
            elif token.islower():
                words += expand(slots[token])
            else:
                words.append(token)
        return words

    def candidate():
        while True:
            words = expand(templates[rng.integers(len(templates))])
            for here, after in enumerate(words[1:]):
                if words[here] == "A" and after[0] in "AEIOU":
                    words[here] = "AN"  # AN UMBRELLA
            odd = {word for word in words if words.count(word) > 1} - may_repeat
            # Neither LONDON TO LONDON nor ANNA AND ANNA, and nothing twice.
            if 3 <= len(words) <= 10 and not odd and tuple(words) not in known:
                return words

    def draw():
        words = min((candidate() for _ in range(6)), key=lambda words: min(said[word] for word in words))
        said.update(words)
        known.add(tuple(words))
        return words

    return draw


GRAMMARS = {"numbers": numbers, "sentences": sentences}


if __name__ == "__main__":
    for name, grammar in GRAMMARS.items():
        draw = grammar(np.random.default_rng(0))
        lines = [draw() for _ in range(3500)]
        counts = Counter(word for words in lines for word in words)
        different = len(set(map(tuple, lines)))
        print(
            f"{name}: {len(counts)} words, {np.mean([len(words) for words in lines]):.1f} in an utterance, "
            f"{different} different of {len(lines)}, rarest {counts.most_common()[:-11:-1]}"
        )
        for words in lines[:12]:
            print("   ", " ".join(words))
