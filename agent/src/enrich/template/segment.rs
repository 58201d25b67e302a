//! One segment of a path: a name that stays, or what it looks like.

use std::net::IpAddr;

use super::letters::{read_like_a_word, LONGEST};

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::enrich) enum Segment<'a> {
    /// Stays as it is.
    Literal(&'a str),
    /// Is replaced; a file's extension is kept.
    Placeholder(&'static str, &'static str),
}

impl Segment<'_> {
    /// Appends `/` and the segment.
    pub(in crate::enrich) fn write(self, out: &mut String) {
        out.push('/');
        match self {
            Self::Literal(text) => out.push_str(text),
            Self::Placeholder(name, extension) => {
                out.push_str(name);
                out.push_str(extension);
            }
        }
    }
}

/// Longer segments are no names.
const SEGMENT_BYTES: usize = 64;
/// A title in words is text of the application's, not of its routes.
const WORDS: usize = 6;
/// Letters outside ASCII are not scored; a name of more is not kept.
const FOREIGN_CHARS: usize = 24;

/// Names with digits that are not numbered things.
const KNOWN: &[&str] = &[
    "sha1", "sha224", "sha256", "sha384", "sha512", "md5", "x509", "base64", "base32", "h264", "h265", "i18n", "l10n",
    "a11y", "o11y", "k8s", "b2b", "b2c", "p2p", "e2e", "m3u8", "log4j", "win32", "x86", "x64", "arm64", "amd64",
    "i386", "oauth2", "2fa", "mfa", "2d", "3d", "1st", "2nd", "3rd", "24h", "7d", "30d", "mp3", "mp4", "s3", "ec2",
    "utf8", "utf16", "iso8601", "h2c",
];

/// Extensions of files; what else follows a dot is a word like any other.
const EXTENSIONS: &[&str] = &[
    ".html",
    ".htm",
    ".xhtml",
    ".js",
    ".mjs",
    ".cjs",
    ".css",
    ".map",
    ".json",
    ".xml",
    ".txt",
    ".md",
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
    ".toml",
    ".ico",
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".svg",
    ".webp",
    ".avif",
    ".bmp",
    ".tiff",
    ".woff",
    ".woff2",
    ".ttf",
    ".otf",
    ".eot",
    ".pdf",
    ".doc",
    ".docx",
    ".xls",
    ".xlsx",
    ".ppt",
    ".pptx",
    ".zip",
    ".gz",
    ".tgz",
    ".tar",
    ".bz2",
    ".xz",
    ".zst",
    ".7z",
    ".rar",
    ".mp3",
    ".mp4",
    ".webm",
    ".ogg",
    ".wav",
    ".m4a",
    ".m4v",
    ".mov",
    ".avi",
    ".mkv",
    ".m3u8",
    ".ts",
    ".mpd",
    ".wasm",
    ".php",
    ".asp",
    ".aspx",
    ".jsp",
    ".do",
    ".action",
    ".cgi",
    ".pl",
    ".py",
    ".rb",
    ".go",
    ".rs",
    ".sh",
    ".exe",
    ".dll",
    ".so",
    ".jar",
    ".war",
    ".apk",
    ".deb",
    ".rpm",
    ".iso",
    ".img",
    ".bin",
    ".sql",
    ".db",
    ".log",
    ".bak",
    ".rss",
    ".atom",
    ".ics",
    ".vcf",
    ".eml",
    ".proto",
    ".graphql",
    ".wsdl",
    ".xsd",
    ".webmanifest",
    ".well-known",
];

/// Judges one segment, percent-decoded and without slashes. The order is that of docs/templating.md.
pub(in crate::enrich) fn classify(segment: &[u8]) -> Segment<'_> {
    // Path parameters (`;jsessionid=..`) never stay.
    let end = segment.iter().position(|byte| *byte == b';').unwrap_or(segment.len());
    let segment = segment.get(..end).unwrap_or_default();
    if is_plain_word(segment) || matches!(segment, [b'v', b'0'..=b'9']) {
        return literal(segment);
    }
    if !segment.is_empty() && segment.iter().all(u8::is_ascii_digit) {
        return Segment::Placeholder("{id}", "");
    }
    if is_uuid(segment) {
        return Segment::Placeholder("{uuid}", "");
    }
    if segment.is_empty() || segment == b"." || segment == b".." {
        return literal(segment);
    }
    let Ok(text) = std::str::from_utf8(segment) else {
        return Segment::Placeholder("{bytes}", "");
    };
    if text.chars().any(char::is_control) {
        return Segment::Placeholder("{bytes}", "");
    }
    let (stem, extension) = split_extension(text);
    match judge(stem) {
        None => Segment::Literal(text),
        Some(name) => Segment::Placeholder(name, extension),
    }
}

