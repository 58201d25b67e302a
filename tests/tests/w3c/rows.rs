//! What comes in, and what has to go out for it: W3C Trace Context, Level 1 and 2, row by row.

/// Characters of a tracestate that travel whole.
const STATE_CHARACTERS: usize = 512;
/// Flags of a trace id that was made anew: sampled, and its lower 56 bits random.
pub(crate) const FRESH: u8 = 3;

/// Whose trace id goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// The one that came in.
    Same,
    /// One that never came in.
    New,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Header lines, as they are sent. `$trace` and `$parent` stand for ids of this row's own, `$ids` for both.
    pub(crate) lines: Vec<String>,
    /// How many calls the service makes for it.
    pub(crate) calls: usize,
    pub(crate) trace: Trace,
    pub(crate) flags: u8,
    /// The tracestate that goes out: any of these lists, none if there is none here.
    pub(crate) state: Vec<String>,
}

impl Row {
    fn new(name: &str, lines: &[&str], trace: Trace) -> Self {
        Self {
            name: name.to_owned(),
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            calls: 1,
            trace,
            flags: if trace == Trace::Same { 1 } else { FRESH },
            state: Vec::new(),
        }
    }

    fn calls(mut self, calls: usize) -> Self {
        self.calls = calls;
        self
    }

    fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }
}

/// A traceparent that is adopted.
const VALID: &str = "traceparent: 00-$ids-01";

/// Every row.
pub(crate) fn rows() -> Vec<Row> {
    [
        traceparents(),
        values("version", &versions(), Trace::New),
        values("trace id", &broken_ids(), Trace::New),
        states(),
        dropped_states(),
        long_states(),
    ]
    .concat()
}

fn traceparents() -> Vec<Row> {
    let same = |name: &str, lines: &[&str]| Row::new(name, lines, Trace::Same);
    let new = |name: &str, lines: &[&str]| Row::new(name, lines, Trace::New);
    vec![
        new("nothing", &[]),
        new("nothing, three calls", &[]).calls(3),
        same("valid", &[VALID]),
        same("valid, three calls", &[VALID]).calls(3),
        new("twice the same traceparent", &[VALID, VALID]),
        new(
            "two traceparents",
            &[
                VALID,
                "traceparent: 00-11111111111111111111111111111111-2222222222222222-01",
            ],
        ),
        new("a broken one, three calls", &["traceparent: 00-$ids"]).calls(3),
        new("two traceparents, one of them broken", &["traceparent: 00-$ids", VALID]),
        new("trace-parent", &["trace-parent: 00-$ids-01"]),
        new("trace.parent", &["trace.parent: 00-$ids-01"]),
        same("TraceParent", &["TraceParent: 00-$ids-01"]),
        same("TrAcEpArEnT", &["TrAcEpArEnT: 00-$ids-01"]),
        same("TRACEPARENT", &["TRACEPARENT: 00-$ids-01"]),
        same("no blank in front of the value", &["traceparent:00-$ids-01"]),
        same("blanks in front of the value", &["traceparent:  \t 00-$ids-01"]),
        same("blanks behind the value", &["traceparent: 00-$ids-01 \t "]),
        same("blanks on both sides", &["traceparent:\t00-$ids-01\t"]),
        same("a version to come", &["traceparent: cc-$ids-01"]),
        same(
            "a version to come that goes on",
            &["traceparent: cc-$ids-01-what-will-be"],
        ),
        same(
            "a version to come that goes on with nothing",
            &["traceparent: cc-$ids-01-"],
        ),
        same("not sampled", &["traceparent: 00-$ids-00"]).flags(0),
        same("sampled and random", &["traceparent: 00-$ids-03"]).flags(3),
        same("random, not sampled", &["traceparent: 00-$ids-02"]).flags(2),
        same("flags that mean nothing yet", &["traceparent: 00-$ids-fd"]).flags(1),
    ]
}

