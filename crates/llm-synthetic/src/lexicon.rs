//! The vocabulary and the facts of the synthetic dataset.

/// A noun: (singular, plural).
pub type Noun = (&'static str, &'static str);

pub const WOMEN: [&str; 8] = ["Anna", "Maria", "Lucy", "Emma", "Sara", "Julia", "Nora", "Clara"];
pub const MEN: [&str; 8] = ["Tom", "Peter", "Paul", "Max", "Ben", "David", "Oscar", "Felix"];

/// Portable objects.
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

/// Nouns for locations of objects.
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

/// Expressions of time with at least four words, so that n-grams of up to five words do not span them.
pub const TIMES: [&str; 8] = [
    "before the long lecture",
    "after the big lunch",
    "during the summer storm",
    "before the first concert",
    "after the long meeting",
    "on a cold morning",
    "on the first day of spring",
    "late in the evening",
];

/// A profession and the object that its members give away.
pub const PROFESSIONS: [(&str, &str); 16] = [
    ("teacher", "lesson"),
    ("doctor", "pill"),
    ("baker", "loaf"),
    ("farmer", "turnip"),
    ("painter", "portrait"),
    ("writer", "novel"),
    ("singer", "song"),
    ("gardener", "tulip"),
    ("postman", "parcel"),
    ("tailor", "suit"),
    ("fisherman", "trout"),
    ("carpenter", "stool"),
    ("cook", "soup"),
    ("clown", "balloon"),
    ("pilot", "ticket"),
    ("dentist", "toothbrush"),
];

pub const PEOPLE: [&str; 6] = ["students", "children", "guests", "visitors", "neighbours", "friends"];

/// Verbs after which "because" refers to the subject ("Anna impressed Tom because she was brave").
pub const SUBJECT_VERBS: [&str; 8] =
    ["impressed", "amused", "charmed", "surprised", "inspired", "delighted", "convinced", "fascinated"];

/// Verbs after which "because" refers to the object ("Anna praised Tom because he was brave").
pub const OBJECT_VERBS: [&str; 8] =
    ["praised", "thanked", "admired", "trusted", "rewarded", "hired", "respected", "envied"];

pub const TRAITS: [&str; 8] = ["brave", "clever", "polite", "patient", "quick", "honest", "kind", "careful"];

pub const CAPITALS: [(&str, &str); 40] = [
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
    ("Denmark", "Copenhagen"),
    ("Iceland", "Reykjavik"),
    ("Switzerland", "Bern"),
    ("Croatia", "Zagreb"),
    ("Serbia", "Belgrade"),
    ("Romania", "Bucharest"),
    ("Bulgaria", "Sofia"),
    ("Ukraine", "Kyiv"),
    ("Latvia", "Riga"),
    ("Iran", "Tehran"),
    ("Iraq", "Baghdad"),
    ("India", "Delhi"),
    ("Thailand", "Bangkok"),
    ("Vietnam", "Hanoi"),
    ("Korea", "Seoul"),
    ("Ghana", "Accra"),
];

pub const COLOURS: [(&str, &str); 32] = [
    ("sunflower", "yellow"),
    ("canary", "yellow"),
    ("honeycomb", "yellow"),
    ("butter cube", "yellow"),
    ("tomato", "red"),
    ("poppy", "red"),
    ("ruby", "red"),
    ("fire engine", "red"),
    ("leaf", "green"),
    ("lettuce", "green"),
    ("cucumber", "green"),
    ("emerald", "green"),
    ("cloud", "white"),
    ("pearl", "white"),
    ("snowman", "white"),
    ("polar fox", "white"),
    ("panther", "black"),
    ("coal", "black"),
    ("crow", "black"),
    ("night sky", "black"),
    ("carrot", "orange"),
    ("pumpkin", "orange"),
    ("goldfish", "orange"),
    ("flame", "orange"),
    ("lavender", "purple"),
    ("violet", "purple"),
    ("sapphire", "blue"),
    ("cornflower", "blue"),
    ("whale", "blue"),
    ("chestnut", "brown"),
    ("acorn", "brown"),
    ("beaver", "brown"),
];

pub const OPPOSITES: [(&str, &str); 36] = [
    ("big", "small"),
    ("hot", "cold"),
    ("fast", "slow"),
    ("high", "low"),
    ("young", "old"),
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
    ("true", "false"),
    ("open", "closed"),
    ("deep", "shallow"),
    ("wide", "narrow"),
    ("sharp", "blunt"),
    ("smooth", "rough"),
    ("first", "last"),
    ("inside", "outside"),
    ("above", "below"),
    ("buy", "sell"),
    ("push", "pull"),
    ("win", "lose"),
];

/// A category and its members: (noun, plural, French word).
pub type Category = (&'static str, [(&'static str, &'static str, &'static str); 16]);

