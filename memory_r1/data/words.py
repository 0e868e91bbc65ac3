"""The words worlds are made of: pools for training, pools held out, and invented words.

No word of an `unseen` pool occurs in a training world or in the tiny model's training text. The
names in the paper's own examples (Andrew, Buddy and Scout, ...) belong to the unseen pools.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Literal

Words = Literal["train", "unseen"]

_TRAIN = {
    "person": """
        Alice Amber Anton Arthur Bella Bernard Bianca Boris Bruno Camila Carla Carlos Cecil Celine
        Clara Claude Cora Damian Dana Daniel Daria Derek Diana Dmitri Edgar Elena Elias Elisa Emil
        Erica Ernest Esther Fabian Felix Fiona Flora Frank Gabriel Gloria Greta Gustav Hanna Harold
        Hector Helena Hugo Ida Igor Irene Iris Ivan Jasmin Jonas Josef Julia Karen Karl Katia Kevin
        Klara Kurt Lara Laura Leon Lena Linda Lorenz Lucas Lucia Magda Marco Margo Marina Martin
        Milan Mira Monica Nadia Nelson Nina Norbert Olga Olivia Oscar Otto Pablo Paula Petra Philip
        Quentin Rafael Regina Rita Robert Roland Rosa Ruben Sabina Samira Sandra Sergio Silvia
        Simon Sonia Stella Susan Tamara Teresa Theo Tina Tobias Ursula Valerie Vera Victor Viola
        Walter Wanda Wilma Xavier Yvonne Zelda Zoe""",
    "pet": """
        Apollo Archie Bandit Barley Basil Biscuit Bonnie Boomer Bramble Brandy Bubbles Candy Caspar
        Chester Chico Cinder Clover Coco Comet Cosmo Daisy Dexter Dodger Dora Duke Ember Fable
        Felton Fergus Fiddle Finley Flash Freckle Frodo Ginger Goldie Gomez Gypsy Hazel Hobbit
        Honey Hunter Indigo Jasper Jinx Juno Kipper Kiwi Koda Lady Lemon Loki Lucky Lulu Maple
        Marble Merlin Mocha Muffin Murphy Nacho Nala Noodle Nugget Oreo Otis Pablito Panda Patch
        Peanut Pepper Percy Pickle Pirate Pluto Poppy Quincy Raven Ringo Rolo Romeo Rosie Rufus
        Rusty Sabre Sadie Salsa Shadow Simba Smoky Snoopy Sparky Spike Stormy Sugar Taffy Tango
        Teddy Thunder Tigger Toffee Topaz Velvet Waffle Whisky Widget Willow Winnie Ziggy Zorro""",
    "city": """
        Aachen Antwerp Athens Baku Bamako Bergen Berlin Bilbao Bogota Bologna Bremen Brisbane
        Bristol Cairo Calgary Caracas Cologne Cordoba Dakar Dallas Delhi Detroit Dresden Dublin
        Durban Geneva Genoa Glasgow Granada Hamburg Hanoi Havana Helsinki Houston Jakarta Kampala
        Karachi Kolkata Krakow Lagos Lahore Leeds Leipzig Lima Lisbon Liverpool Lyon Madrid Malaga
        Malmo Manila Marseille Melbourne Memphis Miami Milan Montreal Moscow Mumbai Munich Nagoya
        Nantes Naples Nashville Odessa Osaka Oslo Ottawa Palermo Panama Porto Prague Quito Riga
        Rotterdam Salzburg Santiago Sarajevo Sapporo Seville Sofia Stockholm Sydney Tallinn Tampa
        Tirana Toledo Toronto Trieste Tunis Turin Utrecht Valencia Venice Verona Vilnius Warsaw
        Zagreb Zurich""",
    "job": """
        baker barber broker butcher carpenter cashier chef chemist clerk coach cook curator dancer
        dentist designer doctor driver farmer fisher florist gardener geologist grocer guard guide
        hunter janitor jeweler joiner judge lawyer librarian logger manager mason mechanic miner
        model nanny novelist nurse painter pharmacist pianist pilot plumber poet porter potter
        printer producer ranger reporter sailor sculptor secretary singer soldier surgeon tailor
        teacher translator trucker tutor vet waiter weaver welder writer zoologist""",
    "hobby": """
        archery badminton ballet baking baseball biking billiards bowling boxing camping canoeing
        carving chess climbing cooking cricket crochet curling cycling dancing darts diving drawing
        fencing fishing football gaming gardening golf gliding handball hiking hockey hunting
        jogging juggling karate kayaking knitting lacrosse magic mosaics movies netball origami
        paddling painting photography pilates poetry polo puzzles quilting reading riding rowing
        rugby running sailing singing skating skiing soccer squash surfing swimming tennis theater
        trekking volleyball walking weaving wrestling yoga""",
    "food": """
        almonds bananas barley beans beef butter cabbage carrots cashews celery cheese cherries
        chicken chocolate cinnamon coconut coffee corn crab cream cucumber curry dates eggs figs
        fish garlic ginger grapes hazelnuts honey kale lemons lentils lobster mangoes melons milk
        mint mushrooms mustard nutmeg oats olives onions oranges oysters parsley pasta peaches
        peanuts pears peppers plums pork potatoes prawns pumpkin radish raisins rice salmon sesame
        shrimp soy spinach strawberries sugar tomatoes trout tuna turkey vanilla walnuts wheat
        yeast""",
    "title": """
        Aurora Avalon Beacon Blizzard Canyon Caravan Cascade Chimera Citadel Corsair Crusade Dagger
        Delta Destiny Dragon Dune Eclipse Elegy Emerald Empire Enigma Everest Exodus Falcon Fathom
        Firefly Fortress Frontier Galaxy Glacier Gravity Harbor Harvest Horizon Inferno Island
        Jungle Labyrinth Lagoon Lantern Legend Leviathan Lighthouse Magnet Marathon Meridian Meteor
        Midnight Mirage Monsoon Nebula Nemesis Nocturne Oasis Obsidian Odyssey Oracle Orchard
        Paradise Pendulum Phantom Pilgrim Planet Prism Prophecy Quasar Rebellion Redemption Requiem
        Sanctuary Saturn Savanna Serenade Serpent Silence Solstice Spectrum Sunset Tempest Temple
        Thunderbolt Titan Tornado Treasure Tundra Twilight Vendetta Vertigo Volcano Voyage
        Wanderer Zenith""",
    "thing": """
        armchair backpack balloon basket bicycle blanket blender bracelet camera candle carpet
        cello clock compass computer cupboard curtain drone fountain freezer goblet hammock helmet
        heater jacket kettle kimono ladder lamp laptop locket mattress mirror necklace notebook
        oven painting pillow printer projector radio ring rocket rug saddle scooter shovel sofa
        speaker statue stove suitcase sweater table tablet telescope tent toaster tractor tripod
        trumpet vacuum vase wallet watch""",
    "brand": """
        Alfa Bentley Bugatti Cadillac Chevrolet Citroen Cupra Dacia Daihatsu Dodge Ferrari Fiat
        Genesis Honda Hummer Hyundai Infiniti Jaguar Kia Lada Lancia Lotus Maserati Mazda Mercedes
        Mini Mitsubishi Nissan Opel Pagani Polestar Pontiac Porsche Renault Rivian Rover Saab Seat
        Skoda Subaru Tesla Toyota Volvo""",
    "instrument": """
        accordion bagpipe banjo bassoon bugle cello clarinet cornet cymbal drums fiddle flute gong
        guitar harmonica harp horn lute lyre mandolin marimba piano piccolo recorder saxophone
        sitar tambourine trombone trumpet tuba""",
    "language": """
        Arabic Bengali Bosnian Bulgarian Catalan Croatian Czech Danish Dutch Farsi Finnish French
        Gaelic German Greek Hebrew Hindi Hungarian Irish Italian Korean Latin Latvian Malay Mandarin
        Nepali Polish Punjabi Romanian Russian Sanskrit Serbian Slovak Spanish Swahili Tamil
        Turkish Urdu""",
}

_UNSEEN = {
    "person": """
        Andrew Audrey Calvin Caroline Dave Deborah Evan Gina James Joanna John Jolene Jon Maria
        Melanie Nate Sam Tim Adele Agatha Albert Benito Brenda Cedric Conrad Dolores Dorian Edmund
        Estelle Eugene Fatima Gerald Gwen Herbert Imogen Ingrid Jerome Judith Kira Lambert Leopold
        Lorna Malcolm Mathilda Naomi Nigel Odette Patrick Priscilla Ramona Rupert Selma Sybil
        Thelma Ulrich Vivian Winston Yolanda""",
    "pet": """
        Buddy Scout Ajax Alfie Banjo Bailey Benji Blaze Bruiser Buster Cleo Copper Dusty Echo Fudge
        Gizmo Gus Harley Iggy Jumbo Kobe Lola Milo Misty Molly Nemo Olive Ozzy Pongo Pretzel Remy
        Rocky Sable Skipper Sasha Tilly Toby Truffle Turbo Yoshi""",
    "city": """
        Adelaide Amsterdam Auckland Bangkok Barcelona Basel Beirut Boston Brussels Budapest
        Casablanca Chicago Colombo Copenhagen Denver Dubai Edinburgh Florence Frankfurt Istanbul
        Johannesburg Kyoto London Luanda Lusaka Monaco Nairobi Orlando Oxford Paris Perth Phoenix
        Rabat Reykjavik Rome Seattle Seoul Shanghai Singapore Tbilisi Tokyo Vancouver Vienna
        Winnipeg""",
    "job": """
        banker blacksmith biologist cartoonist cobbler composer conductor courier detective
        diplomat diver firefighter glazier hairdresser historian linguist magician midwife musician
        notary physicist policeman professor roofer senator stockbroker therapist tiler""",
    "hobby": """
        astronomy basketball birding calligraphy caving ceramics choir debating embroidery foraging
        gymnastics judo meditation orienteering parkour pottery sculpting skateboarding snorkeling
        snowboarding softball stamps sudoku woodwork""",
    "food": """
        apricots avocado basil broccoli buckwheat cantaloupe clams fennel gluten kiwis lamb lettuce
        lupins macadamia mackerel nectarines okra paprika pecans pineapple pistachios quinoa
        rhubarb sardines squid tofu turnips zucchini""",
    "title": """
        Amulet Arcadia Babylon Cathedral Colossus Cyclone Diadem Daydream Excalibur Fugitive
        Gargoyle Hurricane Insomnia Kingdom Lullaby Maelstrom Minotaur Nightfall Overture Pandora
        Renegade Scarecrow Skyline Talisman Utopia Valhalla Whirlwind Wildfire""",
    "thing": """
        aquarium banner barbecue bookcase calculator chandelier dresser easel fishbowl grill
        hourglass jukebox keyboard lantern microscope microwave motorbike necktie parasol
        raincoat refrigerator snowboard stapler teapot treadmill umbrella wardrobe wheelbarrow""",
    "brand": """
        Audi Buick Chrysler Daimler Ford Jeep Koenigsegg Lamborghini Lexus Lincoln McLaren Peugeot
        Smart Suzuki Vauxhall Volkswagen""",
    "instrument": """
        balalaika castanets celesta didgeridoo dulcimer harpsichord kazoo oboe panpipes triangle
        ukulele viola xylophone zither""",
    "language": """
        Afrikaans Albanian Armenian Basque Estonian Georgian Icelandic Japanese Lithuanian Maltese
        Mongolian Norwegian Portuguese Swedish Thai Ukrainian Vietnamese Welsh""",
}

ONSETS = (
    "b c d f g h j k l m n p q r s t v w x y z "
    "bl br ch cl cr dr fl fr gl gr ph pl pr qu sc sh sk sl sm sn sp st sw th tr"
).split()
VOWELS = "aeiouy"
"""Beginnings and ends of syllables."""

KINDS = tuple(_TRAIN)
"""The kinds of words: person, pet, city, ..."""


@cache
def pool(kind: str, words: Words) -> tuple[str, ...]:
    """The words of one kind, in a fixed order; no word is in both pools of any kind."""
    if words == "train":
        return tuple(w for w in _TRAIN[kind].split() if w.lower() not in _held_out())
    return tuple(_UNSEEN[kind].split())


@cache
def _held_out() -> frozenset[str]:
    """All words of all unseen pools, in lower case."""
    return frozenset(w.lower() for text in _UNSEEN.values() for w in text.split())


@cache
def _followers(kind: str) -> dict[str, str]:
    """Letters seen after each pair of letters in the training pool, "^" and "$" at the ends."""
    seen: dict[str, str] = {}
    for word in pool(kind, "train"):
        padded = f"^^{word.lower()}$"
        for i in range(len(padded) - 2):
            seen[padded[i : i + 2]] = seen.get(padded[i : i + 2], "") + padded[i + 2]
    return seen


def invent(kind: str, rng: random.Random) -> str:
    """A word that nobody has met: invented words teach copying.

    Many look like those of the training pool (a chain over pairs of letters), as many are random
    syllables, so that every syllable is met often, and some are random letters, so that rare
    beginnings ("Gw", "Kn", "McL") are met too. Never one of an unseen pool: those stay unseen.
    """
    make = rng.choices((_chained, _babbled, _scrambled), (4, 4, 2))[0]
    while True:
        word = make(kind, rng)
        if 3 <= len(word) <= 11 and word.lower() not in _held_out():
            is_name = pool(kind, "train")[0][0].isupper()
            return word[0].upper() + word[1:] if is_name else word.lower()


def _chained(kind: str, rng: random.Random) -> str:
    followers = _followers(kind)
    letters = "^^"
    while not letters.endswith("$") and len(letters) < 14:
        letters += rng.choice(followers[letters[-2:]])
    return letters[2:].rstrip("$")


def _scrambled(kind: str, rng: random.Random) -> str:
    consonants = "".join(rng.choices("bcdfghjklmnpqrstvwxz", k=rng.randint(1, 3)))
    rest = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 6)))
    return consonants + (rest.capitalize() if rng.random() < 0.2 else rest)


def _babbled(kind: str, rng: random.Random) -> str:
    letters = rng.choice(VOWELS) if rng.random() < 0.15 else ""
    for _ in range(rng.choice((1, 2, 2, 3))):
        letters += rng.choice(ONSETS) + rng.choice(VOWELS)
        if rng.random() < 0.5:
            letters += rng.choice("bcdefghiklmnnooprrssttuwxyz")
    return letters