/// A row for each value of a lone traceparent.
fn values(what: &str, values: &[&str], trace: Trace) -> Vec<Row> {
    let row = |value: &&str| Row::new(&format!("{what}: {value}"), &[&format!("traceparent: {value}")], trace);
    values.iter().map(row).collect()
}

/// Values that are no traceparent by their version, or by what is around it.
fn versions() -> Vec<&'static str> {
    vec![
        "00-$ids-01.",
        "00-$ids-01-",
        "00-$ids-01-what-will-be",
        "00-$ids-01 00-$ids-01",
        "00-$ids-01,00-$ids-01",
        "cc-$ids-01.what-will-be",
        "cc-$ids-011",
        "ff-$ids-01",
        ".0-$ids-01",
        "0.-$ids-01",
        "0x-$ids-01",
        "CC-$ids-01",
        "0-$ids-01",
        "000-$ids-01",
        "00_$ids-01",
        "00$ids-01",
        "$ids-01",
        "00",
        "",
    ]
}

/// Values that are no traceparent by their ids or their flags.
fn broken_ids() -> Vec<&'static str> {
    vec![
        "00-00000000000000000000000000000000-$parent-01",
        "00-$trace-0000000000000000-01",
        "00-.2345678901234567890123456789012-$parent-01",
        "00-1234567890123456789012345678901.-$parent-01",
        "00-1234567890ABCDEF1234567890abcdef-$parent-01",
        "00-$trace0-$parent-01",
        "00-123456789012345678901234567890-$parent-01",
        "00-1234567890123456789012345678901-$parent-01",
        "00--$parent-01",
        "00-$trace-.234567890123456-01",
        "00-$trace-123456789012345.-01",
        "00-$trace-ABCDEF1234567890-01",
        "00-$trace-$parent0-01",
        "00-$trace-123456789012345-01",
        "00-$trace-01",
        "00-$trace$parent-01",
        "00-$ids",
        "00-$ids-",
        "00-$ids-.0",
        "00-$ids-0.",
        "00-$ids-0A",
        "00-$ids-1",
        "00-$ids-001",
    ]
}

/// A valid traceparent with these lines behind it, and the list that they make.
fn kept(name: &str, lines: &[&str], state: &str) -> Row {
    let mut row = Row::new(name, &[&[VALID], lines].concat(), Trace::Same);
    row.state = vec![state.to_owned()];
    row
}

fn members(count: usize) -> String {
    (0..count).map(|n| format!("bar{n:02}=x")).collect::<Vec<_>>().join(",")
}

