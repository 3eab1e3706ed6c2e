use proptest::collection::vec;
use proptest::prelude::*;

use super::scalar::UNEARNED_BYTES;
use super::*;

/// Decodes all values of `input`, given in pieces that end at `cuts`.
fn decode_in_pieces(
    input: &[u8],
    cuts: &[usize],
    limits: Limits,
) -> Result<Vec<Value>, DecodeError> {
    let mut decoder = Decoder::new(limits);
    let mut values = Vec::new();
    let mut done = 0;
    for &end in cuts.iter().chain([&input.len()]) {
        loop {
            let decoded = decoder.decode(&input[done..end.max(done)])?;
            done += decoded.consumed;
            match decoded.value {
                Some(value) => values.push(value),
                None => break,
            }
        }
    }
    assert!(done <= input.len());
    Ok(values)
}

fn decode_one(input: &[u8]) -> Result<Value, DecodeError> {
    let mut values = decode_in_pieces(input, &[], Limits::default())?;
    assert_eq!(values.len(), 1, "in {:?}", String::from_utf8_lossy(input));
    Ok(values.remove(0))
}

fn refusal(input: &[u8], limits: Limits) -> DecodeError {
    decode_in_pieces(input, &[], limits).unwrap_err()
}

/// Any valid frame, as bytes. NaN is left out, since it equals nothing.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let text = "[ -~é√]{0,24}";
    let long = prop_oneof![4 => 0..40usize, 1 => 1_000..70_000usize];
    let scalar = prop_oneof![
        Just(b"+OK\r\n".to_vec()),
        Just(b"_\r\n".to_vec()),
        Just(b"$-1\r\n".to_vec()),
        Just(b"*-1\r\n".to_vec()),
        Just(b"#t\r\n".to_vec()),
        Just(b"#f\r\n".to_vec()),
        Just(b",inf\r\n".to_vec()),
        Just(b",-inf\r\n".to_vec()),
        Just(b"*0\r\n".to_vec()),
        Just(b"%0\r\n".to_vec()),
        Just(b"~0\r\n".to_vec()),
        Just(b">0\r\n".to_vec()),
        any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
        any::<f64>()
            .prop_filter("NaN", |f| !f.is_nan())
            .prop_map(|f| format!(",{f:e}\r\n").into_bytes()),
        text.prop_map(|s| format!("+{s}\r\n").into_bytes()),
        "(ERR|LOADING|MOVED|WRONGTYPE|NOAUTH|EXECABORT|)[ a-z0-9:]{0,30}"
            .prop_map(|s| format!("-{s}\r\n").into_bytes()),
        "(ERR|SYNTAX)[ a-z\r\n]{0,30}"
            .prop_map(|s| format!("!{}\r\n{s}\r\n", s.len()).into_bytes()),
        "(txt|mkd|xyz):[ a-zé:\r\n]{0,30}"
            .prop_map(|s| format!("={}\r\n{s}\r\n", s.len()).into_bytes()),
        "-?[1-9][0-9]{0,60}".prop_map(|s| format!("({s}\r\n").into_bytes()),
        (any::<u8>(), long).prop_map(|(byte, n)| [
            format!("${n}\r\n").into_bytes(),
            vec![byte; n],
            b"\r\n".to_vec()
        ]
        .concat()),
        vec(any::<u8>(), 0..64).prop_map(|s| [
            format!("${}\r\n", s.len()).into_bytes(),
            s,
            b"\r\n".to_vec()
        ]
        .concat()),
    ];
    scalar.prop_recursive(6, 64, 8, |inner| {
        let many = |sigil: &'static str| move |items: Vec<Vec<u8>>| [format!("{sigil}{}\r\n", items.len()).into_bytes(), items.concat()].concat();
        let pairs = vec((inner.clone(), inner.clone()), 0..4)
            .prop_map(|pairs| (pairs.len(), pairs.into_iter().map(|(k, v)| [k, v].concat()).collect::<Vec<_>>().concat()));
        let kind = "(message|pmessage|smessage|invalidate|subscribe|psubscribe|ssubscribe|unsubscribe|punsubscribe|sunsubscribe|other)";
        prop_oneof![
            vec(inner.clone(), 0..8).prop_map(many("*")),
            vec(inner.clone(), 0..8).prop_map(many("~")),
            pairs.clone().prop_map(|(n, body)| [format!("%{n}\r\n").into_bytes(), body].concat()),
            (pairs, inner.clone()).prop_map(|((n, body), data)| [format!("|{n}\r\n").into_bytes(), body, data].concat()),
            (kind, any::<bool>(), vec(inner, 0..4)).prop_map(|(kind, simple, items)| {
                let kind = if simple { format!("+{kind}\r\n") } else { format!("${}\r\n{kind}\r\n", kind.len()) };
                [format!(">{}\r\n{kind}", items.len() + 1).into_bytes(), items.concat()].concat()
            }),
        ]
    })
}