pub const CATEGORIES: [Category; 4] = [
    (
        "animal",
        [
            ("dog", "dogs", "chien"),
            ("cat", "cats", "chat"),
            ("horse", "horses", "cheval"),
            ("bear", "bears", "ours"),
            ("frog", "frogs", "grenouille"),
            ("swan", "swans", "cygne"),
            ("wolf", "wolves", "loup"),
            ("goat", "goats", "chèvre"),
            ("cow", "cows", "vache"),
            ("pig", "pigs", "cochon"),
            ("fox", "foxes", "renard"),
            ("hen", "hens", "poule"),
            ("bee", "bees", "abeille"),
            ("duck", "ducks", "canard"),
            ("rabbit", "rabbits", "lapin"),
            ("snail", "snails", "escargot"),
        ],
    ),
    (
        "fruit",
        [
            ("apple", "apples", "pomme"),
            ("banana", "bananas", "banane"),
            ("cherry", "cherries", "cerise"),
            ("plum", "plums", "prune"),
            ("lemon", "lemons", "citron"),
            ("pear", "pears", "poire"),
            ("peach", "peaches", "pêche"),
            ("grape", "grapes", "raisin"),
            ("strawberry", "strawberries", "fraise"),
            ("apricot", "apricots", "abricot"),
            ("fig", "figs", "figue"),
            ("raspberry", "raspberries", "framboise"),
            ("pineapple", "pineapples", "ananas"),
            ("currant", "currants", "groseille"),
            ("olive", "olives", "olive"),
            ("date", "dates", "datte"),
        ],
    ),
    (
        "tool",
        [
            ("hammer", "hammers", "marteau"),
            ("saw", "saws", "scie"),
            ("drill", "drills", "perceuse"),
            ("spade", "spades", "bêche"),
            ("rake", "rakes", "râteau"),
            ("axe", "axes", "hache"),
            ("shovel", "shovels", "pelle"),
            ("wrench", "wrenches", "clé"),
            ("ladder", "ladders", "échelle"),
            ("chisel", "chisels", "ciseau"),
            ("brush", "brushes", "brosse"),
            ("needle", "needles", "aiguille"),
            ("nail", "nails", "clou"),
            ("screw", "screws", "vis"),
            ("broom", "brooms", "balai"),
            ("file", "files", "lime"),
        ],
    ),
    (
        "garment",
        [
            ("shirt", "shirts", "chemise"),
            ("hat", "hats", "chapeau"),
            ("coat", "coats", "manteau"),
            ("sock", "socks", "chaussette"),
            ("glove", "gloves", "gant"),
            ("scarf", "scarves", "écharpe"),
            ("jacket", "jackets", "veste"),
            ("dress", "dresses", "robe"),
            ("belt", "belts", "ceinture"),
            ("skirt", "skirts", "jupe"),
            ("shoe", "shoes", "chaussure"),
            ("boot", "boots", "botte"),
            ("tie", "ties", "cravate"),
            ("apron", "aprons", "tablier"),
            ("cap", "caps", "casquette"),
            ("vest", "vests", "gilet"),
        ],
    ),
];

/// A scale of adjectives: two synonyms for each end, and whether they describe people.
pub struct Scale {
    pub ends: [[&'static str; 2]; 2],
    pub of_people: bool,
}

pub const SCALES: [Scale; 12] = [
    Scale { ends: [["happy", "glad"], ["sad", "gloomy"]], of_people: true },
    Scale { ends: [["kind", "friendly"], ["rude", "mean"]], of_people: true },
    Scale { ends: [["healthy", "fit"], ["ill", "sick"]], of_people: true },
    Scale { ends: [["rich", "wealthy"], ["poor", "penniless"]], of_people: true },
    Scale { ends: [["brave", "bold"], ["afraid", "scared"]], of_people: true },
    Scale { ends: [["clever", "wise"], ["silly", "foolish"]], of_people: true },
    Scale { ends: [["awake", "alert"], ["asleep", "drowsy"]], of_people: true },
    Scale { ends: [["clean", "spotless"], ["dirty", "dusty"]], of_people: false },
    Scale { ends: [["new", "modern"], ["old", "ancient"]], of_people: false },
    Scale { ends: [["big", "huge"], ["small", "tiny"]], of_people: false },
    Scale { ends: [["safe", "harmless"], ["dangerous", "risky"]], of_people: false },
    Scale { ends: [["smooth", "even"], ["rough", "bumpy"]], of_people: false },
];

/// Places: two outdoors, then two indoors.
pub const SIGHTS: [&str; 4] = ["by the sea", "in the forest", "in the office", "in the attic"];

/// A word with two senses, an animal and a thing. The place determines the sense: half of the words mean the animal outdoors and
/// the thing indoors (a seal), the others the thing outdoors and the animal indoors (a bat).
pub struct Homonym {
    pub word: &'static str,
    pub animal_outdoors: bool,
}

impl Homonym {
    /// Whether the word means the animal at this place (an index of [`SIGHTS`]).
    pub fn is_animal_at(&self, place: usize) -> bool {
        self.animal_outdoors == (place < SIGHTS.len() / 2)
    }
}

pub const HOMONYMS: [Homonym; 6] = [
    Homonym { word: "seal", animal_outdoors: true },
    Homonym { word: "crane", animal_outdoors: true },
    Homonym { word: "falcon", animal_outdoors: true },
    Homonym { word: "bat", animal_outdoors: false },
    Homonym { word: "mouse", animal_outdoors: false },
    Homonym { word: "kite", animal_outdoors: false },
];

/// Sentence endings that fit an animal, and endings that fit a thing.
pub const ANIMAL_OUTCOMES: [&str; 2] = ["gave it food", "saw it sleep"];
pub const THING_OUTCOMES: [&str; 2] = ["repaired it", "paid for it"];
