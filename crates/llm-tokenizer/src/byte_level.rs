//! The alphabet of byte-level vocabularies: each byte is written as one printable character (Radford et al. 2019, GPT-2).
//!
//! Bytes that are printable characters of Latin-1 are written as that character, the others, in ascending order, as the characters
//! from U+0100 on: a blank is `Ġ`, a line end `Ċ`.

/// The character of a byte.
pub(crate) fn char_of(byte: u8) -> char {
    let code = u32::from(byte);
    let code = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0..=0x20 => 0x100 + code,
        0x7f..=0xa0 => 0x121 + code - 0x7f,
        0xad => 0x143,
    };
    char::from_u32(code).unwrap_or_default()
}

/// The byte of a character; `None` if the alphabet does not contain the character.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// A token as the vocabulary spells it.
pub(crate) fn spelled(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char_of(*byte)).collect()
}

/// The bytes of a token; `None` if it contains a character that is not in the alphabet.
pub(crate) fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn the_alphabet_is_that_of_the_tokenizers_crate() {
        let ours: HashSet<char> = (0..=255).map(char_of).collect();
        assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
        assert!((0..=255).all(|byte| byte_of(char_of(byte)) == Some(byte)));
        assert_eq!((spelled(b" a\n\xad"), byte_of('\u{144}')), ("ĠaĊŃ".to_owned(), None));
        assert_eq!(bytes_of("ĠaĊ").as_deref(), Some(&b" a\n"[..]));
    }
}