/// The bytes of the heap that a value holds, by capacity.
fn held(value: &Value) -> usize {
    let many = |items: &Vec<Value>| {
        items.capacity() * size_of::<Value>() + items.iter().map(held).sum::<usize>()
    };
    let pairs = |items: &Vec<(Value, Value)>| {
        items.capacity() * 2 * size_of::<Value>()
            + items.iter().map(|(k, v)| held(k) + held(v)).sum::<usize>()
    };
    match value {
        Value::BulkString(bytes) => bytes.capacity(),
        // Of a type that depends on redis-rs's features; in neither does it take more than what it
        // prints.
        Value::BigNumber(number) => format!("{number:?}").len(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.capacity(),
        Value::Array(items) | Value::Set(items) | Value::Push { data: items, .. } => many(items),
        Value::Map(items) => pairs(items),
        Value::Attribute { data, attributes } => {
            size_of::<Value>() + held(data) + pairs(attributes)
        }
        _ => 0,
    }
}

impl Decoder {
    /// The bytes of the heap that an unfinished reply holds.
    fn held(&self) -> usize {
        let frames = self.stack.iter().map(|frame| {
            let members = frame.members.capacity() + 2 * frame.pairs.capacity();
            members * size_of::<Value>()
                + frame.members.iter().map(held).sum::<usize>()
                + frame
                    .pairs
                    .iter()
                    .map(|(k, v)| held(k) + held(v))
                    .sum::<usize>()
                + frame.key.as_ref().map_or(0, held)
        });
        frames.sum::<usize>() + self.blob.as_ref().map_or(0, |blob| blob.content.capacity())
    }
}

proptest! {
    #[test]
    fn every_valid_frame_is_decoded_as_redis_rs_decodes_it(frame in frame()) {
        let expected = redis::parse_redis_value(&frame).unwrap();
        prop_assert_eq!(decode_one(&frame).unwrap(), expected);
    }

    #[test]
    fn any_cut_of_the_bytes_gives_the_same_values(
        frames in vec(frame(), 1..5),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let input = frames.concat();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.sort_unstable();
        let whole = decode_in_pieces(&input, &[], Limits::default()).unwrap();
        prop_assert_eq!(whole.len(), frames.len());
        prop_assert_eq!(&decode_in_pieces(&input, &cuts, Limits::default()).unwrap(), &whole);
        if input.len() < 4_096 {
            let each: Vec<_> = (0..input.len()).collect();
            prop_assert_eq!(&decode_in_pieces(&input, &each, Limits::default()).unwrap(), &whole);
        }
    }

    #[test]
    fn a_command_decodes_to_its_arguments(args in vec(vec(any::<u8>(), 0..200), 0..40)) {
        let mut bytes = Vec::new();
        crate::resp::encode::command(args.iter().map(Vec::as_slice), &mut bytes);
        let expected = Value::Array(args.into_iter().map(Value::BulkString).collect());
        prop_assert_eq!(decode_one(&bytes).unwrap(), expected);
    }

    #[test]
    fn whatever_is_accepted_of_arbitrary_bytes_is_what_redis_rs_makes_of_them(
        input in "[+:$*%~>|!=#_,(\\-]{1,3}[-0-9tf]{0,2}\r?\n?([+:$*%_#,(-][0-9a-z]{0,2}\r\n){0,6}",
    ) {
        let mut decoder = Decoder::default();
        if let Ok(Decoded { consumed, value: Some(value) }) = decoder.decode(input.as_bytes()) {
            let theirs = redis::parse_redis_value(&input.as_bytes()[..consumed]).unwrap();
            // By their looks, so that NaN equals itself.
            prop_assert_eq!(format!("{:?}", value), format!("{:?}", theirs));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_hold_memory_in_proportion_to_what_came(
        input in vec(prop_oneof![4 => prop::sample::select(b"+:$*%~>|!=#_,(-0123456789\r\n\r\n".to_vec()), 1 => any::<u8>()], 0..400),
        cut in any::<prop::sample::Index>(),
    ) {
        let cut = cut.index(input.len() + 1);
        let mut decoder = Decoder::default();
        let mut done = 0;
        for end in [cut, input.len()] {
            while let Ok(Decoded { consumed, value: Some(_) }) = decoder.decode(&input[done..end.max(done)]) {
                done += consumed;
            }
        }
        // One unearned string at most, and for each open aggregate (4 bytes of header) a
        // reservation by what follows.
        prop_assert!(decoder.held() <= UNEARNED_BYTES + input.len() * input.len() * size_of::<Value>());
    }
}

#[test]
fn ten_thousand_damaged_replies_are_refused_or_decoded_but_never_panic() {
    let mut rng = fastrand::Rng::with_seed(7);
    let whole: &[&[u8]] = &[
        b"*3\r\n$3\r\nfoo\r\n:42\r\n%1\r\n+k\r\n$5\r\nhello\r\n",
        b">3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$4\r\ndata\r\n",
        b"|1\r\n+ttl\r\n:3600\r\n*2\r\n#t\r\n,3.25\r\n",
        b"=15\r\ntxt:Some string\r\n!21\r\nSYNTAX invalid syntax\r\n(3492890328409238509324850943850943825024385\r\n",
        b"-MOVED 3999 127.0.0.1:6381\r\n~2\r\n_\r\n$-1\r\n",
    ];
    let (mut refused, mut decoded) = (0, 0);
    for _ in 0..10_000 {
        let mut input = whole[rng.usize(..whole.len())].to_vec();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..input.len());
            match rng.u8(..4) {
                0 => input[at] = rng.u8(..),
                1 => input[at] = b"+:$*%~>|!=#_,(-0123456789\r\n"[rng.usize(..27)],
                2 => drop(input.remove(at)),
                _ => input.insert(at, b'9'),
            }
        }
        let mut cuts: Vec<_> = (0..rng.usize(..4))
            .map(|_| rng.usize(..=input.len()))
            .collect();
        cuts.sort_unstable();
        match decode_in_pieces(&input, &cuts, Limits::default()) {
            Ok(_) => decoded += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(
        refused > 2_000 && decoded > 1_000,
        "{refused} refused, {decoded} decoded"
    );
}

#[test]
fn nan_is_a_double() {
    for nan in ["nan", "-nan", "NaN"] {
        let value = decode_one(format!(",{nan}\r\n").as_bytes()).unwrap();
        assert!(matches!(value, Value::Double(nan) if nan.is_nan()));
    }
}

#[test]
fn an_error_that_quotes_bytes_which_are_not_text_is_still_an_error_reply() {
    let Value::ServerError(error) = decode_one(b"-ERR unknown command '\xff\xfe'\r\n").unwrap()
    else {
        panic!("not an error");
    };
    assert_eq!(error.details(), Some("unknown command '\u{fffd}\u{fffd}'"));
}

#[test]
fn numbers_reach_to_both_ends_of_their_range_and_no_further() {
    assert_eq!(
        decode_one(b":-9223372036854775808\r\n").unwrap(),
        Value::Int(i64::MIN)
    );
    assert_eq!(
        decode_one(b":9223372036854775807\r\n").unwrap(),
        Value::Int(i64::MAX)
    );
    assert_eq!(decode_one(b":+7\r\n").unwrap(), Value::Int(7));
    for bad in [
        ":9223372036854775808",
        ":-9223372036854775809",
        ":",
        ":-",
        ":1x",
        ": 1",
        ":99999999999999999999",
    ] {
        let bad = format!("{bad}\r\n");
        assert_eq!(
            refusal(bad.as_bytes(), Limits::default()),
            DecodeError::BadContent { sigil: ':' },
            "{bad}"
        );
    }
}

#[test]
fn malformed_replies_are_refused_by_what_is_wrong_with_them() {
    use DecodeError::*;
    let limits = Limits::default();
    for (input, error) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            UnknownType { byte: b'H' },
        ),
        (b"\x15\x03\x01", UnknownType { byte: 0x15 }),
        (b"$x\r\n", BadLength { sigil: '$' }),
        (b"$-2\r\n", BadLength { sigil: '$' }),
        (b"$?\r\n", BadLength { sigil: '$' }),
        (b"%-1\r\n", BadLength { sigil: '%' }),
        (b"=-1\r\n", BadLength { sigil: '=' }),
        (b"$5\rx", BadLength { sigil: '$' }),
        (b"$2\r\nabc\r\n", MissingLineEnd),
        (b"=5\r\ntxt:abc\r\n", MissingLineEnd),
        (b"=3\r\ntxt\r\n", BadContent { sigil: '=' }),
        (b"#x\r\n", BadContent { sigil: '#' }),
        (b"_x\r\n", BadContent { sigil: '_' }),
        (b",1.2.3\r\n", BadContent { sigil: ',' }),
        (b"(12a\r\n", BadContent { sigil: '(' }),
        (b">1\r\n:1\r\n", BadContent { sigil: '>' }),
        (b">1\r\n$1\r\n\xff\r\n", BadContent { sigil: '>' }),
        (b"*1\r\n$-7\r\n", BadLength { sigil: '$' }),
    ] {
        assert_eq!(
            refusal(input, limits),
            error,
            "{:?}",
            String::from_utf8_lossy(input)
        );
    }
}

#[test]
fn nesting_is_refused_beyond_the_limit_and_accepted_up_to_it() {
    let limits = Limits {
        depth: 128,
        ..Limits::default()
    };
    let nested = |n| [b"*1\r\n".repeat(n), b":1\r\n".to_vec()].concat();
    assert!(decode_in_pieces(&nested(128), &[], limits).is_ok());
    assert_eq!(
        refusal(&nested(129), limits),
        DecodeError::TooDeep { limit: 128 }
    );
    assert_eq!(
        refusal(&b"|0\r\n".repeat(1_000_000), limits),
        DecodeError::TooDeep { limit: 128 }
    );
}

#[test]
fn a_claim_beyond_a_limit_is_refused_at_its_header() {
    let limits = Limits {
        elements: 10,
        bulk_bytes: 100,
        line_bytes: 20,
        total_bytes: 2_000,
        ..Limits::default()
    };
    for claim in [
        "*11\r\n",
        "*4\r\n*7\r\n",
        "%6\r\n",
        "|5\r\n",
        "*9223372036854775807\r\n",
        "%999999999999999999\r\n",
    ] {
        let error = refusal(claim.as_bytes(), limits);
        assert!(
            matches!(
                error,
                DecodeError::TooManyElements { limit: 10 } | DecodeError::BadLength { .. }
            ),
            "{claim}"
        );
    }
    assert_eq!(
        refusal(b"$101\r\n", limits),
        DecodeError::BulkTooLarge {
            claimed: 101,
            limit: 100
        }
    );
    assert_eq!(
        refusal(b"+123456789012345678901\r\n", limits),
        DecodeError::LineTooLong { limit: 20 }
    );
    assert_eq!(
        refusal(&[b'-'; 64], limits),
        DecodeError::LineTooLong { limit: 20 }
    );
    let full = [
        b"*10\r\n".to_vec(),
        [b"$100\r\n".to_vec(), vec![b'x'; 100], b"\r\n".to_vec()]
            .concat()
            .repeat(10),
    ]
    .concat();
    assert!(decode_in_pieces(&full, &[], limits).is_ok());
    let limits = Limits {
        total_bytes: 1_500,
        ..limits
    };
    assert_eq!(
        refusal(&full, limits),
        DecodeError::ReplyTooLarge { limit: 1_500 }
    );
}

#[test]
fn limits_hold_for_each_reply_and_not_for_the_stream() {
    let limits = Limits {
        elements: 2,
        total_bytes: 200,
        ..Limits::default()
    };
    let input = b"*2\r\n:1\r\n$4\r\nabcd\r\n".repeat(100);
    assert_eq!(decode_in_pieces(&input, &[], limits).unwrap().len(), 100);
}

#[test]
fn what_a_string_reserves_is_a_few_times_what_has_come_of_it() {
    let length = 40 << 20;
    let mut decoder = Decoder::default();
    decoder.decode(format!("${length}\r\n").as_bytes()).unwrap();
    let (mut come, mut moved) = (0, 0);
    while let Some(mut rest) = decoder.rest_of_string(1) {
        let part = rest.remaining_mut().min(300 << 10);
        rest.put_bytes(b'x', part);
        let before = decoder.held();
        come += part;
        assert!(before <= UNEARNED_BYTES + 4 * come, "{before} for {come}");
        decoder.rest_of_string(1);
        moved += if decoder.held() > before { come } else { 0 };
    }
    assert_eq!((come, decoder.held()), (length, length), "exactly");
    assert!(moved < length, "less is moved than is read: {moved}");
    let last = decoder.decode(b"\r\n").unwrap();
    assert_eq!(last.value, Some(Value::BulkString(vec![b'x'; length])));
}

#[test]
fn a_large_length_that_never_comes_reserves_little() {
    for claim in [
        &b"$536870912\r\n"[..],
        b"*16777000\r\n",
        b"%8000000\r\n",
        b"=536870912\r\n",
    ] {
        let mut decoder = Decoder::default();
        assert_eq!(
            decoder.decode(claim).unwrap(),
            Decoded {
                consumed: claim.len(),
                value: None
            }
        );
        assert!(decoder.held() <= UNEARNED_BYTES);
        assert!(!decoder.is_idle());
    }
}

#[test]
fn the_parts_of_a_large_string_are_consumed_as_they_come() {
    let mut decoder = Decoder::default();
    let content = vec![b'x'; 1_000_000];
    let input = [b"$1000000\r\n".to_vec(), content.clone(), b"\r\n".to_vec()].concat();
    let mut done = 0;
    let mut value = None;
    for part in input.chunks(16_384) {
        assert_eq!(value, None);
        let decoded = decoder.decode(part).unwrap();
        assert_eq!(decoded.consumed, part.len());
        done += decoded.consumed;
        value = decoded.value;
    }
    assert_eq!(done, input.len());
    assert_eq!(value, Some(Value::BulkString(content)));
    assert!(decoder.is_idle());
}

#[test]
fn a_long_line_in_pieces_is_searched_once() {
    let mut decoder = Decoder::default();
    let line = [b"+".to_vec(), b"x\r".repeat(1_000), b"\r\n".to_vec()].concat();
    for end in 1..line.len() {
        assert_eq!(
            decoder.decode(&line[..end]).unwrap(),
            Decoded {
                consumed: 0,
                value: None
            }
        );
        assert_eq!(decoder.searched, end);
    }
    let decoded = decoder.decode(&line).unwrap();
    assert_eq!(decoded.consumed, line.len());
    assert_eq!(decoder.searched, 0);
}