fn literal(segment: &[u8]) -> Segment<'_> {
    std::str::from_utf8(segment).map_or(Segment::Placeholder("{bytes}", ""), Segment::Literal)
}

/// The common case: one word in lower case.
fn is_plain_word(segment: &[u8]) -> bool {
    // Sixteen letters and more may be hex digits.
    (1..16).contains(&segment.len()) && segment.iter().all(u8::is_ascii_lowercase) && read_like_a_word(segment)
}

fn split_extension(text: &str) -> (&str, &'static str) {
    let known = text.rfind('.').filter(|at| *at > 0).and_then(|at| {
        let (stem, extension) = (text.get(..at)?, text.get(at..)?);
        let known = EXTENSIONS.iter().find(|known| known.eq_ignore_ascii_case(extension))?;
        Some((stem, *known))
    });
    known.unwrap_or((text, ""))
}

/// `None`: a name that stays.
fn judge(text: &str) -> Option<&'static str> {
    // Pictures for dense screens: `logo@2x.png`.
    let text = text
        .strip_suffix("@2x")
        .or_else(|| text.strip_suffix("@3x"))
        .unwrap_or(text);
    let shape = Shape::of(text);
    if let Some(name) = identifier(text, shape).or_else(|| number(text, shape)) {
        return Some(name);
    }
    if text.len() > SEGMENT_BYTES {
        return Some(if shape.spaces == 0 && shape.odd == 0 {
            "{token}"
        } else {
            "{text}"
        });
    }
    if shape.odd > 0 || shape.spaces > 0 {
        return Some("{text}");
    }
    words(text)
}

/// Counts of what a segment is made of.
#[derive(Clone, Copy, Default)]
struct Shape {
    digits: usize,
    letters: usize,
    hex_letters: usize,
    foreign: usize,
    dashes: usize,
    dots: usize,
    colons: usize,
    ats: usize,
    spaces: usize,
    /// Characters that are in no name.
    odd: usize,
}

impl Shape {
    fn of(text: &str) -> Self {
        let mut shape = Self::default();
        for c in text.chars() {
            match c {
                '0'..='9' => shape.digits += 1,
                'a'..='f' | 'A'..='F' => {
                    shape.letters += 1;
                    shape.hex_letters += 1;
                }
                'a'..='z' | 'A'..='Z' => shape.letters += 1,
                '-' => shape.dashes += 1,
                '.' => shape.dots += 1,
                ':' => shape.colons += 1,
                '@' => shape.ats += 1,
                '_' | '+' | '!' | '$' | '~' | '*' => {}
                ' ' => shape.spaces += 1,
                _ if c.is_alphabetic() => shape.foreign += 1,
                _ => shape.odd += 1,
            }
        }
        shape
    }
}

/// Things that are made to name one thing, or one person.
fn identifier(text: &str, shape: Shape) -> Option<&'static str> {
    let len = text.len();
    if shape.digits == len {
        return Some("{id}");
    }
    if shape.ats > 0 {
        return at_sign(text);
    }
    if text.starts_with('~') && len > 1 {
        return Some("{handle}");
    }
    let bare = text.strip_prefix("urn:uuid:").unwrap_or(text);
    if is_uuid(
        bare.strip_prefix('{')
            .and_then(|bare| bare.strip_suffix('}'))
            .unwrap_or(bare)
            .as_bytes(),
    ) {
        return Some("{uuid}");
    }
    let bare = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    let all_hex = bare.len() == shape.digits + shape.hex_letters - (len - bare.len()) / 2;
    if all_hex && ((bare.len() >= 7 && shape.digits > 0) || bare.len() >= 16 || bare.len() < len) {
        return Some("{hash}");
    }
    if shape.dots == 3 || shape.colons > 0 {
        let host = text
            .rsplit_once(':')
            .filter(|_| shape.colons == 1)
            .map_or(text, |(host, _)| host);
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Some("{ip}");
        }
    }
    (text.starts_with("eyJ") && len >= 16).then_some("{token}")
}

/// `someone@example.com`, `@someone`.
fn at_sign(text: &str) -> Option<&'static str> {
    let (before, after) = text.rsplit_once('@')?;
    Some(match (before.is_empty(), after.contains('.')) {
        (true, _) => "{handle}",
        (false, true) => "{email}",
        (false, false) => "{text}",
    })
}

