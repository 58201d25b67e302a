//! What `protocol::tracestate` is held against: the same rules over slices, also for the fuzzer.
#![allow(unreachable_pub, reason = "part of a test binary")]

/// The list as a reader written from the Recommendation makes it, all of its lines at once.
pub fn read(lines: &[Vec<u8>], cut: bool) -> Vec<u8> {
    let whole = lines.join(&b',');
    let mut members: Vec<&[u8]> = whole.split(|byte| *byte == b',').collect();
    if cut {
        members.pop();
    }
    let mut members: Vec<&[u8]> = members
        .into_iter()
        .map(trim)
        .filter(|member| !member.is_empty())
        .collect();
    if members.len() > 32 || !members.iter().all(|member| is_member(member)) {
        return Vec::new();
    }
    while members.join(&b',').len() > 512 {
        let longest = members.iter().map(|member| member.len()).max();
        if let Some(last) = members.iter().rposition(|member| Some(member.len()) == longest) {
            members.remove(last);
        }
    }
    members.join(&b',')
}

fn trim(mut member: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = member {
        member = rest;
    }
    member
}

fn is_member(member: &[u8]) -> bool {
    let Some(equals) = member.iter().position(|byte| *byte == b'=') else {
        return false;
    };
    let (key, value) = (&member[..equals], &member[equals + 1..]);
    let first = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let value_character = |byte: &u8| (0x20..=0x7e).contains(byte) && *byte != b'=';
    (1..=256).contains(&key.len())
        && first(&key[0])
        && key.iter().all(|byte| first(byte) || b"_-*/@".contains(byte))
        && (1..=256).contains(&value.len())
        && value.iter().all(value_character)
}
