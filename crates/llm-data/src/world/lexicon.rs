//! The words of the world.

/// A thing in the singular and the plural.
pub type Noun = (&'static str, &'static str);

pub const WOMEN: [&str; 8] = ["Anna", "Maria", "Lucy", "Emma", "Sara", "Julia", "Nora", "Clara"];
pub const MEN: [&str; 8] = ["Tom", "Peter", "Paul", "Max", "Ben", "David", "Oscar", "Felix"];

/// Things that one can take, carry and put down.
pub const THINGS: [Noun; 24] = [
    ("apple", "apples"),
    ("book", "books"),
    ("box", "boxes"),
    ("ball", "balls"),
    ("hat", "hats"),
    ("cup", "cups"),
    ("key", "keys"),
    ("shoe", "shoes"),
    ("lamp", "lamps"),
    ("flower", "flowers"),
    ("picture", "pictures"),
    ("basket", "baskets"),
    ("bottle", "bottles"),
    ("pencil", "pencils"),
    ("plate", "plates"),
    ("toy", "toys"),
    ("bag", "bags"),
    ("shirt", "shirts"),
    ("clock", "clocks"),
    ("stone", "stones"),
    ("egg", "eggs"),
    ("orange", "oranges"),
    ("spoon", "spoons"),
    ("blanket", "blankets"),
];

/// What things lie on, in or near.
pub const SPOTS: [Noun; 12] = [
    ("table", "tables"),
    ("window", "windows"),
    ("door", "doors"),
    ("tree", "trees"),
    ("chair", "chairs"),
    ("shelf", "shelves"),
    ("wall", "walls"),
    ("bench", "benches"),
    ("house", "houses"),
    ("bed", "beds"),
    ("car", "cars"),
    ("gate", "gates"),
];

pub const PLACES: [&str; 12] = [
    "market", "library", "station", "park", "school", "museum", "beach", "harbour", "garden", "kitchen", "theatre",
    "farm",
];

pub const TIMES: [&str; 8] = [
    "before the lecture",
    "after the lunch",
    "during the storm",
    "before the concert",
    "after the long meeting",
    "on a cold morning",
    "on the first day of spring",
    "late in the evening",
];

/// Who gives what: a profession and the one thing that its people give away.
pub const PROFESSIONS: [(&str, &str); 16] = [
    ("teacher", "lesson"),
    ("doctor", "pill"),
    ("baker", "loaf"),
    ("farmer", "pumpkin"),
    ("painter", "portrait"),
    ("writer", "novel"),
    ("singer", "song"),
    ("gardener", "rose"),
    ("postman", "parcel"),
    ("tailor", "coat"),
    ("fisherman", "fish"),
    ("carpenter", "stool"),
    ("cook", "soup"),
    ("clown", "balloon"),
    ("pilot", "ticket"),
    ("dentist", "toothbrush"),
];

pub const PEOPLE: [&str; 6] = ["students", "children", "guests", "visitors", "neighbours", "friends"];

pub const CAPITALS: [(&str, &str); 24] = [
    ("France", "Paris"),
    ("Spain", "Madrid"),
    ("Italy", "Rome"),
    ("Germany", "Berlin"),
    ("Austria", "Vienna"),
    ("Greece", "Athens"),
    ("Portugal", "Lisbon"),
    ("Poland", "Warsaw"),
    ("Norway", "Oslo"),
    ("Sweden", "Stockholm"),
    ("Finland", "Helsinki"),
    ("Ireland", "Dublin"),
    ("Hungary", "Budapest"),
    ("Egypt", "Cairo"),
    ("Japan", "Tokyo"),
    ("China", "Beijing"),
    ("Russia", "Moscow"),
    ("Turkey", "Ankara"),
    ("Canada", "Ottawa"),
    ("Cuba", "Havana"),
    ("Peru", "Lima"),
    ("Chile", "Santiago"),
    ("Kenya", "Nairobi"),
    ("Belgium", "Brussels"),
];

pub const COLOURS: [(&str, &str); 20] = [
    ("lemon", "yellow"),
    ("banana", "yellow"),
    ("tomato", "red"),
    ("cherry", "red"),
    ("rose", "red"),
    ("leaf", "green"),
    ("frog", "green"),
    ("cucumber", "green"),
    ("cloud", "white"),
    ("swan", "white"),
    ("snowman", "white"),
    ("raven", "black"),
    ("coal", "black"),
    ("carrot", "orange"),
    ("pumpkin", "orange"),
    ("plum", "purple"),
    ("violet", "purple"),
    ("sapphire", "blue"),
    ("bear", "brown"),
    ("chestnut", "brown"),
];

