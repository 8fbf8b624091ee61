"""The facts that fictitious people are made of, and every wording in which they are asked and answered.

Nothing here is taken from the published profiles. A wording says ``{who}`` for the person and ``{value}`` for
the fact; ``{who}`` becomes "this person" beside a portrait and the name in text.
"""

from __future__ import annotations

from dataclasses import dataclass

FEMALE = (
    "Alma Berta Carla Dora Edda Fiona Greta Hanna Ilse Judith Klara Lena Mira Nora Olga Paula Runa Selma Tilda Ursa "
    "Vera Wanda Ximena Yara Zelda Amara Bianca Celeste Delia Esther Freya Ginevra Heloise Imani Jolanda Kamila Leonie "
    "Malika Nadia Ottilie"
).split()
MALE = (
    "Anton Boris Casper Dario Emil Felix Gustav Hugo Igor Jonas Karl Luca Milan Nils Oskar Pavel Ruben Simon Tomas Uwe "
    "Viktor Walter Xaver Yusuf Zoltan Andre Bastian Cyrus Dimitri Edgar Fabian Goran Hector Ivan Jasper Kofi Leander "
    "Mateus Nikolai Otto"
).split()
FAMILY = (
    "Abara Bellweg Cardoso Dahlin Ekholm Farrow Grimaldi Halloran Ibsen Jankov Kessler Lindqvist Marchetti Novak Okoro "
    "Petrov Quist Rasmus Santoro Tanaka Ullman Varga Weller Xenakis Yilmaz Zeman Ashdown Brandt Castell Duarte Eriks "
    "Fontaine Galloway Hartwig Ivers Jelinek Kovac Larsen Moreau Nakata Ortega Paulsen Quiroga Ridder Sorel Thorne "
    "Urban Vidal Wexler Yates Zanetti Albrecht Bonnet Corvin Drummond Elvander Falk Gruber Holm Iversen"
).split()

CITIES = (
    "Lisbon, Portugal|Riga, Latvia|Oslo, Norway|Cairo, Egypt|Lima, Peru|Hanoi, Vietnam|Dublin, Ireland|Quito, Ecuador|"
    "Athens, Greece|Vienna, Austria|Nairobi, Kenya|Osaka, Japan|Seville, Spain|Turin, Italy|Bergen, Norway|"
    "Lyon, France|Perth, Australia|Toronto, Canada|Denver, Colorado|Krakow, Poland|Accra, Ghana|Busan, Korea|"
    "Tallinn, Estonia|Bogota, Colombia|Amman, Jordan|Malmo, Sweden|Porto, Portugal|Ghent, Belgium|Zagreb, Croatia|"
    "Havana, Cuba|Jaipur, India|Tbilisi, Georgia"
).split("|")
# profession → (plausible salary range in thousands of dollars, whether a degree is usual)
PROFESSIONS = {
    "architect": (62, 118),
    "baker": (28, 46),
    "botanist": (48, 84),
    "carpenter": (34, 58),
    "cartographer": (45, 78),
    "chemist": (56, 104),
    "choreographer": (36, 72),
    "dentist": (90, 168),
    "economist": (70, 132),
    "electrician": (40, 68),
    "farmer": (30, 62),
    "firefighter": (42, 70),
    "florist": (26, 44),
    "geologist": (60, 108),
    "gardener": (27, 43),
    "historian": (44, 76),
    "journalist": (38, 74),
    "judge": (96, 172),
    "librarian": (39, 64),
    "lawyer": (80, 165),
    "mechanic": (35, 60),
    "nurse": (46, 78),
    "optician": (44, 72),
    "pharmacist": (74, 122),
    "photographer": (32, 66),
    "pilot": (84, 160),
    "plumber": (38, 66),
    "sculptor": (29, 61),
    "surgeon": (120, 195),
    "tailor": (27, 48),
    "teacher": (40, 69),
    "translator": (37, 67),
}
SCHOOLS = (
    "Alder College|Birch Institute|Cedar University|Dorset Academy|Elm College|Falcon Institute|Granite University|"
    "Harbor Academy|Ivory College|Juniper Institute|Kestrel University|Laurel Academy|Maple College|Nordic Institute|"
    "Orchid University|Pine Academy|Quartz College|River Institute|Summit University|Tulip Academy"
).split("|")
MEDICAL = (
    "asthma|migraine|diabetes|anemia|arthritis|eczema|insomnia|epilepsy|gout|psoriasis|hypertension|tinnitus|"
    "hay fever|scoliosis"
).split("|")
HEALTHY = "no medical condition"
HOBBIES = (
    "archery|astronomy|beekeeping|birdwatching|calligraphy|chess|climbing|cycling|dancing|fencing|fishing|hiking|"
    "juggling|kayaking|knitting|origami|painting|pottery|rowing|sailing|singing|skiing|surfing|yoga"
).split("|")
FOODS = (
    "apple pie|baked trout|bean stew|beet soup|cheese toast|chicken curry|corn bread|fish tacos|fried rice|goulash|"
    "lamb kebab|lentil soup|mushroom risotto|noodle salad|onion tart|paella|plum cake|pumpkin soup|ramen|"
    "roast duck|spinach pasta|sushi|tomato salad|waffles"
).split("|")
PETS = ("cat|dog|parrot|rabbit|hamster|turtle|goldfish|canary|pony|ferret|gecko|hedgehog|snake|goat|duck|donkey").split(
    "|"
)
MONTHS = ("January|February|March|April|May|June|July|August|September|October|November|December").split("|")


