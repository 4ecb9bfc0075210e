//! Characters: Unicode normalisation and control characters; e-mail addresses and IP addresses.

use std::net::Ipv4Addr;

use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// Changes the characters of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unicode {
    /// Whether to compose characters (NFC), default false: a byte-level tokenizer encodes any text, and NFC cannot be undone.
    pub nfc: bool,
    /// Whether to remove control characters but tabs and line ends, byte order marks and noncharacters, default true.
    pub remove_control: bool,
}

impl Default for Unicode {
    fn default() -> Self {
        Self { nfc: false, remove_control: true }
    }
}

impl Unicode {
    /// The changed text, or `None` if nothing changes.
    pub(super) fn apply(&self, text: &str) -> Option<String> {
        let mut changed = None;
        if self.remove_control && text.contains(is_control) {
            changed = Some(text.replace(is_control, ""));
        }
        let text = changed.as_deref().unwrap_or(text);
        if self.nfc && !is_nfc(text) {
            changed = Some(text.nfc().collect());
        }
        changed
    }
}

fn is_control(c: char) -> bool {
    let noncharacter = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    (c.is_control() && !matches!(c, '\t' | '\n' | '\r')) || c == '\u{feff}' || noncharacter
}

/// Replaces e-mail addresses and public IPv4 addresses by addresses that are reserved for examples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Addresses {
    /// Whether to replace e-mail addresses, default true.
    pub email: bool,
    /// Whether to replace public IPv4 addresses, default true. Private, loopback and other special addresses stay.
    pub ipv4: bool,
}

impl Default for Addresses {
    fn default() -> Self {
        Self { email: true, ipv4: true }
    }
}

/// Domains of RFC 2606; a document uses them in turn.
const EMAILS: [&str; 2] = ["email@example.com", "firstname.lastname@example.org"];
/// Addresses of RFC 5737; a document uses them in turn.
const IPV4: [&str; 3] = ["192.0.2.1", "198.51.100.1", "203.0.113.1"];

/// [`Addresses`] with its patterns.
#[derive(Debug, Clone)]
pub(super) struct Scrubber {
    email: Option<Regex>,
    ipv4: Option<Regex>,
}

impl Scrubber {
    pub fn new(addresses: &Addresses) -> Result<Self, regex::Error> {
        let byte = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)";
        // The atoms of RFC 5322, section 3.2.3; the domains of RFC 1035, or an address in brackets.
        let (atom, label) = ("[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+", "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?");
        let literal = format!(r"\[(?:{byte}\.){{3}}(?:{byte}|[A-Za-z0-9-]*[A-Za-z0-9]:)\]");
        let email = format!(r"\b{atom}(?:\.{atom})*@(?:(?:{label}\.)+{label}|{literal})");
        let ipv4 = format!(r"(?:{byte}\.){{3}}{byte}");
        let compiled = |wanted: bool, pattern: &str| wanted.then(|| Regex::new(pattern)).transpose();
        Ok(Self { email: compiled(addresses.email, &email)?, ipv4: compiled(addresses.ipv4, &ipv4)? })
    }

    /// The changed text, or `None` if nothing changes.
    pub fn apply(&self, text: &str) -> Option<String> {
        let mut changed: Option<String> = None;
        if let Some(pattern) = self.email.as_ref().filter(|_| text.contains('@')) {
            let mut next = EMAILS.iter().cycle();
            let replaced = pattern.replace_all(text, |_: &Captures| next.next().copied().unwrap_or_default());
            changed = (replaced != text).then(|| replaced.into_owned());
        }
        if let Some(pattern) = &self.ipv4 {
            let text = changed.as_deref().unwrap_or(text);
            let mut next = IPV4.iter().cycle();
            let replaced = pattern.replace_all(text, |found: &Captures| match found[0].parse::<Ipv4Addr>() {
                Ok(address) if is_public(address) => next.next().copied().unwrap_or_default().to_owned(),
                _ => found[0].to_owned(),
            });
            if replaced != text {
                changed = Some(replaced.into_owned());
            }
        }
        changed
    }
}

/// Whether an address is globally reachable by the registry of special addresses of IANA, as `ipaddress` of Python reads it.
fn is_public(address: Ipv4Addr) -> bool {
    const SPECIAL: [([u8; 4], u32); 14] = [
        ([0, 0, 0, 0], 8),
        ([10, 0, 0, 0], 8),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        ([192, 0, 0, 0], 24),
        ([192, 0, 2, 0], 24),
        ([192, 168, 0, 0], 16),
        ([198, 18, 0, 0], 15),
        ([198, 51, 100, 0], 24),
        ([203, 0, 113, 0], 24),
        ([240, 0, 0, 0], 4),
        ([255, 255, 255, 255], 32),
    ];
    let bits = address.to_bits();
    let is_in = |(net, length): &([u8; 4], u32)| (bits ^ u32::from_be_bytes(*net)) >> (32 - length) == 0;
    // Two anycast addresses within 192.0.0.0/24 are reachable.
    matches!(address.octets(), [192, 0, 0, 9 | 10]) || !SPECIAL.iter().any(is_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_removed_and_compositions_only_on_request() {
        let text = "a\u{0}b\u{85}\tc\n\u{feff}e\u{301}\u{fffe}";
        assert_eq!(Unicode::default().apply(text).unwrap(), "ab\tc\ne\u{301}");
        let nfc = Unicode { nfc: true, remove_control: false };
        assert_eq!(nfc.apply("e\u{301} ﬁ ²").unwrap(), "é ﬁ ²");
        assert_eq!(nfc.apply("é"), None);
        assert_eq!(Unicode::default().apply("a\n\tb"), None);
    }
}
