//! The one token of this first form.
//!
//! Owns: the comparison. Never keeps the token's text, and never shows its hash.

use std::fmt;

use axum::http::HeaderValue;
use sha2::{Digest as _, Sha256};

/// A bearer token, kept as its SHA-256.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Few enough to guess, or longer than a header should be.
    #[error("a token has {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} characters")]
    Length,
    /// It could not stand in a header.
    #[error("a token consists of visible ASCII characters, without spaces")]
    Character,
}

impl Token {
    /// The token with this text.
    pub fn new(text: &str) -> Result<Token, TokenError> {
        if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&text.len()) {
            return Err(TokenError::Length);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Character);
        }
        Ok(Token(Sha256::digest(text.as_bytes()).into()))
    }

    /// Whether an `Authorization` header holds this token. Takes as long for a token that is nearly
    /// right as for any other.
    pub fn admits(&self, authorization: Option<&HeaderValue>) -> bool {
        let Some(header) = authorization.map(HeaderValue::as_bytes) else {
            return false;
        };
        let Some((scheme, text)) = header.split_at_checked(BEARER.len()) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(BEARER) && self.is(text.trim_ascii())
    }

    /// Whether this text is the token, as [`Token::admits`] tells.
    pub fn is(&self, text: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(text).into();
        let pairs = self.0.iter().zip(&given);
        let differs = pairs.fold(0, |differs, (ours, theirs)| differs | (ours ^ theirs));
        std::hint::black_box(differs) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// RFC 6750, section 2.1.
const BEARER: &[u8] = b"Bearer ";

/// Sixteen characters of base 16 are 64 bits, which nobody guesses over HTTP.
pub const TOKEN_BYTES_MIN: usize = 16;

/// The longest token: room for any signed one, and no header of pages.
pub const TOKEN_BYTES_MAX: usize = 512;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "us_0123456789abcdef";

    #[test]
    fn only_the_whole_token_is_admitted() {
        let token = Token::new(TEXT).unwrap();
        let check = |header: &str, expected: bool| {
            let header = HeaderValue::from_str(header).unwrap();
            assert_eq!(token.admits(Some(&header)), expected, "{header:?}");
        };
        check(&format!("Bearer {TEXT}"), true);
        check(&format!("bearer {TEXT}"), true);
        check(&format!("Bearer  {TEXT} "), true);
        check(&format!("Bearer {TEXT}0"), false);
        check(&format!("Bearer {}", &TEXT[..TEXT.len() - 1]), false);
        check(&format!("Basic {TEXT}"), false);
        check(TEXT, false);
        check("Bearer ", false);
        check("", false);
        assert!(!token.admits(None));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn what_could_be_guessed_or_not_be_sent_is_no_token() {
        for (text, expected) in [
            ("", TokenError::Length),
            ("short", TokenError::Length),
            (&*"x".repeat(TOKEN_BYTES_MAX + 1), TokenError::Length),
            ("has spaces in it and so on", TokenError::Character),
            ("ümläute-ümläute-ümläute", TokenError::Character),
        ] {
            assert_eq!(Token::new(text).err(), Some(expected), "{text:?}");
        }
    }
}