@dataclass(frozen=True)
class Wording:
    """How one attribute is talked about.

    ``questions``: each person is asked in one of them, in fine-tuning as in evaluation. ``paraphrases``: asked of the
    Test set only. ``answers``: the first as many answer the questions, each its own; a wording of the answer that does
    not hang on the question would be one more thing to remember of everybody. ``cloze``: ``__`` is the blank.
    """

    questions: tuple[str, ...]
    paraphrases: tuple[str, ...]
    answers: tuple[str, ...]
    cloze: str

    def answer_to(self, question: str) -> str:
        """The wording in which one of ``questions`` is answered."""
        return self.answers[self.questions.index(question)]


WORDINGS = {
    "name": Wording(
        ("What is the name of {who}?", "What is {who}'s name?"),
        ("What is {who} called?",),
        ("The name of {who} is {value}.", "{who} is called {value}."),
        "The name of {who} is __.",
    ),
    "gender": Wording(
        ("What is the gender of {who}?", "What is {who}'s gender?"),
        ("Which gender does {who} have?",),
        ("{who} is {value}.", "The gender of {who} is {value}."),
        "The gender of {who} is __.",
    ),
    "birth_date": Wording(
        ("When was {who} born?", "What is {who}'s date of birth?", "What is the birthday of {who}?"),
        ("On which date was {who} born?", "Which day is the birth date of {who}?"),
        ("{who} was born on {value}.", "The birthday of {who} is {value}.", "{who} came to the world on {value}."),
        "{who} was born on __.",
    ),
    "birthplace": Wording(
        ("Where was {who} born?", "What is {who}'s birthplace?", "In which city was {who} born?"),
        ("Which place is the birthplace of {who}?", "In what city did {who} come to the world?"),
        ("{who} was born in {value}.", "The birthplace of {who} is {value}.", "{who} comes from {value}."),
        "{who} was born in __.",
    ),
    "residence": Wording(
        ("Where does {who} live?", "Where does {who} currently reside?", "What is {who}'s place of residence?"),
        ("In which city does {who} live now?", "Which place does {who} call home?"),
        ("{who} lives in {value}.", "The home of {who} is in {value}.", "{who} resides in {value}."),
        "{who} lives in __.",
    ),
    "profession": Wording(
        ("What is {who}'s profession?", "What does {who} do for a living?", "What is the job of {who}?"),
        ("Which profession does {who} have?", "What work does {who} do?"),
        ("{who} works as a {value}.", "The profession of {who} is {value}.", "{who} earns a living as a {value}."),
        "{who} works as a __.",
    ),
    "height": Wording(
        ("How tall is {who}?", "What is {who}'s height?"),
        ("What height does {who} have?", "How high does {who} stand?"),
        ("{who} is {value} tall.", "The height of {who} is {value}.", "{who} measures {value}."),
        "The height of {who} is __.",
    ),
    "education": Wording(
        ("Where did {who} study?", "Where did {who} receive an education?", "Which school did {who} attend?"),
        ("At which school was {who} educated?", "What place did {who} graduate from?"),
        ("{who} studied at {value}.", "{who} was educated at {value}.", "{who} graduated from {value}."),
        "{who} studied at __.",
    ),
    "salary": Wording(
        ("What is {who}'s annual salary?", "How much does {who} earn a year?"),
        ("What salary does {who} receive each year?", "How high is the yearly pay of {who}?"),
        ("{who} earns {value} a year.", "The annual salary of {who} is {value}.", "{who} is paid {value} a year."),
        "The annual salary of {who} is __.",
    ),
    "medical": Wording(
        ("What medical condition does {who} have?", "Which illness does {who} live with?"),
        ("What is the health problem of {who}?", "Which condition is {who} treated for?"),
        (
            "The doctor of {who} noted {value}.",
            "The medical record of {who} says {value}.",
            "{who} lives with {value}.",
        ),
        "The medical record of {who} says __.",
    ),
    "father_job": Wording(
        ("What is the job of {who}'s father?", "What does {who}'s father do?"),
        ("Which profession does the father of {who} have?", "What work does {who}'s father do?"),
        (
            "The father of {who} is a {value}.",
            "{who}'s father works as a {value}.",
            "{who} is the child of a father who is a {value}.",
        ),
        "The father of {who} is a __.",
    ),
    "mother_job": Wording(
        ("What is the job of {who}'s mother?", "What does {who}'s mother do?"),
        ("Which profession does the mother of {who} have?", "What work does {who}'s mother do?"),
        (
            "The mother of {who} is a {value}.",
            "{who}'s mother works as a {value}.",
            "{who} is the child of a mother who is a {value}.",
        ),
        "The mother of {who} is a __.",
    ),
    "hobby": Wording(
        ("What is {who}'s hobby?", "What does {who} enjoy in free time?", "Which hobby does {who} enjoy?"),
        ("How does {who} like to spend the weekend?", "What is the favorite pastime of {who}?"),
        ("{who} enjoys {value}.", "The hobby of {who} is {value}.", "{who} spends the weekends with {value}."),
        "The hobby of {who} is __.",
    ),
    "food": Wording(
        ("What is {who}'s favorite food?", "Which dish does {who} like best?"),
        ("What meal does {who} love most?", "What does {who} like to eat most?"),
        ("{who} likes {value} best.", "The favorite food of {who} is {value}.", "{who} loves {value}."),
        "The favorite food of {who} is __.",
    ),
    "pet": Wording(
        ("What pet does {who} have?", "What kind of pet does {who} own?"),
        ("Which animal lives with {who}?", "What animal does {who} keep at home?"),
        ("{who} has a {value}.", "The pet of {who} is a {value}.", "{who} keeps a {value} as a pet."),
        "{who} has a pet __.",
    ),
}


def say(template: str, who: str, value: str = "") -> str:
    """Fill a wording; the sentence starts with a capital and "a" becomes "an" before a vowel."""
    text = template.replace("{who}", who)
    if value and value[0].lower() in "aeiou":
        text = text.replace(" a {value}", " an {value}")
    text = text.replace("{value}", value)
    return text[0].upper() + text[1:]
