//! The words that prompts are made of: short and common, so that most tokenizers
//! make about one token of each. With its blank a word has four characters on
//! average, which is what [`CHARS_PER_TOKEN`] counts on.

use crate::chance::{Chance, Purpose};

/// Characters for each token that a prompt is asked to have.
pub(crate) const CHARS_PER_TOKEN: u64 = 4;

const WORDS: &str = "a air all an and any are arm art as at bad bed big bit box boy bus but by \
can cap car cat cow cup cut day did do dog dry ear eat egg end eye far few fit fly for fun \
get go got had has hat he her him his hot how i ice if in is it its job key kid last law led \
leg let lie lot low man map may me men met mix more most my net new no nor not now odd of off \
oil old on one or our out own page path pay pen plan put ran read real red rest road rule run \
salt same say sea see send set she show sit six sky so some son step sun take tea tell ten than \
that the them then they this time to too top tree two up us use very war was way we week well \
went were what when who why will wind with wood work year yes yet you";

/// Bytes of the text that prompts are cut from.
const CORPUS_BYTES: usize = 256 * 1024;

/// A long text of words that a seed fixes. It has only letters and blanks, so that it
/// stands in JSON as it is.
#[derive(Debug)]
pub(crate) struct Corpus {
    text: Vec<u8>,
}

impl Corpus {
    pub(crate) fn new(seed: u64) -> Self {
        let words: Vec<&str> = WORDS.split(' ').collect();
        let mut chance = Chance::new(seed, Purpose::Words, 0);
        let mut text = Vec::with_capacity(CORPUS_BYTES + 8);
        while text.len() < CORPUS_BYTES {
            let word = words[chance.below(words.len() as u64) as usize];
            text.extend_from_slice(word.as_bytes());
            text.push(b' ');
        }
        text.truncate(CORPUS_BYTES);
        Self { text }
    }

    /// Appends exactly `chars` characters that begin with sixteen of their own, so
    /// that two different streams of chance share no beginning.
    pub(crate) fn append(&self, out: &mut Vec<u8>, mut chance: Chance, chars: usize) {
        let end = out.len() + chars;
        push_letters(out, chance.next_u64(), end);
        while out.len() < end {
            let at = chance.below(self.text.len() as u64) as usize;
            let piece = &self.text[at..];
            out.extend_from_slice(&piece[..piece.len().min(end - out.len())]);
        }
    }
}

/// Sixteen letters from `a` to `p` for 64 bits, and a blank.
fn push_letters(out: &mut Vec<u8>, mut word: u64, end: usize) {
    for _ in 0..16 {
        if out.len() < end {
            out.push(b'a' + (word & 15) as u8);
            word >>= 4;
        }
    }
    if out.len() < end {
        out.push(b' ');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_length_asked_for_and_no_common_beginning() {
        let corpus = Corpus::new(1);
        let text = |item, chars| {
            let mut out = Vec::new();
            corpus.append(&mut out, Chance::new(9, Purpose::Call, item), chars);
            out
        };
        for chars in [1, 16, 17, 100, 600_000] {
            let text = text(3, chars);
            assert_eq!(text.len(), chars);
            assert!(
                text.iter()
                    .all(|byte| byte.is_ascii_lowercase() || *byte == b' ')
            );
        }
        assert_eq!(text(3, 100), text(3, 100));
        assert_ne!(text(3, 16)[..16], text(4, 16)[..16]);
    }

    #[test]
    fn a_word_and_its_blank_have_four_characters_on_average() {
        let corpus = Corpus::new(1);
        let blanks = corpus.text.iter().filter(|byte| **byte == b' ').count();
        let mean = corpus.text.len() as f64 / blanks as f64;
        assert!((mean - CHARS_PER_TOKEN as f64).abs() < 0.15, "{mean}");
    }
}
