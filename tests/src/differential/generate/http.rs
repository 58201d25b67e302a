//! HTTP/1.1 as clients and servers speak it, cut into calls in every way.

use rand::rngs::StdRng;
use rand::Rng;

use super::message::{body, chunks, response, target, Request};
use crate::differential::exchange::{Cut, Draft, Side, Step};
use Side::{Client, Server};

/// Beyond about 7.5 KiB a head is left alone; near it either is right.
const LEFT_ALONE: usize = 7_900;

fn either(rng: &mut StdRng) -> Side {
    if rng.random() {
        Client
    } else {
        Server
    }
}

/// A response with a length.
pub(super) fn answer(draft: &mut Draft, rng: &mut StdRng) {
    let length = match rng.random_range(0..10) {
        0 => 0,
        1 => rng.random_range(2_000..20_000),
        _ => rng.random_range(1..800),
    };
    let bytes = body(rng, length);
    if rng.random_ratio(1, 4) {
        let head = response("200 OK", "Transfer-Encoding: chunked\r\n", rng);
        draft.head(Server, &head, true).put(Server, &chunks(rng, &bytes));
    } else {
        let head = response("200 OK", &format!("Content-Length: {length}\r\n"), rng);
        draft.head(Server, &head, true).put(Server, &bytes);
    }
    let cut = Cut::any(rng);
    draft.say(Server, cut, rng);
}

fn close(draft: &mut Draft, rng: &mut StdRng) {
    let side = either(rng);
    draft.step(Step::Close(side));
}

fn one(draft: &mut Draft, rng: &mut StdRng, head: &[u8], may_insert: bool, cut: Cut) {
    draft.head(Client, head, may_insert).say(Client, cut, rng);
    answer(draft, rng);
    close(draft, rng);
}

pub(super) fn get(draft: &mut Draft, rng: &mut StdRng) {
    let head = Request::any(rng).done();
    let cut = Cut::any(rng);
    one(draft, rng, &head, true, cut);
}

pub(super) fn keep_alive(draft: &mut Draft, rng: &mut StdRng) {
    for _ in 0..rng.random_range(2..=6) {
        let head = Request::any(rng).done();
        let cut = if rng.random() { Cut::Whole } else { Cut::any(rng) };
        draft.head(Client, &head, true).say(Client, cut, rng);
        answer(draft, rng);
    }
    close(draft, rng);
}

pub(super) fn big_head(draft: &mut Draft, rng: &mut StdRng) {
    let around = [1_024, 2_048, 4_096, 8_192, 12_288, 16_384][rng.random_range(0..6)];
    let size = around + rng.random_range(0..160) - 80;
    let head = Request::any(rng).of_size(size, rng).done();
    draft.options().read_size = 65_536;
    let cut = Cut::any(rng);
    let may_insert = head.len() < LEFT_ALONE;
    one(draft, rng, &head, may_insert, cut);
}

/// The second send begins at any byte of the head.
pub(super) fn head_in_two(draft: &mut Draft, rng: &mut StdRng) {
    let head = Request::any(rng).done();
    // Half of them inside the last bytes, where the blank line is.
    let from = if rng.random() { 1 } else { head.len() - 6 };
    let cut = Cut::At(rng.random_range(from..head.len()));
    one(draft, rng, &head, true, cut);
}

pub(super) fn head_byte_by_byte(draft: &mut Draft, rng: &mut StdRng) {
    let head = Request::new("GET", "/a").done();
    draft.options().nodelay = rng.random_ratio(7, 8);
    one(draft, rng, &head, true, Cut::EveryByte);
}

pub(super) fn head_in_pieces(draft: &mut Draft, rng: &mut StdRng) {
    let head = Request::any(rng).done();
    let cut = match rng.random_range(0..3) {
        0 => Cut::Pieces(rng.random_range(3..12)),
        1 => Cut::More(rng.random_range(2..6)),
        _ => Cut::Writev(rng.random_range(3..8)),
    };
    one(draft, rng, &head, true, cut);
}

pub(super) fn post(draft: &mut Draft, rng: &mut StdRng) {
    let length = rng.random_range(1..3_000);
    let head = Request::new("POST", &target(rng))
        .usual(rng)
        .field("Content-Length", &length.to_string())
        .done();
    let bytes = body(rng, length);
    draft.head(Client, &head, true);
    if rng.random_ratio(1, 3) {
        draft.say(Client, Cut::Whole, rng);
    }
    let cut = Cut::any(rng);
    draft.put(Client, &bytes).say(Client, cut, rng);
    answer(draft, rng);
    close(draft, rng);
}

