"""Word lists and sentence frames shared by the task generators and by the corpus of the embedded model.

Pure data, no imports: every constant is a tuple. Words are without a leading space. A frame is a format string
whose fields are named after the roles of the task; it stops *before* the answer, without a trailing space.
Names and most other words are single tokens of GPT-2's tokenizer when a space stands before them; every one of them
is a single token of the embedded model's tokenizer.
"""

# ----------------------------------------------------------------------------------------------- people and names

MALE_NAMES: tuple[str, ...] = (
    "John", "James", "Tom", "Dan", "Bob", "David", "Michael", "Robert", "William", "Paul",
    "George", "Peter", "Daniel", "Thomas", "Kevin", "Jason", "Eric", "Adam", "Ryan", "Brian",
    "Steve", "Scott", "Andrew", "Matthew", "Joseph", "Charles", "Richard", "Henry", "Jack", "Ben",
    "Nick", "Frank", "Simon", "Anthony", "Patrick", "Tim", "Jim", "Joe", "Mike", "Luke",
    "Carl", "Roger", "Stephen", "Martin", "Jeff", "Greg", "Keith", "Edward",
)  # fmt: skip
FEMALE_NAMES: tuple[str, ...] = (
    "Mary", "Sarah", "Alice", "Anna", "Jane", "Emma", "Laura", "Lisa", "Karen", "Susan",
    "Elizabeth", "Jennifer", "Jessica", "Michelle", "Amy", "Rachel", "Emily", "Kate", "Julia", "Maria",
    "Barbara", "Linda", "Nancy", "Margaret", "Diana", "Claire", "Helen", "Catherine", "Rebecca", "Amanda",
    "Melissa", "Nicole", "Christine", "Angela", "Victoria", "Sophie", "Ruth", "Lucy", "Ellen", "Anne",
    "Julie", "Samantha", "Stephanie", "Katie", "Caroline", "Charlotte", "Martha", "Hannah",
)  # fmt: skip
NAMES: tuple[str, ...] = MALE_NAMES + FEMALE_NAMES

PRONOUNS: tuple[str, str] = ("he", "she")

# --------------------------------------------------------------------------------------- indirect object (Wang 2023)

PLACES: tuple[str, ...] = (
    "store", "garden", "restaurant", "school", "hospital", "office", "house", "station",
    "park", "beach", "market", "library", "church", "museum", "theater", "bank",
)  # fmt: skip
OBJECTS: tuple[str, ...] = (
    "ring", "bone", "basketball", "computer", "necklace", "drink", "snack", "book",
    "letter", "ball", "phone", "key", "gift", "coat", "map", "camera",
)  # fmt: skip
#: {A} and {B} are the two names in order of mention, {S} the subject (one of them) that is mentioned again.
#: The answer is the other one. {S} = {B} is the order ABB, {S} = {A} the order BAB of the paper.
IOI_FRAMES: tuple[str, ...] = (
    "When {A} and {B} went to the {PLACE}, {S} gave a {OBJECT} to",
    "Then, {A} and {B} went to the {PLACE}. {S} gave a {OBJECT} to",
    "After {A} and {B} went to the {PLACE}, {S} handed a {OBJECT} to",
    "While {A} and {B} were working at the {PLACE}, {S} gave a {OBJECT} to",
    "Then, {A} and {B} had a long argument at the {PLACE}. Afterwards, {S} said to",
    "When {A} and {B} got a {OBJECT} at the {PLACE}, {S} decided to give it to",
    "Friends {A} and {B} found a {OBJECT} at the {PLACE}. {S} gave it to",
    "The {PLACE} where {A} and {B} met was quiet, so {S} handed the {OBJECT} to",
)

# ------------------------------------------------------------------------------------- greater-than (Hanna 2023)

#: Nouns for things that last. Singular, regular, without gender.
DURATIONS: tuple[str, ...] = (
    "war", "treaty", "contract", "campaign", "program", "project", "plan", "study", "test", "trial",
    "journey", "marriage", "siege", "reign", "voyage", "expedition", "conflict", "dispute", "experiment",
    "construction", "occupation", "rebellion", "survey", "tour", "training", "festival", "investigation",
    "partnership", "strike", "quest",
)  # fmt: skip
#: {NOUN} lasts; {CENTURY} and {YEAR} are two digits each. Years 02 to 98 leave both sides an answer.
GREATER_THAN_FRAMES: tuple[str, ...] = ("The {NOUN} lasted from the year {CENTURY}{YEAR} to the year {CENTURY}",)
CENTURIES: tuple[str, ...] = ("11", "12", "13", "14", "15", "16", "17", "18", "19")
TWO_DIGITS: tuple[str, ...] = tuple(f"{n:02d}" for n in range(100))

# ----------------------------------------------------------------------------- subject-verb agreement (Marks 2024)

