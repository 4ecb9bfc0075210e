//! Random JSON schemas.

use serde_json::{Map, Value, json};

/// A linear congruential generator (Knuth's MMIX constants).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A schema with definitions that it refers to.
pub fn schema(random: &mut Random) -> Value {
    let mut schema = part(random, 3);
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("$defs".to_owned(), json!({"leaf": part(random, 1), "node": part(random, 2)}));
    }
    schema
}

fn part(random: &mut Random, depth: u64) -> Value {
    let nested = if depth == 0 { 8 } else { 13 };
    let mut value = match random.below(nested) {
        0 => json!({"type": "null"}),
        1 => json!({"type": "boolean"}),
        2 => number(random, "integer"),
        3 => number(random, "number"),
        4 => string(random),
        5 => json!({"enum": [1, "a b", null, true, [1], {"x": 2}, 2.5]}),
        6 => json!({"const": random.pick(&[json!("é\"\\"), json!(-3), json!({"a": [null]}), json!(0.25)])}),
        7 => json!({"type": ["string", "integer", "null"]}),
        8 => array(random, depth),
        9 | 10 => object(random, depth),
        11 => {
            let key = *random.pick(&["anyOf", "anyOf", "oneOf", "allOf"]);
            json!({key: (0..=random.below(3)).map(|_| part(random, depth - 1)).collect::<Vec<_>>()})
        }
        _ => json!({"$ref": *random.pick(&["#/$defs/leaf", "#/$defs/node"])}),
    };
    // What grammars do not support.
    if random.one_in(25) {
        let keyword = *random.pick(&["not", "if", "contains", "propertyNames", "unevaluatedProperties"]);
        value[keyword] = json!({"type": "string"});
    }
    value
}

fn number(random: &mut Random, kind: &str) -> Value {
    let mut fields = Map::from_iter([("type".to_owned(), kind.into())]);
    let low = random.below(200) as i64 - 100;
    let high = low + random.below(100) as i64;
    if random.one_in(2) {
        fields.insert((*random.pick(&["minimum", "exclusiveMinimum"])).to_owned(), low.into());
    }
    if random.one_in(2) {
        fields.insert((*random.pick(&["maximum", "exclusiveMaximum"])).to_owned(), high.into());
    }
    if random.one_in(4) {
        fields.insert("multipleOf".to_owned(), random.pick(&[json!(2), json!(5), json!(0.5), json!(0.01)]).clone());
    }
    fields.into()
}

fn string(random: &mut Random) -> Value {
    let mut fields = Map::from_iter([("type".to_owned(), "string".into())]);
    if random.one_in(2) {
        fields.insert("minLength".to_owned(), random.below(5).into());
        fields.insert("maxLength".to_owned(), (4 + random.below(9)).into());
    }
    if random.one_in(3) {
        fields.insert("pattern".to_owned(), (*random.pick(&["^[a-z]+$", "[0-9]", "^a|b$", "^\\d{3}-\\w*$"])).into());
    }
    if random.one_in(4) {
        fields.insert(
            "format".to_owned(),
            (*random.pick(&["date", "time", "date-time", "uuid", "ipv4", "email", "hostname"])).into(),
        );
    }
    fields.into()
}

fn array(random: &mut Random, depth: u64) -> Value {
    let mut fields = Map::from_iter([("type".to_owned(), "array".into())]);
    if random.one_in(2) {
        fields.insert("items".to_owned(), part(random, depth - 1));
    }
    if random.one_in(3) {
        fields.insert("prefixItems".to_owned(), json!([part(random, depth - 1), part(random, depth - 1)]));
    }
    let least = random.below(3);
    fields.insert("minItems".to_owned(), least.into());
    fields.insert("maxItems".to_owned(), (least + random.below(3)).into());
    if random.one_in(20) {
        fields.insert("uniqueItems".to_owned(), true.into());
    }
    fields.into()
}

fn object(random: &mut Random, depth: u64) -> Value {
    let names = ["a", "b c", "long_name", "é", "\"q\""];
    let properties: Map<String, Value> =
        names.iter().filter(|_| random.one_in(2)).map(|name| ((*name).to_owned(), Value::Null)).collect();
    let properties: Map<String, Value> =
        properties.into_iter().map(|(name, _)| (name, part(random, depth - 1))).collect();
    let required: Vec<&String> = properties.keys().filter(|_| random.one_in(2)).collect();
    let mut value = json!({"type": "object", "required": required, "properties": properties});
    match random.below(5) {
        0 => value["additionalProperties"] = part(random, 0),
        1 => value["patternProperties"] = json!({"^x_": part(random, 0)}),
        2 => value["maxProperties"] = (required.len() as u64 + random.below(3)).into(),
        3 => {}
        _ => value["additionalProperties"] = false.into(),
    }
    value
}