fn is_uuid(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Dates, phone numbers, amounts, coordinates; a version of two or three short parts is a name.
fn number(text: &str, shape: Shape) -> Option<&'static str> {
    if shape.digits == 0 {
        return None;
    }
    if is_date(text) {
        return Some("{date}");
    }
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b"+-.,: ()eExX%*'_".contains(&byte))
    {
        return None;
    }
    let grouped = shape.dashes > 0 || shape.spaces > 0 || text.contains('(');
    if shape.letters == 0
        && (7..=15).contains(&shape.digits)
        && (text.starts_with('+') || (grouped && !text.starts_with('-')))
    {
        return Some("{phone}");
    }
    (!is_dotted_version(text)).then_some("{number}")
}

/// `1.1`, `2.0.12`.
fn is_dotted_version(text: &str) -> bool {
    let mut parts = 0;
    let short = text.split('.').all(|part| {
        parts += 1;
        (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    });
    short && (2..=3).contains(&parts)
}

/// `2024-01-31`, `31.01.2024`, `2024_01`, `2024-01-31T10:00:00Z`, `24.12.31`; eight digits in a row are an id.
fn is_date(text: &str) -> bool {
    let day = text.split(['T', ' ']).next().unwrap_or(text);
    let mut lengths = [0usize; 3];
    let mut parts = 0;
    for part in day.split(['-', '.', '_']) {
        let Some(length) = lengths.get_mut(parts) else {
            return false;
        };
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return false;
        }
        *length = part.len();
        parts += 1;
    }
    matches!(
        (parts, lengths),
        (2, [4, 1..=2, _] | [1..=2, 4, _]) | (3, [4, 1..=2, 1..=2] | [1..=2, 1..=2, 4] | [2, 2, 2])
    )
}

/// A name is a few words, each of which reads like one.
fn words(text: &str) -> Option<&'static str> {
    if text.chars().filter(|c| !c.is_ascii()).count() > FOREIGN_CHARS {
        return Some("{text}");
    }
    let mut count = 0;
    let mut lettered = false;
    for word in text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        count += 1;
        lettered |= word.chars().any(char::is_alphabetic);
        if let Some(name) = word_is_not_a_name(word) {
            return Some(name);
        }
    }
    // `2-4` is no name; a title is not one either, and punctuation alone is nothing.
    match (count > WORDS, lettered || text == "*" || is_dotted_version(text)) {
        (false, true) => None,
        (false, false) if count > 0 => Some("{number}"),
        _ => Some("{text}"),
    }
}

fn word_is_not_a_name(word: &str) -> Option<&'static str> {
    if !word.is_ascii() {
        return word.chars().any(char::is_numeric).then_some("{id}");
    }
    let bytes = word.as_bytes();
    let digits = bytes.iter().filter(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return (!camel_case_reads_well(bytes)).then_some("{token}");
    }
    if KNOWN.iter().any(|known| known.eq_ignore_ascii_case(word)) || is_version(word) {
        return None;
    }
    // A name and its number (`page2`, `web-10`), the number short.
    let stem = word.trim_end_matches(|c: char| c.is_ascii_digit()).as_bytes();
    let number = bytes.len() - stem.len();
    if number <= 2 && number == digits && camel_case_reads_well(stem) {
        return None;
    }
    Some(match bytes.len() {
        len if len >= 7 && bytes.iter().all(u8::is_ascii_hexdigit) => "{hash}",
        len if len >= 16 => "{token}",
        _ => "{id}",
    })
}

/// `v1`, `v1beta2`, `V20`.
fn is_version(word: &str) -> bool {
    let Some(rest) = word.strip_prefix(['v', 'V']) else {
        return false;
    };
    let number = rest.bytes().take_while(u8::is_ascii_digit).count();
    let suffix = rest
        .get(number..)
        .unwrap_or_default()
        .trim_end_matches(|c: char| c.is_ascii_digit());
    let last = rest.len() - number - suffix.len();
    (1..=2).contains(&number) && last <= 2 && matches!(suffix, "" | "alpha" | "beta" | "rc" | "p")
}

/// Splits `getUserByID` at its capitals. Each part is short enough, and the letters of all of it read like words.
fn camel_case_reads_well(letters: &[u8]) -> bool {
    let mut part = 0;
    let mut longest = 0;
    let mut humps = 0;
    let mut previous_lower = false;
    for letter in letters {
        let lower = letter.is_ascii_lowercase();
        if previous_lower && !lower {
            humps += 1;
            part = 0;
        }
        part += 1;
        longest = longest.max(part);
        previous_lower = lower;
    }
    // Random mixed case turns every second letter or so.
    let turns_too_often = humps >= 3 && humps * 3 > letters.len();
    longest <= LONGEST && !turns_too_often && read_like_a_word(letters)
}
