//! Any bytes, cut anywhere, decode without panic, within the limits, and to what they decode to
//! whole. What is accepted is what redis-rs makes of the same bytes.

#![no_main]

use bytes::BufMut;
use libfuzzer_sys::fuzz_target;
use redis::Value;
use steadfast_core::resp::{DecodeError, Decoder, Limits};

fuzz_target!(|data: &[u8]| {
    // The first two bytes choose the cut, the rest is the stream.
    let Some((cut, input)) = data.split_first_chunk::<2>() else {
        return;
    };
    let cut = usize::from(u16::from_le_bytes(*cut)).min(input.len());

    let (values, error) = decode(input, &[input.len()], false);
    // In one way, or with the rest of a string read into its own memory.
    for direct in [false, true] {
        let (cut_values, cut_error) = decode(input, &[cut, input.len()], direct);
        assert_eq!(debug(&values), debug(&cut_values));
        assert_eq!(error, cut_error);
    }

    let mut parser = redis::Parser::new();
    let mut rest = input;
    for value in &values {
        // redis-rs gives up what is no UTF-8, where this decoder replaces it.
        let Ok(theirs) = parser.parse_value(&mut rest) else {
            break;
        };
        assert_eq!(format!("{value:?}"), format!("{theirs:?}"));
    }
});

fn decode(input: &[u8], ends: &[usize], direct: bool) -> (Vec<Value>, Option<DecodeError>) {
    let limits = Limits {
        depth: 32,
        elements: 4_096,
        bulk_bytes: 1 << 20,
        line_bytes: 4_096,
        total_bytes: 4 << 20,
    };
    let mut decoder = Decoder::new(limits);
    let mut values = Vec::new();
    let mut done = 0;
    for &end in ends {
        loop {
            if direct && done < end
                && let Some(mut rest) = decoder.rest_of_string(1)
            {
                let part = rest.remaining_mut().min(end - done);
                rest.put_slice(&input[done..done + part]);
                done += part;
            }
            match decoder.decode(&input[done..end.max(done)]) {
                Ok(decoded) => {
                    done += decoded.consumed;
                    assert!(done <= end.max(done));
                    match decoded.value {
                        Some(value) => values.push(value),
                        None => break,
                    }
                }
                Err(error) => return (values, Some(error)),
            }
        }
    }
    (values, None)
}

/// By their looks, so that NaN equals itself.
fn debug(values: &[Value]) -> String {
    format!("{values:?}")
}
