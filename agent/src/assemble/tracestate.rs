//! tracestate as W3C Trace Context (Level 2) has it: lines are joined, a list that breaks a rule is dropped whole.

/// Most members in a list (3.3.1.1).
const MAX_MEMBERS: usize = 32;
/// Most characters passed on; what is longer loses whole members, the longest first (3.3.1.5 asks for at least 512).
const MAX_CHARS: usize = 512;
/// Most bytes collected over several lines; more than this is no list of 32 members worth keeping.
pub(super) const MAX_COLLECTED: usize = 8192;

/// The list in `lines` (joined by commas, in the order they came), ready to pass on. `None` when it is empty or breaks
/// a rule. `cut`: the end is missing, so the last member is not whole and goes.
pub(super) fn normalise(lines: &str, cut: bool) -> Option<Box<str>> {
    let whole = if cut {
        lines.rsplit_once(',').map_or("", |(before, _)| before)
    } else {
        lines
    };
    let mut members = Vec::new();
    for member in whole.split(',') {
        let member = member.trim_matches([' ', '\t']);
        if member.is_empty() {
            continue;
        }
        if members.len() == MAX_MEMBERS || !is_member(member) {
            return None;
        }
        members.push(member);
    }
    shorten(&mut members);
    if members.is_empty() {
        return None;
    }
    Some(members.join(",").into_boxed_str())
}

fn shorten(members: &mut Vec<&str>) {
    let mut chars = members
        .iter()
        .map(|member| member.len() + 1)
        .sum::<usize>()
        .saturating_sub(1);
    while chars > MAX_CHARS {
        let Some((longest, _)) = members.iter().enumerate().max_by_key(|(_, member)| member.len()) else {
            return;
        };
        chars = chars.saturating_sub(members.remove(longest).len() + 1);
    }
}

/// `key "=" value` (3.3.1.3).
fn is_member(member: &str) -> bool {
    member
        .split_once('=')
        .is_some_and(|(key, value)| is_key(key.as_bytes()) && is_value(value.as_bytes()))
}

fn is_key(key: &[u8]) -> bool {
    let allowed = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
    key.len() <= 256 && key.first().is_some_and(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9')) && key.iter().all(allowed)
}

fn is_value(value: &[u8]) -> bool {
    let allowed = |b: &u8| matches!(b, b' '..=b'~') && !matches!(b, b',' | b'=');
    value.len() <= 256 && value.last().is_some_and(|b| *b != b' ') && value.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::{normalise, MAX_CHARS};

    fn list(count: usize) -> String {
        (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn lists_that_arrive() {
        let long_key = format!("{}=1", "z".repeat(256));
        for (input, output) in [
            ("foo=1", "foo=1"),
            ("foo=1,bar=2", "foo=1,bar=2"),
            (" foo=1 \t,\tbar=2 ", "foo=1,bar=2"),
            ("foo=1,,\t,bar=2,", "foo=1,bar=2"),
            ("foo=1,foo=2", "foo=1,foo=2"),
            (
                "0az_-*/=!\"#$%&'()*+-./09:;<>?@AZ[\\]^_`az{|}~",
                "0az_-*/=!\"#$%&'()*+-./09:;<>?@AZ[\\]^_`az{|}~",
            ),
            ("foo@=1,foo@@bar=2,a@b@c=3", "foo@=1,foo@@bar=2,a@b@c=3"),
            ("foo=a b", "foo=a b"),
            (&long_key, &long_key),
        ] {
            assert_eq!(normalise(input, false).as_deref(), Some(output), "{input}");
        }
    }

    #[test]
    fn lists_dropped_whole() {
        let long_key = format!("good=1,{}=1", "z".repeat(257));
        let long_value = format!("good=1,a={}", "z".repeat(257));
        for input in [
            "",
            ",",
            " ",
            "foo",
            "foo=",
            "=1",
            "@foo=1",
            "Foo=1",
            "foo =1",
            "foo=1,bar@x y=2",
            "foo=1=2",
            "foo=b\u{e4}r",
            "foo.bar=1",
            "_foo=1",
            "foo=a\u{1}",
            &long_key,
            &long_value,
        ] {
            assert_eq!(normalise(input, false), None, "{input}");
        }
    }

    #[test]
    fn at_most_32_members() {
        assert_eq!(normalise(&list(32), false).as_deref(), Some(list(32).as_str()));
        assert_eq!(normalise(&list(33), false), None);
    }

    #[test]
    fn a_cut_line_loses_its_last_member() {
        assert_eq!(normalise("a=1,b=2,c=3", true).as_deref(), Some("a=1,b=2"));
        assert_eq!(normalise("a=1", true), None);
    }

    #[test]
    fn too_long_a_list_loses_its_longest_members() {
        let input = format!("a=1,b={},c=2,d={},e=3", "x".repeat(200), "y".repeat(250));
        assert_eq!(input.len(), 467);
        assert_eq!(normalise(&input, false).as_deref(), Some(input.as_str()));
        let longer = format!("{input},f={}", "z".repeat(100));
        let kept = normalise(&longer, false).unwrap_or_default();
        assert_eq!(
            &*kept,
            format!("a=1,b={},c=2,e=3,f={}", "x".repeat(200), "z".repeat(100))
        );
        assert!(kept.len() <= MAX_CHARS);
    }
}
