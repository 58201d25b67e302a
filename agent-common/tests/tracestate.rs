//! tracestate lists: the rules of W3C Trace Context (Level 2), and agreement with a reader written from its text.
#![cfg(feature = "host")]

mod plain_tracestate;

use plain_tracestate::read;
use proptest::prelude::*;
use spanwire_common::protocol::tracestate::{state, TraceState, LIST_BYTES, MEMBERS};

/// The list that `lines` make; the end of the last one is missing if `cut`.
fn list(lines: &[&[u8]], cut: bool) -> TraceState {
    let mut list = TraceState::default();
    for (i, line) in lines.iter().enumerate() {
        list.append(line, cut && i + 1 == lines.len());
    }
    list
}

fn text(lines: &[&str]) -> String {
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    String::from_utf8(list(&lines, false).bytes()).unwrap_or_default()
}

/// A list of `count` members.
fn members(count: usize) -> String {
    (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",")
}

#[test]
fn lists_that_arrive() {
    let characters = "0123456789abcdefghijklmnopqrstuvwxyz_-*/=!\"#$%&'()*+-./0123456789:;<>?\
                      @ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~";
    let long_key = format!("{}=1", "z".repeat(256));
    let long_value = format!("a={}", "v".repeat(256));
    let blanks = format!("foo=1{},bar=2", " \t".repeat(480));
    for (lines, kept) in [
        (&["foo=1"] as &[&str], "foo=1"),
        (&["foo=1,bar=2"], "foo=1,bar=2"),
        (&[" foo=1 \t,\tbar=2 "], "foo=1,bar=2"),
        (&["foo=1,,\t,bar=2,"], "foo=1,bar=2"),
        (
            &["foo=1,bar=2", "rojo=1,congo=2", "baz=3"],
            "foo=1,bar=2,rojo=1,congo=2,baz=3",
        ),
        (&["", " \t", "foo=1", ",", "bar=2", ""], "foo=1,bar=2"),
        (&["foo=1,foo=2", "foo=1"], "foo=1,foo=2,foo=1"),
        (&[characters], characters),
        (&["foo@=1,foo@@bar=2,a@b@c=3,0@=4"], "foo@=1,foo@@bar=2,a@b@c=3,0@=4"),
        (&["foo=a b,bar= c"], "foo=a b,bar= c"),
        (&[&long_key], &long_key),
        (&[&long_value], &long_value),
        (&[&blanks], "foo=1,bar=2"),
        (&[&",".repeat(900), "foo=1"], "foo=1"),
        (&[], ""),
        (&["", " ,\t,"], ""),
    ] {
        assert_eq!(text(lines), kept, "{lines:?}");
    }
}

#[test]
fn lists_dropped_whole() {
    let long_key = format!("{}=1", "z".repeat(257));
    let long_value = format!("a={}", "v".repeat(257));
    for member in [
        "foo",
        "foo=",
        "foo= ",
        "foo=\t ",
        "=1",
        "=",
        "@foo=1",
        "@=1",
        "Foo=1",
        "foO=1",
        "foo =1",
        "foo\t=1",
        "foo.bar=1",
        "_foo=1",
        "-foo=1",
        "*foo=1",
        "/foo=1",
        "foo$=1",
        "fo o=1",
        "foo=1=2",
        "foo==1",
        "foo=b\u{e4}r",
        "b\u{e4}r=1",
        "foo=a\u{1}",
        "foo=a\u{7f}",
        "foo=a\tb",
        &long_key,
        &long_value,
    ] {
        for lines in [
            &[member] as &[&str],
            &["good=1", member],
            &[&format!("good=1,{member}")],
            &[&format!("{member},good=1")],
            &[member, "good=1"],
        ] {
            let list = list(&lines.iter().map(|line| line.as_bytes()).collect::<Vec<_>>(), false);
            assert_eq!((list.len(), list.state), (0, state::DROPPED), "{lines:?}");
        }
    }
}

#[test]
fn at_most_32_members() {
    assert_eq!(text(&[&members(MEMBERS)]), members(MEMBERS));
    assert_eq!(
        text(&[&members(16), &members(16)]),
        [members(16), members(16)].join(",")
    );
    assert_eq!(text(&[&members(MEMBERS + 1)]), "");
    assert_eq!(text(&[&members(16), &members(17)]), "");
    // What is left out for its length counts, too.
    let long = format!("a={}", "v".repeat(256));
    assert_eq!(text(&[&members(29), &long, &long, &long]).matches('=').count(), 30);
    assert_eq!(text(&[&members(30), &long, &long, &long]), "");
}

