//! Commands into bytes.
//!
//! One pass and no buffer in between: the caller hands over the buffer that it is going to write to
//! the socket, and many commands go into it before one system call takes them all. Arguments are
//! bytes; nothing here looks at what they mean.

use crate::redis_rs::CommandRef;

/// Appends one command, as an array of bulk strings, to `out`.
///
/// ```
/// let mut out = Vec::new();
/// steadfast_core::resp::encode::command([&b"GET"[..], b"key"].into_iter(), &mut out);
/// assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n");
/// ```
///
/// A command without arguments is encoded as `*0`, which Redis ignores and never answers; callers
/// refuse it beforehand ([`classify`](crate::command::classify) says so).
pub fn command<'a>(args: impl ExactSizeIterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    counted(args.len(), args, out);
}

/// The same of arguments that do not know how many they are.
pub(crate) fn counted<'a>(count: usize, args: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    header(b'*', count, out);
    for arg in args {
        bulk(arg, out);
    }
}

/// Appends one command built with redis-rs to `out`, exactly as redis-rs itself would write it.
pub fn redis_cmd<'a>(cmd: impl Into<CommandRef<'a>>, out: &mut Vec<u8>) {
    let (cmd, start) = (cmd.into(), out.len());
    let args = cmd.plain_arguments();
    header(b'*', args.len(), out);
    for arg in args {
        match arg {
            Some(arg) => bulk(arg, out),
            // A cursor; only the command knows its value, so it writes itself.
            None => {
                out.truncate(start);
                cmd.write(out);
                return;
            }
        }
    }
}

/// As many bytes as [`redis_cmd`] may append, or a few more.
#[inline]
pub fn most_bytes<'a>(cmd: impl Into<CommandRef<'a>>) -> usize {
    let args = cmd.into().plain_arguments();
    // A cursor is a number.
    let args = args.map(|arg| arg.map_or(LONGEST_HEADER, <[u8]>::len) + LONGEST_HEADER + 2);
    LONGEST_HEADER + args.sum::<usize>()
}

/// As many bytes as arguments may take, or a few more.
pub(crate) fn most_bytes_of<'a>(args: impl Iterator<Item = &'a [u8]>) -> usize {
    let args = args.map(|arg| arg.len() + LONGEST_HEADER + 2);
    LONGEST_HEADER + args.sum::<usize>()
}

#[inline]
fn bulk(arg: &[u8], out: &mut Vec<u8>) {
    out.reserve(arg.len() + LONGEST_HEADER + 2);
    header(b'$', arg.len(), out);
    out.extend_from_slice(arg);
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn header(sigil: u8, length: usize, out: &mut Vec<u8>) {
    match length {
        0..10 => out.extend_from_slice(&[sigil, digit(length), b'\r', b'\n']),
        10..100 => {
            out.extend_from_slice(&[sigil, digit(length / 10), digit(length % 10), b'\r', b'\n'])
        }
        _ => long_header(sigil, length, out),
    }
}

fn long_header(sigil: u8, mut length: usize, out: &mut Vec<u8>) {
    let mut line = [0; LONGEST_HEADER];
    let mut at = LONGEST_HEADER - 2;
    line[at..].copy_from_slice(b"\r\n");
    while length > 0 {
        at -= 1;
        line[at] = digit(length % 10);
        length /= 10;
    }
    at -= 1;
    line[at] = sigil;
    out.extend_from_slice(&line[at..]);
}

#[inline]
fn digit(n: usize) -> u8 {
    b'0' + n as u8
}

/// The sigil, the twenty digits of `u64::MAX`, and the line end.
const LONGEST_HEADER: usize = 23;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redis::Cmd;

    use super::*;

    proptest! {
        #[test]
        fn a_command_is_written_as_redis_rs_writes_it(
            args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 1..130),
            before in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut cmd = Cmd::new();
            for arg in &args {
                cmd.arg(arg);
            }
            let expected = [before.clone(), cmd.get_packed_command()].concat();

            let mut out = before.clone();
            redis_cmd(&cmd, &mut out);
            prop_assert_eq!(&out, &expected);

            let mut out = before;
            command(args.iter().map(Vec::as_slice), &mut out);
            prop_assert_eq!(&out, &expected);
        }
    }

    #[test]
    fn a_cursor_is_written_where_it_stands() {
        let mut cmd = redis::cmd("SCAN");
        cmd.cursor_arg(1_234_567).arg("MATCH").arg("user:*");
        let mut out = b"before".to_vec();
        redis_cmd(&cmd, &mut out);
        assert_eq!(
            out,
            b"before*4\r\n$4\r\nSCAN\r\n$7\r\n1234567\r\n$5\r\nMATCH\r\n$6\r\nuser:*\r\n"
        );
    }

    #[test]
    fn headers_of_every_length_are_decimal() {
        for n in [
            0,
            9,
            10,
            99,
            100,
            101,
            999,
            1_000,
            65_535,
            1_000_000,
            usize::MAX,
        ] {
            let mut out = Vec::new();
            header(b'$', n, &mut out);
            assert_eq!(out, format!("${n}\r\n").into_bytes());
        }
    }
}