#: (singular, plural)
PEOPLE: tuple[tuple[str, str], ...] = (
    ("parent", "parents"), ("athlete", "athletes"), ("manager", "managers"), ("secretary", "secretaries"),
    ("teacher", "teachers"), ("lawyer", "lawyers"), ("doctor", "doctors"), ("friend", "friends"),
    ("author", "authors"), ("pilot", "pilots"), ("farmer", "farmers"), ("guard", "guards"),
    ("student", "students"), ("officer", "officers"), ("chef", "chefs"), ("dancer", "dancers"),
    ("singer", "singers"), ("driver", "drivers"), ("writer", "writers"), ("actor", "actors"),
    ("painter", "painters"), ("artist", "artists"), ("boy", "boys"), ("girl", "girls"),
    ("uncle", "uncles"), ("aunt", "aunts"), ("king", "kings"), ("queen", "queens"),
    ("senator", "senators"), ("minister", "ministers"), ("carpenter", "carpenters"), ("skater", "skaters"),
    ("customer", "customers"), ("neighbor", "neighbors"), ("soldier", "soldiers"), ("sailor", "sailors"),
    ("judge", "judges"), ("nurse", "nurses"), ("engineer", "engineers"), ("consultant", "consultants"),
)  # fmt: skip
#: (singular, plural)
THINGS: tuple[tuple[str, str], ...] = (
    ("car", "cars"), ("truck", "trucks"), ("desk", "desks"), ("table", "tables"), ("chair", "chairs"),
    ("tree", "trees"), ("door", "doors"), ("window", "windows"), ("cabinet", "cabinets"), ("picture", "pictures"),
    ("clock", "clocks"), ("lamp", "lamps"), ("box", "boxes"), ("bike", "bikes"), ("boat", "boats"),
    ("plane", "planes"), ("train", "trains"), ("dog", "dogs"), ("cat", "cats"), ("bird", "birds"),
    ("horse", "horses"), ("tower", "towers"), ("bridge", "bridges"), ("wall", "walls"), ("fence", "fences"),
    ("flower", "flowers"), ("statue", "statues"), ("mirror", "mirrors"), ("piano", "pianos"), ("rock", "rocks"),
)  # fmt: skip
NOUNS: tuple[tuple[str, str], ...] = PEOPLE + THINGS
PREPOSITIONS: tuple[str, ...] = ("near", "behind", "beside", "above", "below", "by")
#: (third person singular, plural or base, past)
TRANSITIVE_VERBS: tuple[tuple[str, str, str], ...] = (
    ("likes", "like", "liked"), ("loves", "love", "loved"), ("admires", "admire", "admired"),
    ("follows", "follow", "followed"), ("helps", "help", "helped"), ("sees", "see", "saw"),
    ("knows", "know", "knew"), ("hates", "hate", "hated"), ("visits", "visit", "visited"),
    ("trusts", "trust", "trusted"), ("calls", "call", "called"), ("hears", "hear", "heard"),
    ("watches", "watch", "watched"), ("thanks", "thank", "thanked"), ("avoids", "avoid", "avoided"),
    ("respects", "respect", "respected"),
)  # fmt: skip
#: (singular, plural)
AGREEMENT_VERBS: tuple[tuple[str, str], ...] = (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"))
#: {N1} is the subject of the main clause. The answer is a verb that agrees with {N1}, except in ``within_rc``, where
#: it agrees with {N2}, the subject inside the relative clause. {P} is a preposition, {V} a verb agreeing with {N2}.
AGREEMENT_FRAMES: tuple[tuple[str, str], ...] = (
    ("simple", "The {N1}"),
    ("nounpp", "The {N1} {P} the {N2}"),
    ("within_rc", "The {N1} that the {N2}"),
    ("rc", "The {N1} that the {N2} {V}"),
)

# -------------------------------------------------------------------------------------------- gendered pronoun

TRAITS: tuple[str, ...] = (
    "great", "good", "kind", "funny", "smart", "brave", "honest", "clever", "friendly", "quiet",
    "careful", "patient", "strong", "happy", "generous", "loyal", "polite", "busy", "calm", "proud",
)  # fmt: skip
ROLES: tuple[str, ...] = (
    "friend", "person", "student", "neighbor", "teacher", "worker", "cook", "singer", "writer", "runner",
)  # fmt: skip
#: {NAME} decides between he and she; {TRAIT} and {ROLE} say nothing about gender.
PRONOUN_FRAMES: tuple[str, ...] = (
    "So {NAME} is a really {TRAIT} {ROLE}, isn't",
    "{NAME} is a {TRAIT} {ROLE}, and",
    "{NAME} went home early because",
    "Everyone likes {NAME} because",
    "We asked {NAME} to come, but",
)

# ------------------------------------------------------------------------------------------------- biographies

#: Without gender in the word. Aligned with PROFESSION_WORK: what a person of that profession does.
PROFESSIONS: tuple[str, ...] = ("nurse", "professor", "lawyer", "chef", "pilot", "farmer", "painter", "engineer")
PROFESSION_WORK: tuple[tuple[str, ...], ...] = (
    ("cares for patients at the hospital", "gives medicine to the sick", "works with doctors at night"),
    ("gives lectures at the university", "leads a seminar in physics", "writes long research papers"),
    ("speaks before the judge", "writes contracts for clients", "defends people in court"),
    ("cooks dinner in a restaurant", "bakes fresh bread", "tastes every soup and sauce"),
    ("flies planes over the ocean", "checks the wings before takeoff", "lands in heavy rain"),
    ("grows corn and wheat", "feeds the cows each morning", "drives a tractor in the field"),
    ("mixes oil colors", "shows portraits in a gallery", "cleans brushes in the studio"),
    ("designs steel bridges", "tests new machines", "draws plans for a factory"),
)

# ---------------------------------------------------------------------------------------------------- docstring

#: Argument names, one token each.
ARGUMENTS: tuple[str, ...] = (
    "file", "size", "name", "value", "index", "path", "key", "data", "text", "line",
    "node", "state", "mode", "token", "cache", "result", "shape", "port", "host", "user",
    "event", "field", "label", "count", "limit", "offset", "parent", "target", "source", "option",
    "query", "load", "point", "color", "width", "height", "depth", "format", "buffer", "output",
)  # fmt: skip
FUNCTION_NAMES: tuple[str, ...] = ("run", "save", "read", "write", "send", "make", "build", "check", "open", "update")
DESCRIPTIONS: tuple[str, ...] = (
    "first", "second", "main", "new", "old", "default", "current", "next", "last", "maximum",
    "minimum", "local", "global", "final", "initial", "raw", "full", "short", "valid", "total",
)  # fmt: skip
DESCRIPTION_NOUNS: tuple[str, ...] = (
    "item", "number", "string", "object", "record", "message", "table", "list", "image", "page",
    "window", "process", "server", "device", "model", "sample", "order", "group", "test", "date",
)  # fmt: skip
#: Arguments {A} to {F} in the order of the definition; the answer is {E}, the third documented one. Every
#: description is "{adjective} {noun}". Simplified from the docstring task of Heimersheim and Janiak (2023).
DOCSTRING_FRAMES: tuple[str, ...] = (
    "def {FUNCTION}(self, {A}, {B}, {C}, {D}, {E}, {F}):\n"
    '    """{TEXT0}\n\n'
    "    :param {C}: {TEXT1}\n"
    "    :param {D}: {TEXT2}\n"
    "    :param",
)

# -------------------------------------------------------------------------------------------------------- facts

#: (subject, object) of closed relations.
CAPITALS: tuple[tuple[str, str], ...] = (
    ("France", "Paris"), ("England", "London"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Germany", "Berlin"),
    ("Russia", "Moscow"), ("Japan", "Tokyo"), ("China", "Beijing"), ("Egypt", "Cairo"), ("Greece", "Athens"),
    ("Portugal", "Lisbon"), ("Austria", "Vienna"), ("Ireland", "Dublin"), ("Poland", "Warsaw"), ("Sweden", "Stockholm"),
    ("Norway", "Oslo"), ("Cuba", "Havana"), ("Kenya", "Nairobi"), ("Iran", "Tehran"), ("Iraq", "Baghdad"),
    ("Syria", "Damascus"), ("Canada", "Ottawa"), ("Turkey", "Ankara"), ("Thailand", "Bangkok"),
)  # fmt: skip
SOUNDS: tuple[tuple[str, str], ...] = (
    ("dog", "bark"), ("cat", "meow"), ("cow", "moo"), ("duck", "quack"), ("lion", "roar"), ("pig", "oink"),
    ("owl", "hoot"), ("snake", "hiss"), ("wolf", "howl"), ("bee", "buzz"), ("frog", "croak"), ("mouse", "squeak"),
)  # fmt: skip
FOOD_COLORS: tuple[tuple[str, str], ...] = (
    ("banana", "yellow"), ("tomato", "red"), ("carrot", "orange"), ("lettuce", "green"), ("coal", "black"),
    ("snow", "white"), ("chocolate", "brown"), ("sky", "blue"), ("plum", "purple"), ("salmon", "pink"),
)  # fmt: skip
OPPOSITES: tuple[tuple[str, str], ...] = (
    ("big", "small"), ("hot", "cold"), ("fast", "slow"), ("light", "dark"), ("high", "low"), ("hard", "soft"),
    ("long", "short"), ("rich", "poor"), ("wet", "dry"), ("young", "old"), ("full", "empty"), ("loud", "quiet"),
    ("small", "big"), ("cold", "hot"), ("slow", "fast"), ("dark", "light"), ("low", "high"), ("soft", "hard"),
    ("short", "long"), ("poor", "rich"), ("dry", "wet"), ("old", "young"), ("empty", "full"), ("quiet", "loud"),
)  # fmt: skip
#: (relation, frame, pairs)
FACTS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("capital", "The capital of {X} is", CAPITALS),
    ("capital_of", "The city of {Y} is the capital of", CAPITALS),
    ("sound", "The sound of the {X} is a", SOUNDS),
    ("color", "The color of the {X} is", FOOD_COLORS),
    ("opposite", "The opposite of {X} is", OPPOSITES),
)

# ----------------------------------------------------------------------------------------------------- counting

NUMBER_WORDS: tuple[str, ...] = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