#[test]
fn a_cut_line_loses_its_last_member() {
    let cut = |lines: &[&str]| {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        let list = list(&lines, true);
        (list.state, String::from_utf8(list.bytes()).unwrap_or_default())
    };
    assert_eq!(cut(&["a=1,b=2,c=3"]), (state::CUT, "a=1,b=2".to_owned()));
    assert_eq!(cut(&["a=1,b=2,"]), (state::CUT, "a=1,b=2".to_owned()));
    assert_eq!(cut(&["a=1", "b=2,broken"]), (state::CUT, "a=1,b=2".to_owned()));
    assert_eq!(cut(&["a=1"]), (state::CUT, String::new()));
    assert_eq!(cut(&["a=1,broken,c=3"]), (state::DROPPED, String::new()));
    let mut list = list(&[b"a=1,b=2"], true);
    list.append(b"c=3,broken", false);
    assert_eq!((list.state, list.bytes()), (state::CUT, b"a=1".to_vec()));
}

#[test]
fn too_long_a_list_loses_its_longest_members() {
    let value = |name: &str, letter: &str, count: usize| format!("{name}={}", letter.repeat(count));
    let short = [value("b", "x", 200), value("d", "y", 250)];
    let input = ["a=1", &short[0], "c=2", &short[1], "e=3"].join(",");
    assert_eq!((input.len(), text(&[&input])), (467, input.clone()));
    assert_eq!(
        text(&[&input, &value("f", "z", 100)]),
        ["a=1", &short[0], "c=2", "e=3", &value("f", "z", 100)].join(",")
    );
    // To the character: 512 stay, of 513 one goes.
    let (first, second) = (value("a", "x", 250), value("b", "y", 251));
    let fits = format!("{first},{second},c=123");
    assert_eq!((fits.len(), text(&[&fits])), (LIST_BYTES, fits.clone()));
    assert_eq!(text(&[&format!("{first},{second},c=1234")]), format!("{first},c=1234"));
    // Equally long: the later one goes.
    assert_eq!(
        text(&[&value("a", "x", 255), &value("b", "y", 255)]),
        value("a", "x", 255)
    );
    // The only one is too long.
    let lone = format!("{}={}", "k".repeat(256), "v".repeat(256));
    assert_eq!(
        (lone.len(), text(&[&lone]), text(&[&lone, "a=1"])),
        (513, String::new(), "a=1".to_owned())
    );
}

/// A member, mostly a good one, of any length.
fn member() -> impl Strategy<Value = Vec<u8>> {
    let length = || prop_oneof![60 => 1..20_usize, 12 => 1..=256_usize, 2 => 255..=256_usize, 1 => Just(257_usize)];
    let key = length().prop_flat_map(|len| prop::collection::vec(prop::sample::select(b"az09_-*/@".to_vec()), len));
    let value = length().prop_flat_map(|len| prop::collection::vec(0x21..=0x7e_u8, len));
    let blanks = || prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\t"), 1 => Just(" \t  \t    \t ")];
    let good = (blanks(), key, value, blanks()).prop_map(|(before, key, value, after)| {
        let first = key
            .first()
            .map_or(b'a', |byte| if byte.is_ascii_alphanumeric() { *byte } else { b'a' });
        let value = value
            .into_iter()
            .map(|byte| if matches!(byte, b',' | b'=') { b' ' } else { byte });
        let mut member = before.as_bytes().to_vec();
        member.push(first);
        member.extend(key.iter().skip(1));
        member.push(b'=');
        member.extend(value);
        member.extend(after.bytes());
        member
    });
    prop_oneof![
        90 => good,
        6 => Just(Vec::new()),
        1 => prop::collection::vec(prop_oneof![any::<u8>(), Just(b'='), Just(b','), Just(b' ')], 0..40),
    ]
}

/// Lines of up to `most` bytes each; longer ones are cut between bytes, so the last member may be anything.
fn lines(most: usize) -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(member(), 0..9), 1..8).prop_map(move |lines| {
        let cut = |members: Vec<Vec<u8>>| members.join(&b',').into_iter().take(most).collect();
        lines.into_iter().map(cut).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_plain_reader(lines in lines(1008), cut: bool) {
        let slices: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        let list = list(&slices, cut);
        prop_assert_eq!(list.bytes(), read(&lines, cut));
        prop_assert!(list.len() as usize <= LIST_BYTES);
    }

    #[test]
    fn bytes_of_any_kind(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1008), 0..4), cut: bool) {
        let slices: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(list(&slices, cut).bytes(), read(&lines, cut && !lines.is_empty()));
    }
}