pub(super) fn chunked(draft: &mut Draft, rng: &mut StdRng) {
    let length = rng.random_range(1..4_000);
    let head = Request::new("PUT", &target(rng))
        .usual(rng)
        .field("Transfer-Encoding", "chunked")
        .done();
    let bytes = body(rng, length);
    let bytes = chunks(rng, &bytes);
    draft.head(Client, &head, true);
    if rng.random() {
        draft.say(Client, Cut::Whole, rng);
    }
    let cut = Cut::any(rng);
    draft.put(Client, &bytes).say(Client, cut, rng);
    answer(draft, rng);
    close(draft, rng);
}

/// What the kernel takes in more than one part: from 40 KiB on.
pub(super) fn large_body(draft: &mut Draft, rng: &mut StdRng) {
    let length = match rng.random_range(0..20) {
        0 => rng.random_range(1_000_000..8_000_000),
        1..=4 => rng.random_range(200_000..800_000),
        _ => rng.random_range(30_000..80_000),
    };
    let bytes = body(rng, length);
    let side = either(rng);
    let options = draft.options();
    options.read_size = 65_536;
    if side == Client {
        let head = Request::new("POST", &target(rng))
            .field("Content-Length", &length.to_string())
            .done();
        draft.head(Client, &head, true);
    } else {
        let head = Request::any(rng).done();
        draft.head(Client, &head, true).say(Client, Cut::Whole, rng);
        let head = response("200 OK", &format!("Content-Length: {length}\r\n"), rng);
        draft.head(Server, &head, true);
    }
    if rng.random() {
        draft.say(side, Cut::Whole, rng);
    }
    let cut = Cut::any(rng);
    draft.put(side, &bytes).say(side, cut, rng);
    if side == Client {
        answer(draft, rng);
    }
    close(draft, rng);
}

pub(super) fn pipelined(draft: &mut Draft, rng: &mut StdRng) {
    let count = rng.random_range(2..=5);
    for _ in 0..count {
        if rng.random_ratio(1, 4) {
            let length = rng.random_range(1..200);
            let head = Request::new("POST", &target(rng))
                .field("Content-Length", &length.to_string())
                .done();
            draft.head(Client, &head, true).put(Client, &body(rng, length));
        } else {
            let head = Request::any(rng).done();
            draft.head(Client, &head, true);
        }
    }
    let cut = Cut::any(rng);
    draft.say(Client, cut, rng);
    for _ in 0..count {
        answer(draft, rng);
    }
    close(draft, rng);
}

pub(super) fn expect(draft: &mut Draft, rng: &mut StdRng) {
    let length = rng.random_range(1..3_000);
    let head = Request::new("PUT", &target(rng))
        .field("Content-Length", &length.to_string())
        .field("Expect", "100-continue")
        .done();
    draft.head(Client, &head, true).say(Client, Cut::Whole, rng);
    if rng.random_ratio(1, 5) {
        let head = response("417 Expectation Failed", "Content-Length: 0\r\n", rng);
        draft.head(Server, &head, true).say(Server, Cut::Whole, rng);
        draft.step(Step::Close(Server));
        return;
    }
    draft
        .put(Server, b"HTTP/1.1 100 Continue\r\n\r\n")
        .say(Server, Cut::Whole, rng);
    let bytes = body(rng, length);
    let cut = Cut::any(rng);
    draft.put(Client, &bytes).say(Client, cut, rng);
    answer(draft, rng);
    close(draft, rng);
}

/// A body that begins like a request, as a send of its own or with the head.
pub(super) fn body_like_a_request(draft: &mut Draft, rng: &mut StdRng) {
    let bytes = b"GET / HTTP/1.1\r\nHost: inner.test\r\n\r\n".repeat(rng.random_range(1..4));
    let chunked = rng.random_ratio(1, 3);
    let request = Request::new("POST", &target(rng));
    let request = if chunked {
        request.field("Transfer-Encoding", "chunked")
    } else {
        request.field("Content-Length", &bytes.len().to_string())
    };
    draft.head(Client, &request.done(), true);
    if rng.random_ratio(2, 3) {
        draft.say(Client, Cut::Whole, rng);
    }
    if chunked {
        draft.put(Client, format!("{:x}\r\n", bytes.len()).as_bytes());
        draft.say(Client, Cut::Whole, rng);
        draft.put(Client, &bytes).say(Client, Cut::Whole, rng);
        draft.put(Client, b"\r\n0\r\n\r\n").say(Client, Cut::Whole, rng);
    } else {
        let cut = if rng.random() { Cut::Whole } else { Cut::any(rng) };
        draft.put(Client, &bytes).say(Client, cut, rng);
    }
    let head = response("200 OK", &format!("Content-Length: {}\r\n", bytes.len()), rng);
    draft.head(Server, &head, true).say(Server, Cut::Whole, rng);
    draft.put(Server, &bytes).say(Server, Cut::Whole, rng);
    // The next request on the connection is one again.
    let head = Request::any(rng).done();
    one(draft, rng, &head, true, Cut::Whole);
}