pub const OPPOSITES: [(&str, &str); 24] = [
    ("big", "small"),
    ("hot", "cold"),
    ("fast", "slow"),
    ("high", "low"),
    ("old", "young"),
    ("rich", "poor"),
    ("light", "dark"),
    ("strong", "weak"),
    ("wet", "dry"),
    ("hard", "soft"),
    ("early", "late"),
    ("full", "empty"),
    ("long", "short"),
    ("near", "far"),
    ("happy", "sad"),
    ("loud", "quiet"),
    ("clean", "dirty"),
    ("cheap", "expensive"),
    ("thick", "thin"),
    ("sweet", "bitter"),
    ("brave", "afraid"),
    ("day", "night"),
    ("summer", "winter"),
    ("north", "south"),
];

pub const FRENCH: [(&str, &str); 32] = [
    ("dog", "chien"),
    ("cat", "chat"),
    ("house", "maison"),
    ("bread", "pain"),
    ("water", "eau"),
    ("milk", "lait"),
    ("book", "livre"),
    ("tree", "arbre"),
    ("sun", "soleil"),
    ("moon", "lune"),
    ("star", "étoile"),
    ("sea", "mer"),
    ("bird", "oiseau"),
    ("horse", "cheval"),
    ("apple", "pomme"),
    ("cheese", "fromage"),
    ("flower", "fleur"),
    ("city", "ville"),
    ("street", "rue"),
    ("door", "porte"),
    ("window", "fenêtre"),
    ("table", "table"),
    ("hand", "main"),
    ("head", "tête"),
    ("friend", "ami"),
    ("school", "école"),
    ("day", "jour"),
    ("night", "nuit"),
    ("fire", "feu"),
    ("snow", "neige"),
    ("king", "roi"),
    ("egg", "œuf"),
];

pub const CATEGORIES: [(&str, &[&str]); 4] = [
    ("animal", &["dog", "cat", "horse", "bear", "frog", "swan", "wolf", "goat", "raven", "sheep"]),
    ("fruit", &["apple", "banana", "cherry", "plum", "lemon", "orange", "pear", "peach", "grape", "melon"]),
    ("tool", &["hammer", "saw", "drill", "spade", "rake", "axe", "shovel", "wrench", "ladder", "chisel"]),
    ("garment", &["shirt", "hat", "coat", "sock", "glove", "scarf", "jacket", "dress", "belt", "skirt"]),
];

/// Adjectives whose negation is another adjective, with what they can be said of.
pub const NEGATIONS: [(&str, &str, bool); 16] = [
    ("happy", "unhappy", true),
    ("kind", "unkind", true),
    ("lucky", "unlucky", true),
    ("friendly", "unfriendly", true),
    ("healthy", "ill", true),
    ("awake", "asleep", true),
    ("honest", "dishonest", true),
    ("polite", "rude", true),
    ("patient", "impatient", true),
    ("open", "closed", false),
    ("full", "empty", false),
    ("clean", "dirty", false),
    ("new", "old", false),
    ("safe", "dangerous", false),
    ("straight", "crooked", false),
    ("wet", "dry", false),
];

/// A word with two meanings. Each meaning has its cues (who does it or with what) and what happens then.
pub struct Homonym {
    pub word: &'static str,
    /// "came to the bank with": what stands between the person and the cue.
    pub frame: &'static str,
    pub meanings: [Meaning; 2],
}