fn states() -> Vec<Row> {
    let key_characters = "0123456789abcdefghijklmnopqrstuvwxyz_-*/=1";
    let value_characters: String = (0x21..=0x7e_u8)
        .map(char::from)
        .filter(|c| !matches!(c, ',' | '='))
        .collect();
    let all = format!("{key_characters},foo={value_characters} {value_characters}");
    let mut in_front = kept("tracestate in front of traceparent", &[], "foo=1,bar=2");
    in_front.lines = vec!["tracestate: foo=1,bar=2".to_owned(), VALID.to_owned()];
    let mut duplicates = kept(
        "a key twice in one line",
        &["tracestate: foo=1,bar=3,foo=2"],
        "foo=1,bar=3,foo=2",
    );
    duplicates
        .state
        .extend(["foo=1,bar=3", "bar=3,foo=2"].map(str::to_owned));
    let mut in_two = kept(
        "a key twice in two lines",
        &["tracestate: foo=1", "tracestate: foo=2"],
        "foo=1,foo=2",
    );
    in_two.state.extend(["foo=1", "foo=2"].map(str::to_owned));
    vec![
        kept("a tracestate", &["tracestate: foo=1"], "foo=1"),
        kept("two members", &["tracestate: foo=1,bar=2"], "foo=1,bar=2"),
        kept("two members, two calls", &["tracestate: foo=1,bar=2"], "foo=1,bar=2").calls(2),
        kept(
            "three lines",
            &[
                "tracestate: foo=1,bar=2",
                "tracestate: rojo=1,congo=2",
                "tracestate: baz=3",
            ],
            "foo=1,bar=2,rojo=1,congo=2,baz=3",
        ),
        kept(
            "empty lines between lines",
            &[
                "tracestate: foo=1",
                "tracestate:",
                "tracestate: \t ",
                "tracestate: bar=2",
                "tracestate: ",
            ],
            "foo=1,bar=2",
        ),
        kept("empty members", &["tracestate: foo=1,,\t, ,bar=2,"], "foo=1,bar=2"),
        kept(
            "blanks round members",
            &["tracestate:\t foo=1 \t,\t bar=2 , baz=3 \t"],
            "foo=1,bar=2,baz=3",
        ),
        kept(
            "other lines between lines",
            &["tracestate: foo=1", "x-other: b=0", "tracestate: bar=2"],
            "foo=1,bar=2",
        ),
        in_front,
        kept("TraceState", &["TraceState: foo=1"], "foo=1"),
        kept("TrAcEsTaTe", &["TrAcEsTaTe: foo=1"], "foo=1"),
        kept("TRACESTATE", &["TRACESTATE: foo=1"], "foo=1"),
        kept("every character", &[&format!("tracestate: {all}")], &all),
        kept("a key that begins with a digit", &["tracestate: 0a=1"], "0a=1"),
        kept(
            "a blank in a value",
            &["tracestate: foo=a b,bar=  2"],
            "foo=a b,bar=  2",
        ),
        kept(
            "@ in keys",
            &["tracestate: foo@=1,foo@@bar=2,a@b@c=3,0@v=4"],
            "foo@=1,foo@@bar=2,a@b@c=3,0@v=4",
        ),
        duplicates,
        in_two,
        kept("32 members", &[&format!("tracestate: {}", members(32))], &members(32)),
        kept(
            "32 members in two lines",
            &[&format!("tracestate: {}", members(30)), "tracestate: foo=1,foo=2"],
            &format!("{},foo=1,foo=2", members(30)),
        ),
        kept(
            "a key of 256 characters",
            &[&format!("tracestate: foo=1,{}=1", "z".repeat(256))],
            &format!("foo=1,{}=1", "z".repeat(256)),
        ),
        kept(
            "a key of 256 characters in a line of its own",
            &["tracestate: foo=1", &format!("tracestate: {}=1", "z".repeat(256))],
            &format!("foo=1,{}=1", "z".repeat(256)),
        ),
        kept(
            "a key of 241 characters, @, and 14",
            &[&format!("tracestate: {}@{}=1", "t".repeat(241), "v".repeat(14))],
            &format!("{}@{}=1", "t".repeat(241), "v".repeat(14)),
        ),
        kept(
            "a value of 256 characters",
            &[&format!("tracestate: foo={}", "v".repeat(256))],
            &format!("foo={}", "v".repeat(256)),
        ),
    ]
}