/// Every form of response.
pub(super) fn answers(draft: &mut Draft, rng: &mut StdRng) {
    let form = rng.random_range(0..7);
    let method = if form == 0 { "HEAD" } else { "GET" };
    let head = Request::new(method, &target(rng)).usual(rng).done();
    draft.head(Client, &head, true).say(Client, Cut::Whole, rng);
    let bytes = body(rng, 300);
    match form {
        0 => draft.head(Server, &response("200 OK", "Content-Length: 12345\r\n", rng), true),
        1 => draft.head(Server, &response("204 No Content", "", rng), true),
        2 => draft.head(Server, &response("304 Not Modified", "ETag: \"a\"\r\n", rng), true),
        3 => {
            draft.put(Server, b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
            if rng.random() {
                draft.say(Server, Cut::Whole, rng);
            }
            draft.head(Server, &response("200 OK", "Content-Length: 0\r\n", rng), true)
        }
        4 => {
            let head = b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n";
            draft.head(Server, head, true).put(Server, &bytes)
        }
        5 => {
            let head = response("200 OK", "Connection: close\r\n", rng);
            draft.head(Server, &head, true).put(Server, &bytes)
        }
        _ => draft.head(
            Server,
            &response(
                "503 Service Unavailable",
                "server-timing: db;dur=53\r\nContent-Length: 0\r\n",
                rng,
            ),
            true,
        ),
    };
    let cut = Cut::any(rng);
    draft.say(Server, cut, rng);
    let side = if matches!(form, 4 | 5) { Server } else { either(rng) };
    draft.step(Step::Close(side));
}

/// The server answers before it has the whole request.
pub(super) fn early_answer(draft: &mut Draft, rng: &mut StdRng) {
    let length = rng.random_range(200..2_000);
    let bytes = body(rng, length);
    let head = Request::new("POST", &target(rng))
        .field("Content-Length", &length.to_string())
        .done();
    let (first, second) = bytes.split_at(rng.random_range(0..length));
    draft
        .head(Client, &head, true)
        .put(Client, first)
        .say(Client, Cut::Whole, rng);
    answer(draft, rng);
    draft.put(Client, second).say(Client, Cut::Whole, rng);
    close(draft, rng);
}

/// The client shuts its direction down and still reads the answer.
pub(super) fn half_closed(draft: &mut Draft, rng: &mut StdRng) {
    let head = Request::any(rng).done();
    let cut = Cut::any(rng);
    draft.head(Client, &head, true).say(Client, cut, rng);
    draft.step(Step::HalfClose(Client));
    if rng.random() {
        draft.step(Step::Pause(Server, 1));
    }
    answer(draft, rng);
    draft.step(Step::Close(Server));
}

/// A reset finds the other side in its receive, before, inside or after the answer.
pub(super) fn reset(draft: &mut Draft, rng: &mut StdRng) {
    // What is sent right before a reset has to be out.
    draft.options().nodelay = true;
    draft.options().read_size = 4_096;
    let head = Request::any(rng).done();
    draft.head(Client, &head, true).say(Client, Cut::Whole, rng);
    let side = either(rng);
    match rng.random_range(0..3) {
        0 => {}
        1 => {
            let head = response("200 OK", "Content-Length: 1000\r\n", rng);
            draft
                .head(Server, &head, true)
                .put(Server, &[b'x'; 400])
                .say(Server, Cut::Whole, rng);
        }
        _ => {
            let head = response("200 OK", "Content-Length: 4\r\n", rng);
            draft
                .head(Server, &head, true)
                .put(Server, b"done")
                .say(Server, Cut::Whole, rng);
        }
    }
    let pause = rng.random_range(1..4);
    draft.step(Step::Pause(side, pause)).step(Step::Reset(side));
}

/// Small buffers and a slow reader: sends that the socket takes in part. Requests and bodies follow each other.
pub(super) fn full_buffers(draft: &mut Draft, rng: &mut StdRng) {
    let options = draft.options();
    options.send_buffer = Some(rng.random_range(2_048..9_000));
    options.receive_buffer = Some(rng.random_range(2_304..8_000));
    options.read_size = [512, 1_024, 4_096][rng.random_range(0..3)];
    options.slow_us = 20;
    options.peeks = false;
    let count = rng.random_range(4..20);
    for _ in 0..count {
        let length = rng.random_range(1..4_000);
        let head = Request::new("POST", &target(rng))
            .field("Content-Length", &length.to_string())
            .done();
        draft.head(Client, &head, true).put(Client, &body(rng, length));
        if rng.random() {
            let cut = Cut::any(rng);
            draft.say(Client, cut, rng);
        }
    }
    draft.say(Client, Cut::Whole, rng);
    for _ in 0..count {
        let head = response("200 OK", "Content-Length: 2\r\n", rng);
        draft.head(Server, &head, true).put(Server, b"ok");
    }
    draft.say(Server, Cut::Whole, rng);
    close(draft, rng);
}