pub struct Meaning {
    pub cues: [&'static str; 4],
    pub outcomes: [&'static str; 3],
}

pub const HOMONYMS: [Homonym; 10] = [
    Homonym {
        word: "bank",
        frame: "went to the bank with",
        meanings: [
            Meaning {
                cues: ["a fishing rod", "a small boat", "muddy boots", "a wet dog"],
                outcomes: ["watched the river", "caught fish", "swam in the water"],
            },
            Meaning {
                cues: ["a wallet", "some money", "a golden coin", "a signed cheque"],
                outcomes: ["opened an account", "asked for a loan", "paid a debt"],
            },
        ],
    },
    Homonym {
        word: "bat",
        frame: "saw a bat next to",
        meanings: [
            Meaning {
                cues: ["a dark cave", "an owl", "the old attic", "a night moth"],
                outcomes: ["it flew away", "it flapped its wings", "it slept upside down"],
            },
            Meaning {
                cues: ["a leather glove", "a baseball", "the players", "a team cap"],
                outcomes: ["hit a home run", "joined the game", "played all afternoon"],
            },
        ],
    },
    Homonym {
        word: "ring",
        frame: "heard about a ring from",
        meanings: [
            Meaning {
                cues: ["a jeweller", "the bride", "a goldsmith", "the queen"],
                outcomes: ["put it on her finger", "admired the diamond", "saw the silver shine"],
            },
            Meaning {
                cues: ["a boxer", "the referee", "a wrestler", "the trainer"],
                outcomes: ["watched the fight", "counted the rounds", "cheered for the champion"],
            },
        ],
    },
    Homonym {
        word: "letter",
        frame: "looked at the letter beside",
        meanings: [
            Meaning {
                cues: ["the envelope", "a stamp", "the mailbox", "a postcard"],
                outcomes: ["posted it", "wrote an address", "sent an answer"],
            },
            Meaning {
                cues: ["the alphabet", "a spelling book", "the vowels", "a long word"],
                outcomes: ["spelled it aloud", "learned to read", "pronounced it"],
            },
        ],
    },
    Homonym {
        word: "spring",
        frame: "thought of the spring and of",
        meanings: [
            Meaning {
                cues: ["the warm sun", "April", "fresh blossoms", "the last snow"],
                outcomes: ["planted some seeds", "waited for the birds", "put away the winter coat"],
            },
            Meaning {
                cues: ["a broken mattress", "the steel wire", "a mechanic", "the rusty machine"],
                outcomes: ["pressed the coil", "repaired the engine", "tightened a screw"],
            },
        ],
    },
    Homonym {
        word: "match",
        frame: "needed a match for",
        meanings: [
            Meaning {
                cues: ["the candle", "a campfire", "the gas stove", "the fireplace"],
                outcomes: ["lit the flame", "smelled the smoke", "felt the heat"],
            },
            Meaning {
                cues: ["the football club", "the tennis player", "the stadium", "the final score"],
                outcomes: ["won the cup", "scored a goal", "shook hands with the loser"],
            },
        ],
    },
    Homonym {
        word: "bark",
        frame: "noticed the bark of",
        meanings: [
            Meaning {
                cues: ["an oak", "a tall pine", "the birch", "an ancient willow"],
                outcomes: ["touched the rough wood", "carved a name", "found a beetle"],
            },
            Meaning {
                cues: ["a puppy", "the guard dog", "a hungry hound", "the terrier"],
                outcomes: ["calmed the animal", "threw a bone", "covered both ears"],
            },
        ],
    },
    Homonym {
        word: "wave",
        frame: "waited for a wave from",
        meanings: [
            Meaning {
                cues: ["the ocean", "the stormy sea", "the tide", "the deep bay"],
                outcomes: ["took a surfboard", "got soaked", "tasted salt"],
            },
            Meaning {
                cues: ["a passing friend", "the crowd", "grandmother", "the bus driver"],
                outcomes: ["smiled back", "raised a hand", "said goodbye"],
            },
        ],
    },
    Homonym {
        word: "trunk",
        frame: "drew a trunk and",
        meanings: [
            Meaning {
                cues: ["big grey ears", "ivory tusks", "a circus tent", "an elephant"],
                outcomes: ["named the jungle", "thought of peanuts", "copied the zoo poster"],
            },
            Meaning {
                cues: ["heavy luggage", "a suitcase", "folded clothes", "a travel map"],
                outcomes: ["packed for the journey", "booked a hotel", "left for the airport"],
            },
        ],
    },
    Homonym {
        word: "mouse",
        frame: "reached for the mouse near",
        meanings: [
            Meaning {
                cues: ["a piece of cheese", "the barn", "a small hole", "the hungry cat"],
                outcomes: ["set a trap", "heard a squeak", "saw whiskers"],
            },
            Meaning {
                cues: ["the keyboard", "a computer", "the screen", "the printer"],
                outcomes: ["clicked twice", "opened a file", "scrolled down"],
            },
        ],
    },
];