/// The tracestate is left out, whole.
fn dropped_states() -> Vec<Row> {
    let long_key = format!("foo=1,{}=1", "z".repeat(257));
    let long_value = format!("foo=1,bar={}", "v".repeat(257));
    let too_many = members(33);
    let broken = [
        "foo",
        "foo=",
        "foo=1,bar= ",
        "=1",
        "foo =1",
        "foo\t=1",
        "fo o=1",
        "foo.bar=1",
        "foo@=1,bar.baz=2",
        "Foo=1",
        "foo=1,BAR=2",
        "FOO@bar=1",
        "foo=1,bAr=2",
        "foo@BAR=1",
        "_foo=1",
        "foo=1=1",
        "foo=bar=baz,x=1",
        "@foo=1",
        "foo=1,@bar=2",
        "foo=a\tb",
        "foo=b\u{e4}r",
        "foo=1;bar=2",
        &long_key,
        &long_value,
        &too_many,
    ];
    let mut rows: Vec<Row> = broken
        .into_iter()
        .map(|list| {
            Row::new(
                &format!("broken: {}", shortened(list)),
                &[VALID, &format!("tracestate: {list}")],
                Trace::Same,
            )
        })
        .collect();
    let same = |name: &str, lines: &[&str]| Row::new(name, &[&[VALID], lines].concat(), Trace::Same);
    rows.extend([
        same(
            "a broken line behind a good one",
            &["tracestate: foo=1", "tracestate: Bar=2"],
        ),
        same(
            "a broken line in front of a good one",
            &["tracestate: foo", "tracestate: bar=2"],
        ),
        same(
            "33 members in two lines",
            &[&format!("tracestate: {}", members(32)), "tracestate: foo=1"],
        ),
        same("empty tracestate", &["tracestate:"]),
        same("trace-state", &["trace-state: foo=1"]),
        same("trace.state", &["trace.state: foo=1"]),
        Row::new("tracestate without traceparent", &["tracestate: foo=1"], Trace::New),
        Row::new(
            "tracestate with a broken traceparent",
            &["traceparent: 00-$ids-1", "tracestate: foo=1"],
            Trace::New,
        ),
        Row::new(
            "tracestate with two traceparents",
            &[VALID, VALID, "tracestate: foo=1"],
            Trace::New,
        ),
        Row::new(
            "tracestate with trace-parent",
            &["trace-parent: 00-$ids-01", "tracestate: foo=1"],
            Trace::New,
        ),
    ]);
    rows
}

/// At the limit of what travels whole, and beyond it.
fn long_states() -> Vec<Row> {
    let member = |key: &str, length: usize| format!("{key}={}", "v".repeat(length - key.len() - 1));
    let list = |lengths: &[usize]| -> Vec<String> {
        ["a", "b", "c", "d", "e"]
            .iter()
            .zip(lengths)
            .map(|(key, length)| member(key, *length))
            .collect()
    };
    let line = |members: &[String]| format!("tracestate: {}", members.join(","));
    let fits = list(&[200, 200, 110]);
    let first_is_longest = list(&[258, 205, 205, 100]);
    let first_and_third = list(&[250, 240, 245, 230, 20]);
    let over = list(&[200, 200, 111]);
    let longest_in_the_middle = list(&[100, 150, 250, 120, 20]);
    let in_lines = list(&[240, 180, 190, 20]);
    assert_eq!(fits.join(",").len(), STATE_CHARACTERS);
    let without = |members: &[String], gone: &[usize]| -> String {
        let left = members.iter().enumerate().filter(|(at, _)| !gone.contains(at));
        left.map(|(_, member)| member.as_str()).collect::<Vec<_>>().join(",")
    };
    let mut one_of_two = kept(
        "513 characters, two equally long",
        &[&line(&over)],
        &without(&over, &[1]),
    );
    one_of_two.state.push(without(&over, &[0]));
    vec![
        kept("512 characters", &[&line(&fits)], &fits.join(",")),
        one_of_two,
        kept(
            "771 characters, the longest first",
            &[&line(&first_is_longest)],
            &without(&first_is_longest, &[0]),
        ),
        kept(
            "989 characters, the first and the third longest",
            &[&line(&first_and_third)],
            &without(&first_and_third, &[0, 2]),
        ),
        kept(
            "640 characters, the longest in the middle",
            &[&line(&longest_in_the_middle)],
            &without(&longest_in_the_middle, &[2]),
        ),
        kept(
            "630 characters in four lines, the longest first",
            &[
                &line(&in_lines[..1]),
                &line(&in_lines[1..2]),
                &line(&in_lines[2..3]),
                &line(&in_lines[3..]),
            ],
            &without(&in_lines, &[0]),
        ),
    ]
}

/// A list for a message: of a character that comes many times in a row, how many times.
pub(crate) fn shortened(list: &str) -> String {
    let characters: Vec<char> = list.chars().collect();
    let runs = characters.chunk_by(|one, other| one == other);
    let short = |run: &[char]| match run {
        [character, ..] if run.len() > 9 => format!("{character}*{}", run.len()),
        _ => run.iter().collect(),
    };
    let text: String = runs.map(short).collect();
    text.escape_default().take(120).collect()
}
